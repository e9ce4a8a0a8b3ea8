"""The setting `draft`: which model may guess for which, what it costs, that it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mainspring import LLM
from mainspring.config import ModelConfig
from mainspring.engine.weights import inspect_checkpoint
from mainspring.errors import BadRequest, MainspringError, ModelError, ModelNotFound
from mainspring.runtimes.drafting import find_draft
from mainspring.runtimes.loading import load
from mainspring.types import Sampling
from tests.faults.streams import NATIVE
from tests.tiny import tiny_checkpoint

ISA = "auto" if NATIVE else "reference"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def refusal(model: Path, draft: Path | str, home: Path, *, speculation: bool = True) -> str:
    config = ModelConfig(draft=str(draft), speculation=speculation)
    with pytest.raises(MainspringError) as caught:
        find_draft(model, inspect_checkpoint(model), config, home)
    assert isinstance(caught.value, BadRequest | ModelError | ModelNotFound)
    return caught.value.message


def test_one_that_cannot_guess_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", vocab_size=300)
    assert "has 300 tokens, the model 260: take a smaller" in refusal(checkpoint, larger, tmp_path)
    other = tiny_checkpoint(tmp_path / "other")
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    assert "other tokens in its tokenizer.json" in refusal(checkpoint, other, tmp_path)
    (other / "tokenizer.json").unlink()
    assert "other tokens in its tokenizer.json" in refusal(checkpoint, other, tmp_path)
    (other / "model.safetensors").write_bytes(b"")
    assert f"draft {str(other)[:100]!r}: " in refusal(checkpoint, other, tmp_path)
    assert "no model 'nobody' here" in refusal(checkpoint, "nobody", tmp_path)
    assert "--no-speculation" in refusal(checkpoint, checkpoint, tmp_path, speculation=False)


def test_none_is_looked_for_without_the_setting(checkpoint: Path, tmp_path: Path) -> None:
    info = inspect_checkpoint(checkpoint)
    assert find_draft(checkpoint, info, ModelConfig(speculation=True), tmp_path) is None


def test_its_memory_is_counted(checkpoint: Path, tmp_path: Path) -> None:
    draft = tiny_checkpoint(tmp_path / "small", num_hidden_layers=1)
    with_it = ModelConfig(
        draft=str(draft), speculation=True, quantize="int8", kv_memory=1 << 20, isa=ISA
    )
    without = ModelConfig(quantize="int8", kv_memory=1 << 20, isa=ISA)
    both, one, other = (
        load(path, config, tmp_path)
        for path, config in ((checkpoint, with_it), (checkpoint, without), (draft, without))
    )
    assert both.weight_bytes == one.weight_bytes + other.weight_bytes
    assert both.kv_bytes <= 1 << 20
    blocks = [found.engine.stats().blocks for found in (both, one)]
    assert blocks[0] == pytest.approx(blocks[1] * 2 / 3, abs=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_guesses_and_changes_no_text(
    checkpoint: Path, tmp_path: Path, temperature: float
) -> None:
    shallow = tiny_checkpoint(tmp_path / "shallow", max_position_embeddings=256)
    sampling = Sampling(temperature=temperature, seed=5, max_tokens=200, ignore_eos=True)
    with LLM(checkpoint, isa=ISA, threads=1) as llm:
        (plain,) = llm.generate("the sea", sampling)
    with LLM(checkpoint, isa=ISA, threads=1, speculation=True, draft=str(shallow)) as llm:
        (guessed,) = llm.generate("the sea", sampling)
        assert llm.stats().draft_model.tokens > 0
    assert guessed.text == plain.text
