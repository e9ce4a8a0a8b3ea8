"""A model from a GGUF file is the model from its safetensors: every family, number for number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.gguf.families import LAYOUTS
from mainspring.engine.weights import _family, _plan, load_model
from mainspring.kernels import load_kernels
from tests.gguf import convert, write_gguf
from tests.parity.checkpoint import prompts, tensor, write_checkpoint
from tests.parity.loop import Loop
from tests.parity.rows import GEMMA, ROWS, Row

GEMMAS = {**GEMMA, "query_pre_attn_scalar": 16, "rope_theta": 1e4}
CASES = {
    **{
        name: ROWS[name]
        for name in (
            "llama", "llama3", "llama_linear", "llama_tied_bias", "llama_yarn", "mistral",
            "mixtral", "phi3", "phi3_longrope_long", "phi3_longrope_short", "phi3_partial",
            "qwen2", "qwen2_yarn", "qwen3",
        )
    },
    "qwen3_moe": Row("qwen3_moe", {**ROWS["qwen3_moe"].config, "mlp_only_layers": None}),
    "gemma2": Row("gemma2", {"model_type": "gemma2", **GEMMAS, "attn_logit_softcapping": 2.0}),
    "gemma3": Row(
        "gemma3_text",
        {
            "model_type": "gemma3_text",
            **GEMMAS,
            "num_hidden_layers": 7,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}  # fmt: skip
LOGITS = 1e-5
"""largest difference of a logit, relative to the largest logit: exponents and factors are float32
in GGUF, and gemma's norms lose a bit"""


@pytest.mark.parametrize("name", CASES)
def test_equals_the_checkpoint_it_was_made_of(name: str, tmp_path: Path) -> None:
    row, kernels = CASES[name], load_kernels(threads=2)
    plan = _plan(*_family(row.config), None, {}, row.context)
    layout = {name: list(shape) for name, shape in plan.used.items()}
    directory = write_checkpoint(tmp_path / "m", row, layout)
    tensors = {name: tensor(name, tuple(shape), row) for name, shape in layout.items()}
    file = write_gguf(tmp_path / "m.gguf", *convert(row.config, tensors))

    def logits(path: Path) -> Any:
        model = load_model(path, kernels, format="float32", context=row.context)
        return Loop(model, kernels, 1).feed([prompts(row)[-1]], all_logits=True)

    expected = logits(directory)
    assert np.abs(logits(file) - expected).max() <= LOGITS * np.abs(expected).max()


def test_every_layout_is_tried() -> None:
    tried = {row.family for row in CASES.values()}
    assert {layout.model_type for layout in LAYOUTS.values()} <= tried
