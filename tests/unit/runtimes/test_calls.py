"""Tool calls are read as the template writes them, wherever the text is cut."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any

import pytest

from mainspring.runtimes.calls import Calls
from mainspring.runtimes.toolformat import SAID, ToolFormat, learn
from mainspring.types import CallPiece
from tests.unit.runtimes.toolstyles import STYLES, renderer, source

NASTY: list[dict[str, Any]] = [
    {"city": "Paris", "days": 3, "deep": {"list": [1, 2.5, None, True, {"x": []}]}},
    {"text": 'a "quoted" \\ brace } and { and ] \n\t é 😀 \u2028 </tag'},
    {"text": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> [TOOL_CALLS] [{'},
    {"text": "```<|call▁end|></function></tool_call>, {"},
    {"text": "", "other": "  spaces  ", "number": "12", "flag": "true", "n": -0.5},
    {},
]
PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"}, "other": {"type": "string"}, "number": {"type": "string"},
    "flag": {"type": "string"}, "city": {"type": "string"}, "days": {"type": "integer"},
    "n": {"type": "number"},
}  # fmt: skip
NAMES = ("get_weather", "other-tool_2")
TOOLS = {name: {"type": "object", "properties": PROPERTIES} for name in NAMES}


def format_of(style: str) -> ToolFormat:
    found = asyncio.run(learn(renderer(source(style))))
    assert found is not None
    return found


FORMATS = {style: format_of(style) for style in STYLES}


def written(style: str, calls: list[tuple[str, dict[str, Any]]], content: str = "") -> str:
    """What the template writes for these calls, as the model would: up to the turn's end."""
    format = FORMATS[style]
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": content or format.empty,
        "tool_calls": [
            {
                "id": f"call{number:05}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if format.objects else json.dumps(arguments),
                },
            }
            for number, (name, arguments) in enumerate(calls)
        ],
    }
    plain = {"role": "assistant", "content": SAID}
    render = renderer(source(style))
    text = asyncio.run(render([turn], {}))
    other = asyncio.run(render([plain], {}))
    assert text is not None and other is not None
    head, _, tail = other.partition(SAID)
    at = next(i for i in range(len(head) + 1) if text[: i + 1] != head[: i + 1] or i == len(head))
    return text[at:].removesuffix(tail)


def read(style: str, pieces: Any, **options: Any) -> tuple[str, list[tuple[str, str]]]:
    """Content, and each call's name and arguments."""
    numbers = itertools.count()
    calls = Calls(FORMATS[style], TOOLS, ids=lambda: f"id{next(numbers)}", **options)
    content = ""
    told: list[CallPiece] = []
    for piece in pieces:
        text, more = calls.feed(piece)
        content += text
        told += more
    text, more = calls.end()
    told += more
    names: list[tuple[str, str]] = []
    for piece in told:
        if piece.name:
            assert piece.id == f"id{piece.index}" and piece.index == len(names)
            names.append((piece.name, ""))
        else:
            assert piece.arguments and piece.index == len(names) - 1
            names[-1] = (names[-1][0], names[-1][1] + piece.arguments)
    return content + text, names


def parsed(calls: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("arguments", NASTY)
def test_a_call_comes_back_as_it_was_written(style: str, arguments: dict[str, Any]) -> None:
    if "xml" in style and "</function" in str(arguments):
        pytest.skip("this format has no way to write that")
    text = written(style, [(NAMES[0], arguments)])
    whole = read(style, [text])
    assert parsed(whole[1]) == [(NAMES[0], arguments)] and not whole[0]
    assert read(style, text) == whole
    for cut in range(0, len(text), 1 if len(text) < 70 else 9):
        assert read(style, [text[:cut], text[cut:]]) == whole


@pytest.mark.parametrize("style", [s for s, f in FORMATS.items() if f.between is not None])
def test_several_calls_and_content(style: str) -> None:
    calls = [(NAMES[0], NASTY[0]), (NAMES[1], {}), (NAMES[0], NASTY[1])]
    text = written(style, calls)
    assert parsed(read(style, [text])[1]) == calls
    if not FORMATS[style].bare:
        text = "I'll look < [ { first.\n" + text
        content, found = read(style, text)
        assert content == "I'll look < [ { first." and parsed(found) == calls
    for seed in range(5):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(text)), 12))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        assert parsed(read(style, pieces)[1]) == calls
    assert parsed(read(style, text, parallel=False)[1]) == calls[:1]
