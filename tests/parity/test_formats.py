"""Quantized formats stay near float32, and no format depends on how a prompt was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainspring.engine.quantize import FORMATS
from mainspring.engine.weights import inspect_config, load_model, random_model
from mainspring.kernels import Format, load_kernels
from tests.parity.checkpoint import prompts
from tests.parity.loop import Loop
from tests.parity.rows import ROWS
from tests.tiny import tiny_checkpoint, tiny_config

# Root-mean-square error of a logit relative to the logits' own. Normal random weights are a hard
# case. A product's own error is about: bf16 0.2 % (8 bits of each factor); int8 0.9 % (a step is
# 1/127 of the largest of 128 numbers, on both sides); int4 9 % (1/7 of the largest of 32). The
# attention and the products of two layers and the head in a row make it four times that.
TOLERANCE: dict[Format, float] = {"bf16": 0.01, "int8": 0.05, "int4": 0.4}


@pytest.mark.parametrize("isa", ["reference", "auto"])
@pytest.mark.parametrize("format", TOLERANCE)
def test_quantized_logits_are_near(isa: str, format: Format, tmp_path: Path) -> None:
    kernels = load_kernels(isa, threads=2)
    path = tiny_checkpoint(tmp_path / "m", hidden_size=128, intermediate_size=256, head_dim=32)
    prompt = np.random.default_rng(1).integers(0, 256, 40).tolist()

    def logits(format: Format) -> np.ndarray:
        model = load_model(path, kernels, format=format)
        assert model.shape.format == format
        return Loop(model, kernels, 1).feed([prompt], all_logits=True)

    exact = logits("float32")
    error = np.sqrt(np.mean((logits(format) - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < TOLERANCE[format]


@pytest.mark.parametrize("isa", ["reference", "auto"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3_partial", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("format", ["float32", "int8", "int4"])
def test_a_row_does_not_depend_on_chunks_or_company(isa: str, name: str, format: Format) -> None:
    kernels = load_kernels(isa, threads=2)
    model = random_model(ROWS[name].config, kernels, format, seed=3)
    first, *_, second = prompts(ROWS[name])
    alone = Loop(model, kernels, 1).feed([second])
    cut = Loop(model, kernels, 1)
    for piece in (second[:1], second[1:40], second[40:41]):
        cut.feed([piece])
    np.testing.assert_array_equal(cut.feed([second[41:]]), alone)
    together = Loop(model, kernels, 3).feed([first, second, first])
    np.testing.assert_array_equal(together[1:2], alone)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_memory_is_predicted_to_the_byte(format: Format, tied: bool) -> None:
    config = tiny_config(
        hidden_size=256, intermediate_size=384, head_dim=64, vocab_size=512, attention_bias=True
    )
    config["tie_word_embeddings"] = tied
    predicted = inspect_config(config).weight_bytes[format]
    kernels = load_kernels("auto", threads=2)
    assert random_model(config, kernels, format).shape.weight_bytes == predicted


def test_tied_embeddings_share_one_weight() -> None:
    kernels = load_kernels("reference")
    config = tiny_config(tie_word_embeddings=True)
    tied = random_model(config, kernels, "bf16")
    loose = random_model({**config, "tie_word_embeddings": False}, kernels, "bf16")
    matrix = config["vocab_size"] * config["hidden_size"]
    assert loose.shape.parameters - tied.shape.parameters == matrix
    assert loose.shape.weight_bytes > tied.shape.weight_bytes
