"""The grammar of an answer that is tool calls and nothing else, for `tool_choice`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mainspring.runtimes.reasoning import Marks
from mainspring.runtimes.toolformat import JsonCall, ParameterCall, ToolFormat

__all__ = ["call_grammar"]

BLANKS = {"whitespace_pattern": r"[ \n\r\t]{1,40}"}
"""between the tokens of JSON; a model could go on with more of it for ever"""


def call_grammar(
    format: ToolFormat,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    several: bool,
    marks: Marks | None = None,
    opened: bool = False,
    special: Mapping[int, str] | None = None,
) -> str:
    """In llguidance's Lark: one call of `tools` (name to schema), or `several`.

    With `marks` the model may think before, and must end to if the prompt `opened` it. `special`
    are the tokens that have no text of their own, with how they are written here.
    """
    writer = _Writer(special or {})
    calls = writer.calls(format, tools, several)
    start = calls
    if marks is not None:
        thought = f"{writer.until('thought', marks.end)} BLANK"
        start = (
            f"{thought} {calls}" if opened else f"({writer.text(marks.begin)} {thought})? {calls}"
        )
    return "\n".join([f"start: {start}", *writer.rules, r"BLANK: /[ \n]{0,4}/"]) + "\n"


class _Writer:
    def __init__(self, special: Mapping[int, str]) -> None:
        self.rules: list[str] = []
        self._ids = {text: id for id, text in special.items()}
        self._pattern = "|".join(map(re.escape, self._ids)) or "(?!)"

    def text(self, text: str) -> str:
        """The text as it stands."""
        parts = re.split(f"({self._pattern})", text)
        return " ".join(
            f"<[{self._ids[part]}]>" if part in self._ids else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def until(self, name: str, end: str) -> str:
        """Any text, up to and with `end`."""
        if end in self._ids:
            self.rules.append(f"{name}: /(.|\\n)*/ {self.text(end)}")
        else:
            self.rules.append(f"{name}[suffix={json.dumps(end, ensure_ascii=False)}]: /(.|\\n)*/")
        return name

    def calls(
        self, format: ToolFormat, tools: Mapping[str, Mapping[str, Any]], several: bool
    ) -> str:
        names = [
            self._call(format, number, name, schema)
            for number, (name, schema) in enumerate(tools.items())
        ]
        self.rules.append(f"call: {' | '.join(names)}")
        more = ""
        if several and format.between is not None:
            more = f" ({self.text(format.between)} call)*"
        return f"{self.text(format.first)} call{more} {self.text(format.last)}"

    def _call(self, format: ToolFormat, number: int, name: str, schema: Mapping[str, Any]) -> str:
        rule, call = f"call_{number}", format.call
        if isinstance(call, JsonCall):
            head = f"{{{json.dumps(call.name)}: {json.dumps(name)}, {json.dumps(call.arguments)}: "
            body = f'{self.text(head)} {self._json(rule, schema)} "}}"'
        elif isinstance(call, ParameterCall):
            body = f"{self.text(name + call.middle)}{self._parameters(rule, call, schema)}"
        else:
            body = f"{self.text(name + call.middle)} {self._json(rule, schema)}"
        self.rules.append(f"{rule}: {body}")
        return rule

    def _json(self, rule: str, schema: Any) -> str:
        name = f"{rule}_json"
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": BLANKS}
        self.rules.append(f"{name}: %json {json.dumps(schema)}")
        return name

    def _parameters(self, rule: str, call: ParameterCall, schema: Mapping[str, Any]) -> str:
        """In the order of the schema; those that are not required may be missing."""
        required = schema.get("required", ())
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        written = []
        for number, (key, part) in enumerate(schema.get("properties", {}).items()):
            value = self._value(f"{rule}_{number}", call, part, shared)
            one = f"{self.text(call.key + key + call.value)} {value}"
            written.append(f" {one}" if key in required else f" ({one})?")
        return "".join(written)

    def _value(self, rule: str, call: ParameterCall, part: Any, shared: Mapping[str, Any]) -> str:
        """A value and the text after it: a string stands there without quotes."""
        schema: Mapping[str, Any] = part if isinstance(part, dict) else {}
        words: Sequence[Any] = schema.get("enum", ())
        if words and all(isinstance(word, str) for word in words):
            return f"({' | '.join(map(self.text, words))}) {self.text(call.end)}"
        if schema.get("type") == "string":
            return self.until(rule, call.end)
        return f"{self._json(rule, {**schema, **shared})} {self.text(call.end)}"
