"""Tool calls and reasoning through the real client, from a model that says `tests.tiny.SCRIPT`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conformance.conftest import start, stop
from tests.tiny import scripted_checkpoint

QUESTION: list[Any] = [{"role": "user", "content": "weather?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    for name in ("get_weather", "add")
]
CALLS = [("get_weather", {"city": 'Zürich } " {'}), ("add", {"a": 1, "b": [2]})]
THOUGHT = "I need the\nweather."


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = scripted_checkpoint(tmp_path_factory.mktemp("scripted"))
    server = start([f"scripted={path}"], tmp_path_factory.mktemp("log") / "stderr")
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client
    assert stop(server) == 0


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"messages": QUESTION, "tools": TOOLS, "temperature": 0, **fields}
    return client.chat.completions.create(model="scripted", **given)


def test_calls_and_reasoning(client: openai.OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    message = choice.message
    assert (message.content, message.reasoning_content) == ("Let me look.", THOUGHT)
    assert choice.finish_reason == "tool_calls"
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls]
    assert calls == CALLS
    assert len({call.id for call in message.tool_calls}) == 2
    # The marks themselves, and what stands between them.
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5
    assert answer.usage.completion_tokens == 26


def test_streamed_calls(client: openai.OpenAI) -> None:
    content = reasoning = ""
    calls: list[dict[str, str]] = []
    finish = None
    for event in ask(client, stream=True):
        (choice,) = event.choices
        delta = choice.delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", "")
        for call in delta.tool_calls or ():
            if call.function.name:
                assert (call.index, call.type) == (len(calls), "function")
                assert call.id and call.function.arguments == ""
                calls.append({"name": call.function.name, "arguments": ""})
            else:
                assert call.id is None and call.index == len(calls) - 1
                calls[call.index]["arguments"] += call.function.arguments
        finish = choice.finish_reason or finish
    assert (content, reasoning, finish) == ("Let me look.", THOUGHT, "tool_calls")
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == CALLS


def test_one_call_only(client: openai.OpenAI) -> None:
    (choice,) = ask(client, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"


def test_no_calls_where_none_are_wanted(client: openai.OpenAI) -> None:
    for fields in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        (choice,) = ask(client, **fields).choices
        assert choice.message.tool_calls is None and choice.finish_reason == "stop"
        assert "<tool_call>" in choice.message.content


def test_what_was_called_goes_back_into_the_conversation(client: openai.OpenAI) -> None:
    message = ask(client).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "4"} for call in message.tool_calls
    ]
    past = message.model_dump(exclude_none=True)
    answer = ask(client, messages=[*QUESTION, past, *results])
    assert answer.usage.prompt_tokens > ask(client).usage.prompt_tokens


def test_a_thinking_budget(client: openai.OpenAI) -> None:
    answer = ask(client, extra_body={"thinking_token_budget": 1})
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("I need", "Let me look.")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


def test_a_cut_call_ends_for_its_length(client: openai.OpenAI) -> None:
    (choice,) = ask(client, max_tokens=16).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Zür'


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be_made(client: openai.OpenAI, stream: bool) -> None:
    """The model would say something else; its grammar leaves it no choice, but for reasoning."""
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "pick", "parameters": parameters}}]
    named = {"type": "function", "function": {"name": "pick"}}
    for choice in ("required", named):
        answer = ask(client, tools=tools, tool_choice=choice, temperature=1, seed=1, stream=stream)
        name, arguments, finish = "", "", None
        for event in answer if stream else ():
            for call in event.choices[0].delta.tool_calls or ():
                if call.index == 0:
                    name += call.function.name or ""
                    arguments += call.function.arguments
            finish = event.choices[0].finish_reason
        if not stream:
            (whole,) = answer.choices
            call = whole.message.tool_calls[0]
            name, arguments = call.function.name, call.function.arguments
            finish = whole.finish_reason
        assert (name, finish) == ("pick", "tool_calls")
        assert 0 <= json.loads(arguments)["n"] <= 9
