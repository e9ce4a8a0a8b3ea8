"""A tokenizer that went through a GGUF file reads every text as it did before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mainspring.errors import ModelError
from mainspring.runtimes import tokenizer as ours
from mainspring.runtimes.gguf import WORDS
from mainspring.runtimes.template import read_template
from tests.gguf import U32, tokenizer_pairs, write_gguf

TEXTS = (
    "", " ", "   ", "\n\n", "a", " a", "Hello, world!", "HELLO'S it's IT'LL we've", "1234567 12 3",
    "x = [1, 2, 3]\n\tfor i in x:\n\t\tprint(i)  # done\n\n\n",
    "naïve café e\u0301tude", "日本語テキスト", "mixed日本 text", "Привет, мир", "🙂👩‍👩‍👧‍👦 emoji",
    "tabs\tand\r\nlines\r\n", "trailing   ", "   leading",
    "a" * 300, "<|end|>", "x<|user|>hi<|end|>  y", "<|end|",
    "http://a.b/c?d=e&f=g", "\u00a0nbsp\u2003wide",
    "\x00\x01control", "a/b//c\n//", "don’t “quote”", "▁mark ▁▁", "\ufeffbom", "ﬁ ligature ½",
)  # fmt: skip
CORPUS = [
    "the quick brown fox jumps over the lazy dog and it's 12345 times 'they'll' say naïve",
    "def f(x):\n    return x + 1\n\nfor i in range(100):\n    print(f(i))\n",
    "Привет мир, как дела? 日本語 テキスト text HELLO World CamelCase",
] * 4
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(way: str) -> Tokenizer:
    """A tokenizer of that way, trained on a few lines, as its makers' tokenizer.json has it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=way == "llama-bpe"))
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if way == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif way == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    else:
        pattern = LLAMA3 if way == "llama-bpe" else LLAMA3.replace("{1,3}", "")
        cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, inner])
    if way == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def pairs_of(tokenizer: Tokenizer, way: str) -> dict[str, Any]:
    pairs = tokenizer_pairs(tokenizer, way=way)
    begin = pairs["tokenizer.ggml.tokens"].index("<|begin|>")
    return {**pairs, "tokenizer.ggml.bos_token_id": U32(begin)}


@pytest.mark.parametrize("way", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level(way: str, tmp_path: Path) -> None:
    theirs = byte_level(way)
    directory = tmp_path / "m"
    directory.mkdir()
    theirs.save(str(directory / "tokenizer.json"))
    original = ours.Tokenizer(directory)
    path = write_gguf(tmp_path / "m.gguf", pairs_of(theirs, way), {})
    read = ours.Tokenizer(path)
    for text in (*TEXTS, *fuzzed()):
        ids = read.encode(text)
        assert ids == theirs.encode(text).ids, text
        assert read.decode(ids) == original.decode(ids)
    assert read.special.ids() == original.special.ids()


def fuzzed() -> Iterator[str]:
    rng = np.random.default_rng(4)
    letters = list("ab Z1'\n\r\t.,/<|>é日🙂\u0301 \u00a0_-" + "  ")
    for _ in range(300):
        yield "".join(rng.choice(letters, rng.integers(1, 30)))


def sentencepiece(prefix: bool) -> dict[str, Any]:
    """Metadata of a tokenizer whose pieces come from merges learned in order."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    merges = json.loads(trained.to_str())["model"]["merges"]
    pieces = list(dict.fromkeys("".join(pair) for pair in merges))
    letters = sorted({letter for piece in pieces for letter in piece})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *letters, "<tool>"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(letters))] + [-1000.0]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 260) + [4],
        "tokenizer.ggml.bos_token_id": U32(1),
        "tokenizer.ggml.eos_token_id": U32(2),
        "tokenizer.ggml.unknown_token_id": U32(0),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def by_score(pairs: dict[str, Any], text: str) -> list[int]:
    """SentencePiece's BPE on a text without added tokens, step by step: the best pair first."""
    tokens = {token: i for i, token in enumerate(pairs["tokenizer.ggml.tokens"])}
    scores = pairs["tokenizer.ggml.scores"]
    if text and pairs["tokenizer.ggml.add_space_prefix"]:
        text = " " + text
    parts = list(text.replace(" ", "▁"))
    while True:
        joined = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        known = [(-scores[tokens[word]], i) for i, word in enumerate(joined) if word in tokens]
        if not known:
            break
        _, i = min(known)
        parts[i : i + 2] = [joined[i]]
    ids = []
    for part in parts:
        bytes_ = [tokens[f"<0x{byte:02X}>"] for byte in part.encode()]
        ids += [tokens[part]] if part in tokens else bytes_
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    pairs = sentencepiece(prefix)
    read = ours.Tokenizer(write_gguf(tmp_path / "m.gguf", pairs, {}))
    for text in (*TEXTS, *fuzzed()):
        ids = read.encode(text)
        assert ids == [1, *by_score(pairs, text)], text
        assert read.decode(ids) == text.replace("▁", " "), text  # the format cannot tell them
    tool = pairs["tokenizer.ggml.tokens"].index("<tool>")
    assert read.encode("a<tool>b").count(tool) == 1
    assert tool not in read.special.ids()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.pre": "new-way"}, "tokenizer.ggml.pre is 'new-way'; known: codeshell"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing: take a newer file"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; known: gpt2, llama"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokenizer.ggml.tokens holds a token twice"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of strings"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type has 1 for"),
        ({"tokenizer.ggml.token_type": ["a"]}, "token_type must be a list of numbers"),
        ({"tokenizer.ggml.bos_token_id": U32(9999), "tokenizer.ggml.add_bos_token": True},
         "bos_token_id is 9999; there are"),
        ({"tokenizer.ggml.merges": "x"}, "tokenizer.ggml.merges must be a list of strings"),
        ({"tokenizer.ggml.merges": ["x"]}, "tokenizer.json is not a tokenizer"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    pairs = {**pairs_of(byte_level("gpt-2"), "gpt-2"), **change}
    path = write_gguf(tmp_path / "m.gguf", {k: v for k, v in pairs.items() if v is not None}, {})
    with pytest.raises(ModelError) as refused:
        ours.Tokenizer(path)
    assert words in refused.value.message


def test_template(tmp_path: Path) -> None:
    pairs = {
        **pairs_of(byte_level("gpt-2"), "gpt-2"),
        "tokenizer.chat_template": "{{ bos_token }}hi",
    }
    found = read_template(write_gguf(tmp_path / "m.gguf", pairs, {}))
    assert found.source == "{{ bos_token }}hi"
    assert found.variables == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def test_every_way_has_patterns_the_library_takes() -> None:
    for patterns in WORDS.values():
        for pattern in patterns:
            cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            assert "".join(word for word, _ in cut.pre_tokenize_str(TEXTS[9])) == TEXTS[9]
