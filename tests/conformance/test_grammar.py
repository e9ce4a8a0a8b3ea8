"""Structured output as OpenAI's own client asks for it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.conformance.test_openai import chat

SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["sure", "kind"],
    "additionalProperties": False,
}


def test_a_schema(client: openai.OpenAI) -> None:
    named = {"name": "answer", "strict": True, "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": named}
    choice = chat(client, response_format=form, max_tokens=400).choices[0]
    if choice.finish_reason == "stop":
        assert sorted(json.loads(choice.message.content or "")) == ["kind", "sure"]
    else:
        assert choice.finish_reason == "length"


def test_a_choice_of_a_completion(client: openai.OpenAI) -> None:
    told = client.completions.create(
        model="tiny",
        prompt="is it?",
        max_tokens=9,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert told.choices[0].text in ("yes", "no")
    assert told.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"guided_json": {"type": "foo"}}, "guided_json"),
        ({"guided_grammar": "start: foo"}, "guided_grammar"),
    ],
)
def test_what_is_no_grammar_is_the_clients_mistake(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)
    assert (caught.value.param, caught.value.code) == (param, "grammar_error")
    assert param in caught.value.message
