"""One tool call, a character at a time, in each of the ways in which formats write calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mainspring.runtimes.jsontext import JsonString, JsonValue
from mainspring.runtimes.literal import SPACE, Literal, squashed
from mainspring.runtimes.stops import Stops
from mainspring.runtimes.toolformat import JsonCall, ParameterCall, TaggedCall

__all__ = ["CallReader", "NoCall", "Tools", "call_reader"]

NAME_LIMIT = 256
"""characters of the name of a tool or an argument"""
WORDS = {"True": "true", "False": "false", "None": "null"}
"""Templates in Python's own words write these."""

Tools = Mapping[str, Mapping[str, Any]]
"""name of each tool -> JSON schema of its arguments"""


class NoCall(Exception):
    """What looked like a call is none."""


class CallReader(Protocol):
    """Tells name and arguments of a call by the functions that it was made with."""

    def feed(self, character: str) -> str | None:
        """Take the next character. When the call is over, what was read and is not part of it.

        Raises NoCall; after the name was told it no longer does.
        """
        ...

    def end(self) -> None:
        """Nothing follows."""
        ...


def call_reader(
    call: JsonCall | TaggedCall | ParameterCall,
    closings: Sequence[str],
    tools: Tools,
    begin: Callable[[str], None],
    more: Callable[[str], None],
) -> CallReader:
    """A reader of the next call: `begin` is told its name, `more` its arguments in pieces.

    `closings` are what may follow a call.
    """
    if isinstance(call, JsonCall):
        return _Json(call, begin, more)
    if isinstance(call, TaggedCall):
        return _Tagged(call, begin, more)
    return _Parameters(call, closings, tools, begin, more)


class _Json:
    """After the opening brace: keys and values in any order, unknown ones are skipped."""

    def __init__(
        self, call: JsonCall, begin: Callable[[str], None], more: Callable[[str], None]
    ) -> None:
        self._call = call
        self._begin, self._more = begin, more
        self._state = self._key_or_end
        self._string = JsonString()
        self._value = JsonValue("{")
        self._key = self._text = ""
        self._named = False
        self._early: list[str] | None = None
        """arguments that came before the name"""
        self._argued = False

    def feed(self, character: str) -> str | None:
        return self._state(character)

    def end(self) -> None:
        pass

    def _key_or_end(self, character: str) -> str | None:
        if character == "}":
            return self._over()
        if character == '"':
            self._string, self._text = JsonString(), ""
            self._state = self._in_key
        elif character not in SPACE and character != ",":
            return self._broken()
        return None

    def _in_key(self, character: str) -> str | None:
        self._text += self._string.feed(character)
        if not self._string.open:
            self._key = self._text
            self._state = self._colon
        return None

    def _colon(self, character: str) -> str | None:
        if character == ":":
            self._state = self._first
        elif character not in SPACE:
            return self._broken()
        return None

    def _first(self, character: str) -> str | None:
        """The first character of a value."""
        if character in SPACE:
            return None
        if character in ",:}]":
            return self._broken()
        self._value, self._string, self._text = JsonValue(character), JsonString(), ""
        if self._key == self._call.name and not self._named:
            if character != '"':
                return self._broken()
            self._state = self._in_name
        elif self._key == self._call.arguments and not self._argued:
            self._argued = True
            self._state = self._in_string if character == '"' else self._in_arguments
            if self._value.scalar:
                self._text, self._state = character, self._in_scalar
            elif character != '"':
                self._tell(character)
        else:
            self._state = self._skipped
        return None

    def _in_name(self, character: str) -> str | None:
        self._text += self._string.feed(character)
        if len(self._text) > NAME_LIMIT:
            raise NoCall
        if not self._string.open:
            if not self._text:
                raise NoCall
            self._begin(self._text)
            self._named = True
            if self._early:
                self._more("".join(self._early))
            self._state = self._key_or_end
        return None

    def _in_arguments(self, character: str) -> str | None:
        self._tell(character)
        if not self._value.feed(character):
            self._state = self._key_or_end
        return None

    def _in_string(self, character: str) -> str | None:
        if text := self._string.feed(character):
            self._tell(text)
        if not self._string.open:
            self._state = self._key_or_end
        return None

    def _in_scalar(self, character: str) -> str | None:
        if self._value.feed(character):
            self._text += character
            return None
        self._tell("{}" if self._text == "null" else self._text)
        self._state = self._key_or_end
        return self._key_or_end(character)

    def _skipped(self, character: str) -> str | None:
        if self._value.feed(character):
            return None
        self._state = self._key_or_end
        return self._key_or_end(character) if self._value.scalar else None

    def _tell(self, text: str) -> None:
        if self._named:
            self._more(text)
        else:
            self._early = [*(self._early or ()), text]

    def _over(self) -> str | None:
        if not self._named:
            raise NoCall
        if not self._argued:
            self._more("{}")
        return ""

    def _broken(self) -> str | None:
        if not self._named:
            raise NoCall
        return ""


