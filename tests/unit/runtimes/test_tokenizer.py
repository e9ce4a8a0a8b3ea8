"""Reading a checkpoint's tokenizer, and not trusting it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from mainspring.errors import ContextLength, ModelError
from mainspring.runtimes.prompt import Prompts
from mainspring.runtimes.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer
from tests.unit.runtimes.styles import TOKENIZERS, byte_level, write


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    library = byte_level(("<s>",))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    ours = Tokenizer(write(tmp_path, library))
    assert len(ours.encode("once upon a time there was a lighthouse")) > 8
    assert len(ours.encode("x")) == 1


def test_an_end_token_is_not_added_twice(tmp_path: Path) -> None:
    library = byte_level(("<s>", "</s>"))
    pairs = [(name, library.token_to_id(name)) for name in ("<s>", "</s>")]
    library.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=pairs[:1]
    )
    ours = Tokenizer(write(tmp_path, library))
    # What the tokenizer's own rule doubles stays doubled; only ours is taken away.
    assert ours.encode("a")[:2] == [pairs[0][1]] * 2


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_the_longest_token_bounds_every_text(kind: str, tmp_path: Path) -> None:
    library = TOKENIZERS[kind]()
    ours = Tokenizer(write(tmp_path, library))
    text = "Once upon a time there was a lighthouse by the sea. 日本語 😀 <table>"
    if kind != "word_piece":  # unknown characters there become one token
        assert len(text.encode()) <= len(ours.encode(text)) * ours.longest


@pytest.mark.parametrize("name", ["a", "ab ", "a b", "é😀"])
def test_a_text_that_cannot_fit_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    prompts = Prompts("m", Tokenizer(write(tmp_path, tiny_tokenizer())), 512, 260)
    began = time.perf_counter()
    with pytest.raises(ContextLength, match="bytes"):
        prompts.complete(name * 3_000_000, echo=False)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("kind", ["chatml", "gemma"])
def test_a_long_text_is_counted_a_slice_at_a_time(kind: str, tmp_path: Path) -> None:
    """Within the bytes that could fit, and yet too many tokens: refused at a fraction's cost."""
    prompts = Prompts("m", Tokenizer(write(tmp_path, TOKENIZERS[kind]())), 200_000, 1 << 20)
    began = time.process_time()
    with pytest.raises(ContextLength, match="more than 200000 tokens"):
        prompts.complete("q" * 1_500_000, echo=False)
    with pytest.raises(ContextLength):
        prompts.chat("q" * 1_500_000, "\ue123")
    refused = time.process_time() - began
    assert len(prompts.complete("q" * 150_000, echo=False).ids) == 150_000
    began = time.process_time()
    prompts.tokenizer.encode("q" * 1_500_000)
    assert refused < time.process_time() - began


LONG = ("a", "ab", "e\u0301\u0328", "\U0001f469\u200d\U0001f467", "\u202eab", "\U000e0041")


@pytest.mark.parametrize("style", LONG)
@pytest.mark.parametrize("kind", ["chatml", "gemma"])
def test_time_grows_with_the_text_and_no_faster(kind: str, style: str, tmp_path: Path) -> None:
    """No whitespace, one character, Zalgo, emoji, bidi and tag characters: linear."""
    ours = Tokenizer(write(tmp_path, TOKENIZERS[kind]()))

    def seconds(count: int) -> float:
        text = style * (count // len(style))
        best = 10.0
        for _ in range(2):
            began = time.process_time()
            ours.encode(text)
            best = min(best, time.process_time() - began)
        return best

    small, large = seconds(20_000), seconds(160_000)
    assert large < 0.02 + small * 8 * 3


# Files --------------------------------------------------------------------------------------------


def refused(directory: Path, data: bytes, vocabulary: int = 260) -> str:
    (directory / "tokenizer.json").write_bytes(data)
    with pytest.raises(ModelError) as raised:
        Tokenizer(directory).check(vocabulary)
    assert str(directory) not in raised.value.message
    assert raised.value.message.startswith("tokenizer.json")
    return raised.value.message


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(tiny_tokenizer().to_str()), **fields}).encode()


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}
    for data in (
        b"",
        b"{}",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        changed(model=model),
        changed(added_tokens=[{"id": -1, "content": "x"}]),
        changed(added_tokens="x"),
        changed(decoder={"type": "Nothing"}),
        changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
    ):
        refused(tmp_path, data)


def test_ids_beyond_the_models(tmp_path: Path) -> None:
    assert "vocab_size 259" in refused(tmp_path, tiny_tokenizer().to_str().encode(), 259)
    vocab = {**json.loads(tiny_tokenizer().to_str())["model"]["vocab"], "xx": 700}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    assert "700" in refused(tmp_path, changed(model=model))


def test_a_file_too_large(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match="64 MiB"):
        Tokenizer(tmp_path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match="save_pretrained"):
        Tokenizer(tmp_path)
