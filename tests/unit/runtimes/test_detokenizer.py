"""Streamed text: whole characters, nothing lost, equal to decoding all at once."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.runtimes.tokenizer import Tokenizer
from tests.unit.runtimes.styles import TOKENIZERS, write

KINDS = sorted(TOKENIZERS)
WORDS = st.text(st.sampled_from("ab éß日本😀 \n\t<|>▁'.,"), min_size=1, max_size=40)


@cache
def pair(kind: str):
    """(the library's tokenizer, ours)"""
    library = TOKENIZERS[kind]()
    with TemporaryDirectory() as directory:
        return library, Tokenizer(write(Path(directory), library))


def streamed(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    state = tokenizer.detokenizer(before or ())
    return [*(state.feed(id) for id in ids), state.end()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=WORDS)
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_librarys_decoding(kind: str, text: str) -> None:
    library, ours = pair(kind)
    ids = library.encode(text, add_special_tokens=False).ids
    pieces = streamed(ours, ids)
    assert "".join(pieces) == library.decode(ids)
    if "\ufffd" not in library.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "word_piece"])
@given(text=WORDS, more=WORDS)
@settings(max_examples=60, deadline=None)
def test_a_completion_goes_on_from_its_prompt(kind: str, text: str, more: str) -> None:
    """Prompt text and streamed text join to the text of all tokens."""
    library, ours = pair(kind)
    before = library.encode(text, add_special_tokens=False).ids
    ids = library.encode(more, add_special_tokens=False).ids
    whole = library.decode(before + ids)
    prompt = library.decode(before)
    if whole.startswith(prompt) and "\ufffd" not in prompt:
        assert prompt + "".join(streamed(ours, ids, before)) == whole


@given(ids=st.lists(st.integers(0, 419), max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_decode_as_the_library_does(ids: list[int]) -> None:
    """Also output that never becomes valid UTF-8."""
    library, ours = pair("chatml")
    ids = [id for id in ids if id < library.get_vocab_size()]
    assert "".join(streamed(ours, ids)) == library.decode(ids)


def test_byte_tokens_wait_for_their_character() -> None:
    library, ours = pair("gemma")
    ids = [library.token_to_id(f"<0x{byte:02X}>") for byte in "日😀".encode()]
    assert streamed(ours, ids) == ["", "", "日", "", "", "", "😀", ""]


def test_bytes_without_a_character_are_told_at_the_end() -> None:
    library, ours = pair("gemma")
    ids = [library.token_to_id(f"<0x{byte:02X}>") for byte in b"\xe6\x97"]
    assert streamed(ours, ids) == ["", "", "\ufffd"]


def test_endless_invalid_bytes_are_told_in_time() -> None:
    """Nothing waits longer than a character can be."""
    library, ours = pair("chatml")
    id = library.encode("é").ids[0]
    bad = next(i for i in range(256) if ours.token_bytes(i) == b"\xff")
    pieces = streamed(ours, [bad] * 500 + [id])
    assert pieces[:500] == ["\ufffd"] * 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_microseconds(kind: str) -> None:
    library, ours = pair(kind)
    ids = library.encode("The keeper's name was Zoë 日本語 " * 100, add_special_tokens=False).ids
    streamed(ours, ids)
    began = time.perf_counter()
    streamed(ours, ids)
    cost = (time.perf_counter() - began) / len(ids)
    print(f"{kind}: {cost * 1e6:.2f} us a token")
    assert cost < (100e-6 if kind == "word_piece" else 20e-6)


def test_special_tokens_have_a_name_but_no_text() -> None:
    library, ours = pair("chatml")
    id = library.token_to_id("<|im_end|>")
    assert streamed(ours, [id]) == ["", ""]
    assert ours.token_bytes(id) == b"<|im_end|>"
