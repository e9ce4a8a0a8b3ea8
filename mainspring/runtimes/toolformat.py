"""How a model writes tool calls, learned from its chat template.

A template that knows tools must be able to write the calls of earlier turns. So it is asked for
conversations whose assistant calls tools of names and arguments that occur nowhere else; where
these come out, and what stands before, between and after them, is the format. No family of models
has a parser of its own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

from msgspec import Struct

__all__ = [
    "CALL_ID",
    "JsonCall",
    "ParameterCall",
    "Render",
    "TaggedCall",
    "ToolFormat",
    "common_start",
    "learn",
]

CALL_ID = 9
"""Letters and digits in the id of a call: some templates refuse any other length."""
NAMES = ("sentinel_one", "sentinel_two")
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"key_one": "value_one", "key_two": "value_two"},
    {"key_three": "value_three", "key_four": "value_four"},
)
QUESTION = {"role": "user", "content": "Qquestion"}
SAID = "Ωsaid"
"""text of the assistant; no format begins with its first letter"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in arguments},
            },
        },
    }
    for name, arguments in zip(NAMES, ARGUMENTS, strict=True)
]

Render = Callable[[list[dict[str, Any]], dict[str, Any]], Awaitable[str | None]]
"""messages and variables -> the template's text, or None where it refuses them"""


class JsonCall(Struct, frozen=True):
    """A call is a JSON object that holds, at its top level, name and arguments."""

    name: str
    """the key of the name"""
    arguments: str
    """the key of the arguments: an object, or a string that holds one"""


class TaggedCall(Struct, frozen=True):
    """A call is the name, some text, and the arguments as a JSON object."""

    middle: str


class ParameterCall(Struct, frozen=True):
    """A call is the name and, for each argument, key and value between texts of their own.

    Strings stand there as they are, anything else as JSON.
    """

    key: str
    """text before a key; before the first one it follows the name"""
    value: str
    """text between key and value"""
    end: str
    """text after a value"""
    middle: str
    """text between the name and the first key's own"""


class ToolFormat(Struct, frozen=True):
    """The texts around calls. Where they hold white space, a model may write more or less of it."""

    call: JsonCall | TaggedCall | ParameterCall
    first: str
    """text before the first call, from the end of what the assistant says"""
    between: str | None
    """text between two calls; None: there is never more than one"""
    last: str
    """text after the last call"""
    objects: bool
    """the template takes the arguments of calls as objects; else as a JSON string"""
    empty: str | None
    """the content that the template takes beside calls when nothing is said"""

    @property
    def bare(self) -> bool:
        """Nothing but JSON begins a call, so that only a whole answer can be one."""
        return not any(c.isalnum() for c in self.first)

    def texts(self) -> tuple[str, ...]:
        """All that is written around names and arguments."""
        call = self.call
        around: tuple[str, ...] = ()
        if isinstance(call, TaggedCall):
            around = (call.middle,)
        elif isinstance(call, ParameterCall):
            around = (call.middle, call.key, call.value, call.end)
        return (self.first, self.between or "", self.last, *around)


class Unit(NamedTuple):
    """Where a call stands in a text, from its own first to its own last character."""

    call: JsonCall | TaggedCall | ParameterCall
    start: int
    end: int


Find = Callable[[str, int], Unit | None]
"""text and number of the call -> where it is"""


async def learn(render: Render) -> ToolFormat | None:
    """The format of a template's tool calls; None where it knows no tools, or no such format."""
    with_tools = {"tools": TOOLS}
    plain = await render([QUESTION, _turn(SAID)], with_tools)
    if plain is None or SAID not in plain or not all(name in plain for name in NAMES):
        return None
    variants = []
    for objects, empty in product((True, False), ("", None)):
        texts = [
            await render([QUESTION, _turn(empty, *_calls(count, objects))], with_tools)
            for count in (1, 2)
        ]
        texts.append(await render([QUESTION, _turn(SAID, *_calls(1, objects))], with_tools))
        variants.append((objects, empty, texts))
    # Where JSON can be found it is meant; only then are the parts looked for one by one.
    for find in (_find_json, _find_tagged, _find_parameters):
        for objects, empty, (one, two, said) in variants:
            if one and (found := _format(find, plain, one, two, said)):
                call, first, between, last = found
                return ToolFormat(call, first, between, last, objects, empty)
    return None


