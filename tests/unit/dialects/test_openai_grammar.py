"""What a body says about the form of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mainspring.errors import BadRequest
from mainspring.types import Grammar
from tests.unit.dialects.test_openai_request import chat, completion

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))


def named(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", **fields}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"response_format": named(schema=SCHEMA)}, Grammar("json_schema", TEXT, strict=False)),
        ({"response_format": named(schema=SCHEMA, strict=True)}, Grammar("json_schema", TEXT)),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", TEXT)),
        ({"guided_json": TEXT}, Grammar("json_schema", TEXT)),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["é", "b"]}}, Grammar("choice", '["é","b"]')),
        ({"guided_choice": ["b"]}, Grammar("choice", '["b"]')),
        ({"structured_outputs": {"grammar": "start: /a/"}}, Grammar("lark", "start: /a/")),
        ({"guided_grammar": "root ::= [a]"}, Grammar("lark", "root ::= [a]")),
    ],
    ids=str,
)
def test_each_form_arrives(fields: dict[str, Any], grammar: Grammar | None) -> None:
    for ask in (chat, completion):
        found = ask(**fields).request.grammar
        if grammar is None:
            assert found is None
        else:
            assert (found.kind, found.text, found.strict) == (
                grammar.kind,
                grammar.text,
                grammar.strict,
            )
            assert found.field.split(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": named()}, "response_format.json_schema.schema"),
        ({"response_format": named(schema=5)}, "response_format.json_schema.schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
    ids=str,
)
def test_a_mistake_names_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_what_is_not_done_is_refused() -> None:
    with pytest.raises(BadRequest, match="structural_tag"):
        chat(structured_outputs={"structural_tag": "{}"})
