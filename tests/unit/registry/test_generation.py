"""How a checkpoint likes to be sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import ModelError
from mainspring.registry.generation import sampling_defaults


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": [1, 2], "max_length": 20}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"top_p": 0.8, "repetition_penalty": 1.05}, {"top_p": 0.8, "repetition_penalty": 1.05}),
    ],
)
def test_defaults(tmp_path: Path, file: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert sampling_defaults(tmp_path) == expected


def test_a_checkpoint_that_says_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize("text", ['{"temperature": -1}', '{"top_p": 0}', "{", '{"top_k": "20"}'])
def test_nonsense_is_a_model_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path)