def _turn(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    return {**turn, "tool_calls": list(calls)} if calls else turn


def _calls(count: int, objects: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": f"sentinel{number}"[:CALL_ID],
            "type": "function",
            "function": {
                "name": NAMES[number],
                "arguments": ARGUMENTS[number] if objects else json.dumps(ARGUMENTS[number]),
            },
        }
        for number in range(count)
    ]


def _format(
    find: Find, plain: str, one: str, two: str | None, said: str | None
) -> tuple[JsonCall | TaggedCall | ParameterCall, str, str | None, str] | None:
    """Call, first, between and last, from the renderings of a plain answer, one call, two, and a
    call after something said."""
    ending = plain.rpartition(SAID)[2]
    body = _body(plain, one, ending)
    unit = find(body, 0)
    if unit is None:
        return None
    first, last = body[: unit.start], body[unit.end :]
    if said is not None and SAID in said:
        after = said.rpartition(SAID)[2].removesuffix(ending)
        if found := find(after, 0):
            first = _common_end(first, after[: found.start])
    first = first.lstrip()
    if not isinstance(unit.call, JsonCall) and not any(c.isalnum() for c in first):
        return None  # any word could be a name then
    between = None
    if two is not None:
        both = _body(plain, two, ending)
        here, there = find(both, 0), find(both, 1)
        if here is not None and there is not None and here.end <= there.start:
            between = both[here.end : there.start]
    return unit.call, first, between, last.rstrip()


def _body(plain: str, text: str, ending: str) -> str:
    """What the assistant's turn holds: without what every such turn begins and ends with."""
    return text[len(common_start(plain, text)) :].removesuffix(ending)


def common_start(a: str, b: str) -> str:
    """What both texts begin with."""
    pairs = zip(a, b, strict=False)
    return a[: next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))]


def _common_end(a: str, b: str) -> str:
    return common_start(a[::-1], b[::-1])[::-1]


# Where a call is ----------------------------------------------------------------------------------


def _find_json(text: str, number: int) -> Unit | None:
    at = text.find(NAMES[number])
    for start in range(at, -1, -1):  # the innermost object that has both
        if (read := _object_at(text, start)) is None:
            continue
        value, end = read
        name = next((key for key, item in value.items() if item == NAMES[number]), None)
        keys = (key for key, item in value.items() if _means(item, ARGUMENTS[number]))
        arguments = next(keys, None)
        if name is not None and arguments is not None:
            return Unit(JsonCall(name, arguments), start, end)
    return None


def _find_tagged(text: str, number: int) -> Unit | None:
    name = NAMES[number]
    start = text.find(name)
    opening = text.find("{", start)
    if start < 0 or opening < 0:
        return None
    read = _object_at(text, opening)
    if read is None or read[0] != ARGUMENTS[number]:
        return None
    return Unit(TaggedCall(text[start + len(name) : opening]), start, read[1])


def _find_parameters(text: str, number: int) -> Unit | None:
    name = NAMES[number]
    parts = [name, *(part for pair in ARGUMENTS[number].items() for part in pair)]
    gaps = _gaps(text, parts)
    if gaps is None:
        return None
    start, end, (opening, value, again, value_again) = gaps
    key = _common_end(opening, again)
    stop = again[: len(again) - len(key)]
    if value != value_again or not (key.strip() and value.strip() and stop.strip()):
        return None
    if not text.startswith(stop, end):
        return None
    middle = opening[: len(opening) - len(key)]
    # What follows a value whether or not it is the last one belongs to its end.
    common = common_start(key, text[end + len(stop) :])
    common = common[: common.rfind(">") + 1]
    call = ParameterCall(key[len(common) :], value, stop + common, middle + common)
    return Unit(call, start, end + len(call.end))


def _gaps(text: str, parts: Sequence[str]) -> tuple[int, int, list[str]] | None:
    """Start of the first part, end of the last, and the texts between them in this order."""
    start = end = text.find(parts[0])
    gaps: list[str] = []
    for part in parts:
        at = text.find(part, end)
        if at < 0:
            return None
        gaps.append(text[end:at])
        end = at + len(part)
    return start, end, gaps[1:]


def _object_at(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    if text[start : start + 1] != "{":
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return value, end


def _means(value: Any, arguments: dict[str, Any]) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return bool(value == arguments)
