"""Run a command as a person does, and read what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mainspring.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("list", "--json")`, with a home of its own and no settings from outside."""
    import os

    for name in [*os.environ]:
        if name.startswith(("MAINSPRING_", "HF_")) or name.lower() in {"http_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("MAINSPRING_HOME", str(home))

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
