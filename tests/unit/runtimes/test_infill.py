"""Fill in the middle, with the tokens of the families that know it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.errors import BadRequest
from mainspring.runtimes.infill import ORDERS, infill
from mainspring.runtimes.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer


def tokenizer(folder: Path, marks: list[str]) -> Tokenizer:
    library = tiny_tokenizer()
    library.add_special_tokens(marks)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: str(order[0]))
def test_each_order_of_marks_and_texts(tmp_path: Path, order: tuple[str | int, ...]) -> None:
    marks = [item for item in order if isinstance(item, str)]
    made = tokenizer(tmp_path, marks)
    texts = ("def f(<|end|>", f"return {marks[0]}")
    expected = "".join(item if isinstance(item, str) else texts[item] for item in order)
    ids = infill("m", made, *texts)
    assert made.decode(ids, special=True) == expected
    # What is special in the texts is text: the marks are there once each, and nothing else is.
    special = [id for id in ids if id >= 256]
    assert [made.decode([id], special=True) for id in special] == marks


def test_a_tokenizer_without_the_tokens_is_named(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, ["<fim_prefix>", "<fim_suffix>"])
    with pytest.raises(BadRequest, match="the tokenizer of coder has no tokens") as caught:
        infill("coder", made, "a", "b")
    assert caught.value.param == "suffix"