class _Name:
    """A name, and which of `texts` follows it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.text = ""
        self.after = Literal(texts)
        self._starts = {squashed(text)[0] for text in texts}
        self._over = False

    def feed(self, character: str) -> bool:
        """Take the next character; False when it is decided what follows the name."""
        if not self._over and character not in self._starts and character not in SPACE:
            self.text += character
            if len(self.text) > NAME_LIMIT:
                raise NoCall
            return True
        if not self.text and character in SPACE:
            return True
        self._over = True
        if self.after.feed(character):
            return True
        if not self.text or self.after.found is None:
            raise NoCall
        return False


class _Tagged:
    def __init__(
        self, call: TaggedCall, begin: Callable[[str], None], more: Callable[[str], None]
    ) -> None:
        self._begin, self._more = begin, more
        self._name: _Name | None = _Name([call.middle + "{"])
        self._value = JsonValue("{")

    def feed(self, character: str) -> str | None:
        if self._name is not None:
            if not self._name.feed(character):
                self._begin(self._name.text)
                self._more(character)
                self._name = None
            return None
        self._more(character)
        return None if self._value.feed(character) else ""

    def end(self) -> None:
        pass


class _Parameters:
    def __init__(
        self,
        call: ParameterCall,
        closings: Sequence[str],
        tools: Tools,
        begin: Callable[[str], None],
        more: Callable[[str], None],
    ) -> None:
        self._call = call
        self._tools = tools
        self._begin, self._more = begin, more
        self._after = [squashed(text) for text in (call.key, *closings)]
        """what may follow the name or a value"""
        middle = squashed(call.middle)
        self._name = _Name([middle + text for text in self._after])
        self._properties: Mapping[str, Any] = {}
        self._key = _Name([call.value])
        self._count = 0
        self._value = _Value({})
        self._lead = ""
        """white space that may still stand before a value"""
        self._stops = Stops(())
        self._next = Literal([call.key])
        self._held = ""
        self._state = self._in_name

    def feed(self, character: str) -> str | None:
        return self._state(character)

    def end(self) -> None:
        if self._state == self._after_value:
            self._more("}")
        elif self._state == self._in_name and self._name.after.found:
            self._named()

    def _in_name(self, character: str) -> str | None:
        return None if self._name.feed(character) else self._named()

    def _named(self) -> str | None:
        name, after = self._name.text, self._name.after
        self._begin(name)
        properties = self._tools.get(name, {}).get("properties")
        self._properties = properties if isinstance(properties, dict) else {}
        if after.found:
            self._more("{}")
            return self._after[after.found] + after.raw
        self._more("{")
        self._state = self._in_key
        return None

    def _in_key(self, character: str) -> str | None:
        try:
            if self._key.feed(character):
                return None
        except NoCall:
            self._more("}")
            return character
        key, call = self._key.text, self._call
        self._more((", " if self._count else "") + json.dumps(key, ensure_ascii=False) + ": ")
        self._count += 1
        self._value = _Value(self._properties.get(key))
        self._lead = call.value[len(call.value.rstrip()) :]
        end = call.end.rstrip()
        self._stops = Stops((end, end.lstrip()))
        self._state = self._in_value
        return None

    def _in_value(self, character: str) -> str | None:
        if self._lead:
            expected, self._lead = self._lead[0], self._lead[1:]
            if character == expected:
                return None
            self._lead = ""
        text, ended = self._stops.feed(character)
        if text:
            self._more(self._value.feed(text))
        if ended is not None:
            self._more(self._value.end())
            self._next, self._held = Literal([self._call.key]), ""
            self._state = self._after_value
        return None

    def _after_value(self, character: str) -> str | None:
        self._held += character
        if self._next.feed(character):
            return None
        if self._next.found is None:
            self._more("}")
            return self._held
        self._key = _Name([self._call.value])
        self._state = self._in_key
        return None


class _Value:
    """The JSON of a value that is written without quotes where it is a string.

    Whether it is one, its schema says; where that leaves it open, what is JSON is meant as such.
    """

    def __init__(self, schema: Any) -> None:
        self._types = _types(schema)
        self._streams = self._types == {"string"}
        self._text = ""
        self._open = False

    def feed(self, text: str) -> str:
        """The JSON that this text completes."""
        if not self._streams:
            self._text += text
            return ""
        start, self._open = "" if self._open else '"', True
        return start + json.dumps(text, ensure_ascii=False)[1:-1]

    def end(self) -> str:
        """The rest of it."""
        if self._streams:
            return '"' if self._open else '""'
        text = self._text.strip()
        for word in (text, WORDS.get(text, text)):
            if (kind := _kind(word)) and (not self._types or kind in self._types):
                return word
        return json.dumps(self._text, ensure_ascii=False)


def _types(schema: Any) -> set[str]:
    """The types that a schema names; none where it names none."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    parts = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(parts, list):
        return set().union(*(_types(part) for part in parts))
    if isinstance(values := schema.get("enum"), list):
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    return set()


def _kind(text: str) -> str:
    """The JSON type of a text, as schemas call it; "" when it is no JSON."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, bool):
        return "boolean"
    kinds = {int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _no_constant(_: str) -> None:
    raise ValueError
