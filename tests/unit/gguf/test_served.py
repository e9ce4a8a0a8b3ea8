"""A GGUF file in the place of a checkpoint's directory: the same text, offline and prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainspring import LLM
from mainspring.config import ModelConfig
from mainspring.engine.prepared import Unusable
from mainspring.engine.weights import inspect_checkpoint, load_model, load_prepared, prepare_model
from mainspring.kernels import load_kernels
from mainspring.runtimes.loading import load
from mainspring.types import Sampling
from tests.gguf import convert, tiny_gguf, tokenizer_pairs, write_gguf
from tests.parity.loop import Loop
from tests.tiny import tiny_checkpoint, tiny_config, tiny_tensors, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "hello <|end|> there"}]


def test_the_same_text_as_from_safetensors(tmp_path: Path) -> None:
    texts = []
    for path in (tiny_checkpoint(tmp_path / "m"), tiny_gguf(tmp_path / "m.gguf")):
        with LLM(path, quantize="int8", threads=1, kv_memory=1 << 20) as llm:
            result = llm.chat(MESSAGES, Sampling(temperature=0, max_tokens=24))
            texts.append((result.text, result.tokens, result.usage))
    assert texts[0] == texts[1]


def test_prepared(tmp_path: Path) -> None:
    path, kernels = tiny_gguf(tmp_path / "m.gguf"), load_kernels(threads=1)
    place = prepare_model(path, kernels, format="int4")
    assert place == tmp_path / "m.gguf.int4.prepared"
    model = load_prepared(path, kernels, format="int4")
    assert model is not None
    assert model.shape.parameters == inspect_checkpoint(path).parameters
    tiny_gguf(path)
    with pytest.raises(Unusable, match=r"m\.gguf is not the one that it was made of"):
        load_prepared(path, kernels, format="int4")


def q8_0(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Blocks of 32 numbers: a float16 and its multiples."""
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / scales.astype(np.float32)).astype(np.int8)
    data = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1)
    return "Q8_0", array.shape, data.tobytes()


def test_quantized_files_stay_quantized(tmp_path: Path) -> None:
    config = tiny_config()
    pairs, tensors = convert(config, tiny_tensors(config))
    plain = write_gguf(tmp_path / "plain.gguf", pairs, {**tensors})
    small = write_gguf(
        tmp_path / "small.gguf",
        {**pairs, **tokenizer_pairs(tiny_tokenizer())},
        {name: q8_0(array) if array.ndim > 1 else array for name, array in tensors.items()},
    )
    assert inspect_checkpoint(plain).format == "bf16"
    info = inspect_checkpoint(small)
    assert (info.dtype, info.format) == ("Q8_0", "int8")
    loaded = load(small, ModelConfig(threads=1, kv_memory=1 << 20), tmp_path)
    assert loaded.shape.format == "q8"

    kernels, ids = load_kernels(threads=1), list(range(40))

    def logits(path: Path) -> np.ndarray:
        return Loop(load_model(path, kernels, format="float32"), kernels, 1).feed([ids])

    expected = logits(plain)
    assert np.sqrt(np.mean((logits(small) - expected) ** 2) / np.mean(expected**2)) < 0.05
