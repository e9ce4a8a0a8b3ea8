"""`mainspring pull` against a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.cli import pull as pull_module
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
