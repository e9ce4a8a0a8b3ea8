"""The tokenizer and the chat template that a GGUF file holds, in the forms of a checkpoint's files.

llama.cpp names a byte-level tokenizer's way of cutting text into words by a word of its own; the
patterns are those of the tokenizer.json that the name stands for. SentencePiece's tokens come with
scores, from which the merges follow: whatever makes a better piece goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mainspring.engine.gguf.header import Metadata, read_metadata

__all__ = ["gguf_template", "gguf_tokenizer"]

Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""kinds of tokens"""
KEY = "tokenizer.ggml."
SPACE = "\u2581"
CLITICS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OPEN = r"[^\r\n\p{L}\p{N}]?"
CAPITALS = rf"{OPEN}{UPPER}*{LOWER}+%s|{OPEN}{UPPER}+{LOWER}*%s|\p{{N}}%s" + REST.replace(
    r"\n]*", r"\n/]*", 1
)
LLAMA3 = rf"{CLITICS}|{OPEN}\p{{L}}+|\p{{N}}{{1,3}}" + REST
QWEN2 = rf"{CLITICS}|{OPEN}\p{{L}}+|\p{{N}}" + REST
GPT4O = CAPITALS % (f"{CLITICS}?", f"{CLITICS}?", "{1,3}")
TEKKEN = CAPITALS % ("", "", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (DIGIT, GPT2)),
}
"""the patterns that cut a text into words, one after the other, by the name of the way"""
WHOLE = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
"""ways in which a word that is a token needs no merges; and which begin every prompt unless told"""
COMPOSED = {"qwen2", "deepseek-r1-qwen"}
"""ways that compose characters first (NFC)"""


def gguf_tokenizer(path: Path) -> bytes:
    """The tokenizer of the file as a tokenizer.json. Raises ModelError naming the key."""
    facts = read_metadata(path)
    kind = facts.choice(f"{KEY}model", None, ("gpt2", "llama"))
    tokens = facts.strings(f"{KEY}tokens")
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocabulary) != len(tokens):
        raise facts.refuse(f"{KEY}tokens", "holds a token twice")
    kinds = facts.array(f"{KEY}token_type").tolist() or [NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise facts.refuse(f"{KEY}token_type", f"has {len(kinds)} for {len(tokens)} tokens")
    build = _byte_level if kind == "gpt2" else _sentencepiece
    parts, begins = build(facts, vocabulary)
    file = {
        "version": "1.0",
        "added_tokens": list(_added(tokens, kinds)),
        **parts,
        "post_processor": _around(facts, tokens, begins),
    }
    return msgspec.json.encode(file)


def gguf_template(path: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template, None without one, and its variables: bos_token and the like."""
    facts = read_metadata(path)
    tokens = facts.strings(f"{KEY}tokens") if f"{KEY}tokens" in facts else []
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    variables = {
        f"{name}_token": tokens[id]
        for key, name in names.items()
        if (id := _id(facts, key, len(tokens))) is not None
    }
    key = "tokenizer.chat_template"
    return (facts.text(key) if key in facts else None), variables


def _byte_level(facts: Metadata, vocabulary: dict[str, int]) -> tuple[Json, bool]:
    """The parts of a GPT-2-like tokenizer, and whether it begins every prompt."""
    if f"{KEY}pre" not in facts:
        raise facts.refuse(f"{KEY}pre", "is missing: take a newer file of the model")
    way = facts.choice(f"{KEY}pre", None, WORDS)
    merges = facts.strings(f"{KEY}merges")
    cuts: list[Json] = [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
        for words in WORDS[way]
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "normalizer": {"type": "NFC"} if way in COMPOSED else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*cuts, {**bytes_, "use_regex": False}],
        },
        "decoder": {**bytes_, "use_regex": True},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": way in WHOLE,
        },
    }, way in WHOLE  # fmt: skip


def _sentencepiece(facts: Metadata, vocabulary: dict[str, int]) -> tuple[Json, bool]:
    """The parts of a Llama-like tokenizer, and that it begins every prompt."""
    scores = facts.array(f"{KEY}scores").tolist()
    if len(scores) != len(vocabulary):
        raise facts.refuse(f"{KEY}scores", f"has {len(scores)} for {len(vocabulary)} tokens")
    normalizer: list[Json] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoder: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if facts.flag(f"{KEY}add_space_prefix", True):
        normalizer.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = _id(facts, "unknown", len(vocabulary))
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizer},
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": _merges(vocabulary, scores),
            "unk_token": None if unknown is None else list(vocabulary)[unknown],
            "fuse_unk": True, "byte_fallback": True,
        },
    }, True  # fmt: skip


def _merges(vocabulary: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, those of the best token first."""
    found = []
    for token, id in vocabulary.items():
        if len(token) == 2:
            cuts = [1] if token[0] in vocabulary and token[1] in vocabulary else []
        else:
            cuts = [
                i
                for i in range(1, len(token))
                if token[:i] in vocabulary and token[i:] in vocabulary
            ]
        if cuts:
            found.append((-scores[id], id, token, cuts))
    found.sort()
    return [(token[:i], token[i:]) for _, _, token, cuts in found for i in cuts]


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> Iterator[Json]:
    """Tokens that are found in a text before it is cut; those of structure are special."""
    for id, kind in enumerate(kinds):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            yield {
                "id": id, "content": tokens[id], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": kind != USER_DEFINED,
            }  # fmt: skip


def _around(facts: Metadata, tokens: Sequence[str], begins: bool) -> Json | None:
    """What is put around every prompt: the tokens that begin and end one, if any do."""
    wanted = {
        "bos": facts.flag(f"{KEY}add_bos_token", begins),
        "eos": facts.flag(f"{KEY}add_eos_token", False),
    }
    ids = {name: _id(facts, name, len(tokens)) for name, used in wanted.items() if used}
    used = {name: id for name, id in ids.items() if id is not None}
    if not used:
        return None
    single: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    for name, id in used.items():
        part = {"SpecialToken": {"id": tokens[id], "type_id": 0}}
        single.insert(0 if name == "bos" else len(single), part)
    named = {
        tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in used.values()
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": named,
    }


def _id(facts: Metadata, name: str, count: int) -> int | None:
    """The id of a token by what it is for; None: the file names none."""
    key = f"{KEY}{name}_token_id"
    if key not in facts:
        return None
    id = facts.integer(key, low=0)
    if id >= count:
        raise facts.refuse(key, f"is {id}; there are {count} tokens")
    return id
