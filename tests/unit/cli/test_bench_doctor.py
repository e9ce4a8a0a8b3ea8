"""`bench` and `doctor` on a tiny shape."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from mainspring.cli import doctor as doctor_module
from mainspring.cli import probe
from tests.tiny import tiny_checkpoint, tiny_config
from tests.unit.cli.conftest import Run


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "shape" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(tiny_config()))
    return str(path)


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement, of smaller matrices: the numpy kernels need seconds for the others."""
    sizes = {"big": (512, 512), "small": (64, 128), "tokens": 64, "layers": 2, "blocks": 16}
    monkeypatch.setattr(doctor_module, "measure", partial(probe.measure, budget=0.02, **sizes))


def test_bench_measures_a_shape_without_weights(run: Run, config: str) -> None:
    ran = run(
        "bench", config, "--isa", "reference", "--prompt", "48", "--output", "8", "--sequences",
        "3", "--quantize", "none", "--quantize", "int8", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.err == ""
    document = ran.json
    assert document["load"] == {"prompt": 48, "output": 8, "sequences": 3, "seed": 0}
    assert [row["format"] for row in document["results"]] == ["bf16", "int8"]
    for row in document["results"]:
        assert row["isa"] == "reference"
        speeds = [value for name, value in row.items() if name.endswith("_per_second")]
        assert len(speeds) == 4
        assert all(value > 0 for value in speeds)
        assert row["first_token_seconds"] < row["batch_seconds"]


def test_bench_prints_a_table(run: Run, config: str) -> None:
    ran = run("bench", config, "--isa", "reference", "--prompt", "8", "--output", "4")
    assert ran.code == 0, ran.err
    assert "16 STREAMS" in ran.out
    assert "bf16" in ran.out


def test_bench_names_the_limit(run: Run, config: str) -> None:
    ran = run("bench", config, "--isa", "reference", "--prompt", "512")
    assert ran.code == 1
    assert "640 tokens, the model's context is 512: make them smaller" in ran.err
    assert run("bench", config, "--quantize", "int3").code == 2
    assert run("bench", config, "--output", "1").code == 2


def test_doctor_describes_the_machine(run: Run) -> None:
    ran = run("doctor", "--isa", "reference")
    assert ran.code == 0, ran.err
    for text in ("processor", "usable of", "memory bandwidth", "reference, 1 thread"):
        assert text in ran.out


@pytest.mark.parametrize("kind", ["config", "directory"])
def test_doctor_predicts_a_model(run: Run, config: str, tmp_path: Path, kind: str) -> None:
    subject = config if kind == "config" else str(tiny_checkpoint(tmp_path / "shape"))
    ran = run("doctor", subject, "--isa", "reference", "--json", "--explain")
    assert ran.code == 0, ran.err
    document = ran.json
    assert document["model"]["name"] == "shape"
    assert document["model"]["parameters"] == 95_040
    assert [row["format"] for row in document["predictions"]] == ["bf16", "int8", "int4"]
    for row in document["predictions"]:
        assert row["fits"]
        assert row["tokens_per_second"] > 0
        assert row["sequences_1k"] == 64
    assert "bandwidth" in document["formulas"]
    text = run("doctor", subject, "--isa", "reference", "--explain").out
    assert "FIRST TOKEN" in text
    assert "weights / bandwidth" in text


def test_doctor_says_what_would_fit(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "huge" / "config.json"
    path.parent.mkdir()
    huge = tiny_config(hidden_size=16384, intermediate_size=65536, num_hidden_layers=1000,
                       num_attention_heads=128, num_key_value_heads=8, head_dim=128)  # fmt: skip
    path.write_text(json.dumps(huge))
    ran = run("doctor", str(path), "--isa", "reference")
    assert ran.code == 0
    assert "bf16 does not fit: needs " in ran.out
    assert "no setting makes it fit" in ran.out


def test_doctor_without_usable_kernels_still_speaks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("no module named _native")

    monkeypatch.setattr(doctor_module, "load_kernels", missing)
    ran = run("doctor")
    assert ran.code == 0
    assert "the compiled kernels are missing" in ran.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not json", "is not a config.json"),
        ("[1]", "is not a config.json"),
        ("{}", "model_type is missing"),
        ('{"model_type": "gpt2"}', "architecture 'gpt2' is not known"),
        ("[" * 100_000, "is not a config.json"),
        (json.dumps(tiny_config(hidden_size=2**31)), "hidden_size is 2147483648"),
        (json.dumps(tiny_config(num_attention_heads=0)), "num_attention_heads is 0"),
    ],
)
def test_a_config_that_cannot_be(run: Run, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    for name in ("doctor", "bench"):
        ran = run(name, str(path), "--isa", "reference")
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert expected in ran.err


def test_a_config_that_is_not_there(run: Run) -> None:
    assert "cannot be read (No such file" in run("bench", "./nowhere.json").err
