"""Whatever the grammar of a tool choice allows is read as calls of the right tools."""

from __future__ import annotations

import json
import random
from typing import Any

import llguidance
import numpy as np
import pytest
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from mainspring.runtimes.calls import Calls
from mainspring.runtimes.reader import Reader
from mainspring.runtimes.reasoning import Marks
from mainspring.runtimes.toolgrammar import call_grammar
from tests.unit.runtimes.test_calls import FORMATS

MARKS = Marks("<think>", "</think>")
TOOLS: dict[str, dict[str, Any]] = {
    "pick": {
        "type": "object",
        "properties": {
            "unit": {"enum": ["c", "f"]},
            "days": {"$ref": "#/$defs/Days"},
            "flag": {"type": "boolean"},
        },
        "$defs": {"Days": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["unit", "days"],
        "additionalProperties": False,
    },
    "ping": {"type": "object", "properties": {}, "additionalProperties": False},
}


def drawn(grammar: str, said: str, rng: random.Random, most: int = 400) -> str:
    """A random text that the grammar allows and that begins with `said`; cut when it is long."""
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = list(tokenizer.tokenize_str(said))
    assert matcher.consume_tokens(ids), matcher.get_error()
    mask = allocate_token_bitmask(1, tokenizer.vocab_size)
    while not matcher.is_stopped() and len(ids) < most:
        fill_next_token_bitmask(matcher, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = [int(id) for id in np.flatnonzero(bits)]
        token = rng.choice([id for id in allowed if id < 256] or allowed)
        assert matcher.consume_token(token)
        ids += [token] if token < 256 else []
    return bytes(ids).decode()


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("said", ["", "hm</think>", "<think>hm</think>\n"])
def test_what_is_allowed_is_called(style: str, said: str) -> None:
    format = FORMATS[style]
    for seed in range(3):
        opened = said.startswith("hm")
        grammar = call_grammar(
            format, TOOLS, several=bool(seed), marks=MARKS if said else None, opened=opened
        )
        text = drawn(grammar, said, random.Random(seed))
        reader = Reader(MARKS, Calls(format, TOOLS), opened=opened)
        parts = [*map(reader.feed, text), reader.end()]
        calls: list[tuple[str, str]] = []
        for piece in (call for part in parts for call in part.calls):
            if piece.name:
                calls.append((piece.name, ""))
            else:
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
        assert calls and (seed or len(calls) == 1)
        assert "".join(part.reasoning for part in parts) == ("hm" if said else "")
        for name, arguments in calls[: -1 if len(text) >= 400 else None]:
            value = json.loads(arguments)
            assert set(value) <= {"unit", "days", "flag"} if name == "pick" else value == {}
            assert name != "pick" or (value["unit"] in ("c", "f") and value["days"] in range(10))
