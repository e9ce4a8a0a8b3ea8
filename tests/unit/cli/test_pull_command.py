"""`mainspring pull` against a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.cli import pull as pull_module
from tests.gguf import tiny_gguf
from tests.tiny import tiny_checkpoint
from tests.unit.cli.conftest import Run
from tests.unit.registry.hub_server import COMMIT, Repository, TestHub, serve_hub


@pytest.fixture
def hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestHub]:
    source = tiny_checkpoint(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with serve_hub(owner__tiny=Repository(files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def test_pull_by_id(run: Run, hub: TestHub) -> None:
    ran = run("pull", "owner/tiny@main")
    assert ran.code == 0, ran.err
    assert f"from {hub.address}/owner/tiny at {COMMIT[:12]}" in ran.out
    assert "model.safetensors  " in ran.err
    (row,) = [row for row in run("list", "--json").json if row["name"] == "owner/tiny"]
    assert (row["revision"], row["source"]) == (COMMIT, f"{hub.address}/owner/tiny")


def test_the_token_comes_from_the_environment(
    run: Run, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["owner/tiny"].token = "secret"
    ran = run("pull", "owner/tiny")
    assert ran.code == 1
    assert "set HF_TOKEN" in ran.err
    monkeypatch.setenv("HF_TOKEN", "secret")
    ran = run("pull", "owner/tiny")
    assert ran.code == 0
    assert "secret" not in ran.out + ran.err


def test_a_misspelt_id(run: Run, hub: TestHub) -> None:
    ran = run("pull", "owner/tinny")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "similar: owner/tiny" in ran.err


def test_ctrl_c_says_that_nothing_is_lost(
    run: Run, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pull_module, "refuse_unknown_family", interrupted)
    ran = run("pull", "owner/tiny")
    assert ran.code == 130
    assert "interrupted: the same command goes on from here" in ran.err
    assert len(hub.of("/resolve/")) == 4


def test_an_unknown_family_stops_before_the_weights(run: Run, hub: TestHub) -> None:
    files = hub.repositories["owner/tiny"].files
    files["config.json"] = files["config.json"].replace(b'"llama"', b'"alien"')
    ran = run("pull", "owner/tiny")
    assert "'alien' is not known" in ran.err
    assert not hub.of("model.safetensors")


def test_pull_and_use_a_gguf_file(run: Run, hub: TestHub, tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "x-F32.gguf")
    hub.repositories["owner/gguf"] = Repository(
        {"x-F32.gguf": file.read_bytes(), "x-Q8_0.gguf": b"GGUF"}, large=("x-F32.gguf",)
    )
    ran = run("pull", "owner/gguf:F32")
    assert ran.code == 0, ran.err
    name = "owner/gguf-F32"
    known = run("show", name, "--verify", "--json").json
    assert (known["family"], known["dtype"], known["vocabulary"]) == ("llama", "F32", 260)
    assert "<|assistant|>" in known["chat_template"]
    assert run("prepare", name, "--quantize", "int8").code == 0
    (row,) = [row for row in run("list", "--json").json if row["name"] == name]
    assert (row["prepared"], row["error"]) == (["int8"], "")
    assert row["size"] > file.stat().st_size
    assert f"removed {name}" in run("rm", name).out


def test_a_gguf_file_that_is_none_is_not_listed(run: Run, hub: TestHub) -> None:
    hub.repositories["owner/gguf"] = Repository({"x.gguf": b"GGUF" + bytes(40)})
    ran = run("pull", "owner/gguf")
    assert ran.code == 1
    assert "x.gguf: byte 4: version 0; GGUF versions 2 and 3" in ran.err
    assert "owner/gguf" not in run("list").out


@pytest.mark.parametrize("link", [True, False])
def test_pull_a_gguf_file_that_is_here(run: Run, tmp_path: Path, link: bool) -> None:
    file = tiny_gguf(tmp_path / "here.gguf")
    ran = run("pull", str(file), *(["--link"] if link else []))
    assert ran.code == 0, ran.err
    known = run("show", "here", "--json").json
    assert Path(known["path"]) == file if link else Path(known["path"]).name == "here.gguf"
    assert run("rm", "here").code == 0
    assert file.exists()
