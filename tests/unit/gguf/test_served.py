"""A GGUF file in the place of a checkpoint's directory: the same text, offline and prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring import LLM
from mainspring.engine.prepared import Unusable
from mainspring.engine.weights import inspect_checkpoint, load_prepared, prepare_model
from mainspring.kernels import load_kernels
from mainspring.types import Sampling
from tests.gguf import tiny_gguf
from tests.tiny import tiny_checkpoint

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
