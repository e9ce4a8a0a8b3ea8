"""Flags come from the settings table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from mainspring.cli.serve import serve
from mainspring.cli.settings import bytes_of, config_from, setting_options
from mainspring.config import Config, ModelConfig, help_of
from tests.unit.cli.conftest import Run


def parsed(*arguments: str) -> dict[str, Any]:
    """The values that `serve` would be called with."""
    with serve.make_context("serve", [*arguments]) as context:
        return dict(context.params)


def test_serve_has_a_flag_for_every_setting_but_keys() -> None:
    flags = {parameter.name for parameter in serve.params if isinstance(parameter, click.Option)}
    table = {*help_of(Config), *help_of(ModelConfig)}
    assert table - flags == {"api_keys", "models"}
    assert flags - table == {"file", "debug"}


@pytest.mark.parametrize("kind", [Config, ModelConfig])
def test_help_texts_and_defaults_are_the_tables(kind: type) -> None:
    texts = help_of(kind)
    for option in setting_options(kind):
        assert isinstance(option, click.Option)
        assert option.help is not None
        assert option.help.startswith(texts[str(option.name)])
        default = getattr(kind(), str(option.name))
        if isinstance(default, bool):
            assert option.help.endswith("[default: on]" if default else "[default: off]")
        elif default != ():
            assert option.help.endswith(f"[default: {default}]")


def test_values_reach_the_config(run: Run) -> None:
    values = parsed(
        "a", "x=/m", "--port", "0", "--max-queue", "7", "--kv-memory", "2GiB", "--quantize", "int8",
        "--no-prefix-cache", "--allowed-hosts", "a.example, b.example", "--step-ms", "12.5",
    )  # fmt: skip
    values.pop("file")
    config = config_from(values)
    assert config.models == ("a", "x=/m")
    assert (config.port, config.allowed_hosts) == (0, ("a.example", "b.example"))
    model = config.defaults
    assert (model.max_queue, model.kv_memory, model.step_ms) == (7, 2 << 30, 12.5)
    assert (model.quantize, model.prefix_cache) == ("int8", False)


def test_flags_are_over_environment_over_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.toml"
    file.write_text("port = 1\nhost = 'file'\nlog_level = 'error'\n")
    monkeypatch.setenv("MAINSPRING_PORT", "2")
    monkeypatch.setenv("MAINSPRING_HOST", "environment")
    config = config_from({"port": 3, "host": None}, file=str(file))
    assert (config.port, config.host, config.log_level) == (3, "environment", "error")


@pytest.mark.parametrize(
    ("text", "number"),
    [("4096", 4096), ("2GiB", 2 << 30), ("1.5g", 3 << 29), ("8 M", 8 << 20), ("1kb", 1024)],
)
def test_sizes_have_units(text: str, number: int) -> None:
    assert bytes_of(text) == str(number)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--port", "70000"), "invalid value for '--port': '70000': expected int <= 65535"),
        (("--port", "x"), "invalid value for '--port': 'x': expected int, got str"),
        (("--quantize", "int3"), "'int3': one of none, int8, int4, float32"),
        (("--kv-memory", "much"), "invalid value for '--kv-memory': 'much': expected int"),
        (("--step-ms", "nan"), "invalid value for '--step-ms': 'nan': expected float >= 1"),
        (("--body-limit", "-5"), "invalid value for '--body-limit'"),
    ],
)
def test_a_value_out_of_bounds_names_its_flag(
    run: Run, arguments: tuple[str, ...], expected: str
) -> None:
    ran = run("serve", *arguments)
    assert ran.code == 2
    assert expected in ran.err
    assert ran.err.count("\n") == 1


def test_a_wrong_variable_is_an_error_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_PORT", "many")
    ran = run("ps")
    assert ran.code == 1
    assert "port" in ran.err


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("MAINSPRING_QUANTIZE", "int3", "setting quantize: expected one of none, int8, int4"),
        ("MAINSPRING_PORT", "abc", "setting port: expected `int`, got `str`"),
        ("MAINSPRING_PORT", "99999", "setting port: expected `int` <= 65535"),
    ],
)
def test_a_wrong_variable_names_the_setting(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, expected: str
) -> None:
    monkeypatch.setenv(variable, text)
    ran = run("serve")
    assert ran.code == 1
    assert ran.err.startswith(f"mainspring: {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prot = 1", "there is no setting 'prot': did you mean port?"),
        ("zzz = 1", "there is no setting 'zzz': docs/settings.md lists them"),
        ("[defaults]\nquantise = 'int8'", "there is no setting 'quantise': did you mean quantize?"),
        ("quantize = 'int8'", "setting quantize: put it under [defaults]"),
    ],
)
def test_a_wrong_line_of_the_file_names_the_setting(
    run: Run, tmp_path: Path, line: str, expected: str
) -> None:
    file = tmp_path / "mainspring.toml"
    file.write_text(line)
    ran = run("serve", "--config", str(file))
    assert (ran.code, ran.err) == (1, f"mainspring: {expected}\n")


def test_two_models_of_one_name_are_refused_before_anything_is_loaded(run: Run) -> None:
    ran = run("serve", "mainspring-guide", "mainspring-guide", "--port", "0")
    assert ran.code == 1
    assert ran.err == (
        "mainspring: two models are called 'mainspring-guide': give one another name, as "
        "NAME=DIRECTORY\n"
    )
