"""What the transformers library answers. Needs torch; `make test` does not come here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration

from tests.parity.checkpoint import GREEDY, prompts, write_checkpoint
from tests.parity.rows import Row

__all__ = ["expectation", "layout_of"]


def layout_of(row: Row) -> dict[str, list[int]]:
    """Names and shapes of the tensors as the library saves such a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_text(json.dumps(row.config))
        config = AutoConfig.from_pretrained(path)
        model = _class(row).from_config(config) if row.family != "gemma3" else _class(row)(config)
        if row.fused_experts:
            return {name: list(value.shape) for name, value in model.state_dict().items()}
        model.save_pretrained(path / "saved")
        with safe_open(path / "saved" / "model.safetensors", "np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def expectation(row: Row, layout: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """float32 logits of the last prompt and GREEDY tokens after each of the others.

    No cache on this side: each token comes from a pass over the whole sequence. `margin` is the
    least distance between the best two logits at any choice, relative to the largest logit.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), row, layout)
        model = _class(row).from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    torch.set_num_threads(1)  # a model this small only loses by more
    *short, long = prompts(row)
    with torch.no_grad():
        logits = _logits(model, long)
        tokens, margin = [], np.inf
        for prompt in short:
            sequence = list(prompt)
            for _ in range(GREEDY):
                last = _logits(model, sequence)[-1]
                second, best = np.sort(last)[-2:]
                margin = min(margin, float(best - second) / float(np.abs(last).max()))
                sequence.append(int(last.argmax()))
            tokens.append(sequence[len(prompt) :])
    return {
        "logits": logits[_positions(len(long))],
        "tokens": np.array(tokens, np.int16),
        "margin": np.array(margin),
    }


def _positions(length: int) -> np.ndarray:
    return np.linspace(0, length - 1, 8).astype(int)


def _logits(model: Any, tokens: list[int]) -> np.ndarray:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def _class(row: Row) -> Any:
    return Gemma3ForConditionalGeneration if row.family == "gemma3" else AutoModelForCausalLM
