"""Families are found by file name, or brought by a package through an entry point."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mainspring.engine.architectures import find_family, known_families
from mainspring.engine.weights import random_model
from mainspring.errors import UnknownArchitecture
from mainspring.kernels import load_kernels
from tests.tiny import tiny_config

GUIDE = Path(__file__).parents[3] / "docs/adding/architecture.md"


def test_every_file_is_a_family() -> None:
    folder = Path(__file__).parents[3] / "mainspring/engine/architectures"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert files <= set(known_families())
    assert [find_family(name).name for name in sorted(files)] == sorted(files)


def test_the_guides_example_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "outside_example.py").write_text(example[1])
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[mainspring.architectures]\nexample = outside_example\nllama = outside_example\n"
    )
    config = tiny_config(model_type="example")
    with pytest.raises(UnknownArchitecture):
        random_model(config, load_kernels("reference"), "bf16")

    monkeypatch.syspath_prepend(tmp_path)
    model = random_model(config, load_kernels("reference"), "bf16")
    assert model.shape.family == "example"
    assert find_family("llama").build.__module__ == "mainspring.engine.architectures.llama"
    sys.modules.pop("outside_example", None)
