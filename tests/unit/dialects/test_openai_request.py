"""bytes -> Request: fields, bounds, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainspring.dialects.openai import Ask, parse_chat, parse_completion
from mainspring.errors import BadRequest, Forbidden, MainspringError
from mainspring.types import Message, Sampling, Task

HI = [{"role": "user", "content": "hi"}]


def chat(*, variables: bool = False, **fields: Any) -> Ask:
    body = json.dumps({"model": "m", "messages": HI, **fields}).encode()
    return parse_chat(
        body, id="1", arrival=2.0, created=3, tenant="t", template_variables=variables
    )


def completion(**fields: Any) -> Ask:
    body = json.dumps({"model": "m", "prompt": "p", **fields}).encode()
    return parse_completion(body, id="1", arrival=2.0, created=3, tenant="t")


def test_a_small_request_has_the_defaults() -> None:
    ask = chat()
    assert ask.request.task is Task.CHAT
    assert ask.request.id == "chatcmpl-1"
    assert ask.request.messages == (Message("user", "hi"),)
    assert ask.request.sampling == Sampling()
    assert ask.request.chosen == frozenset()
    assert (ask.request.n, ask.request.stop, ask.request.seed) == (1, (), None)
    assert (ask.stream, ask.include_usage, ask.ignored) == (False, False, ())


def test_null_is_the_default_everywhere() -> None:
    fields = (
        "stream stream_options n temperature top_p top_k min_p repetition_penalty presence_penalty "
        "frequency_penalty logit_bias seed stop stop_token_ids max_tokens max_completion_tokens "
        "min_tokens ignore_eos logprobs top_logprobs prompt_logprobs timeline user tools "
        "response_format functions chat_template_kwargs audio modalities"
    )
    assert chat(**dict.fromkeys(fields.split())) == chat()


def test_every_field_arrives() -> None:
    ask = chat(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        n=3,
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"5": -100, "6": 1.5},
        seed=-5,
        stop="end",
        stop_token_ids=[4],
        max_tokens=5,
        max_completion_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=4,
        timeline=True,
    )
    assert ask.request.sampling == Sampling(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={5: -100, 6: 1.5},
        stop_token_ids=(4,),
        max_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        logprobs=4,
    )
    assert (ask.request.n, ask.request.seed, ask.request.stop) == (3, -5, ("end",))
    assert (ask.stream, ask.include_usage, ask.request.timeline) == (True, True, True)


def test_top_k_minus_one_is_all() -> None:
    assert chat(top_k=-1).request.sampling.top_k == 0
    assert chat(top_k=-1, min_p=0.1).request.chosen == {"top_k", "min_p"}


def test_a_salt_separates_caches() -> None:
    assert chat(cache_salt="a").request.tenant != chat(cache_salt="b").request.tenant
    assert chat(cache_salt="a").request.tenant.startswith("t\0")


def test_echo_with_logprobs_asks_for_the_prompts() -> None:
    assert completion(echo=True, logprobs=2).request.sampling.prompt_logprobs == 2
    assert completion(logprobs=2).request.sampling.prompt_logprobs is None


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompts(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).request.prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        (["a", 1], "prompt"),
        ([1, "a"], "prompt[1]"),
        ([1, [2]], "prompt[1]"),
        ([True], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([2**40], "prompt[0]"),
        ([[1], [-1]], "prompt[1][0]"),
        ([1.5], "prompt[0]"),
        (["a"] * 257, "prompt"),
        (None, "prompt"),
        (5, "prompt"),
    ],
)
def test_prompts_that_are_none(prompt: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 10**9),
        ("n", 1.5),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -5),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-300),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**200),
        ("seed", 2**63),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**63),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("stop", ""),
        ("stop", "x" * 257),
        ("stop", ["a"] * 17),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1] * 257),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
        ("stream", "yes"),
        ("stream_options", {"include_usage": 3}),
        ("model", ""),
        ("model", 5),
        ("model", "m" * 257),
        ("user", 5),
    ],
)
def test_bounds(field: str, value: Any) -> None:
    for ask in (chat, completion):
        with pytest.raises(BadRequest) as caught:
            ask(**{field: value})
        assert caught.value.param is not None
        assert caught.value.param.startswith(field)
        assert field in caught.value.message


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "king", "content": "a"}, "messages[1].role"),
        ({"content": "a"}, "messages[1]"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
            "messages[1].content[1].type",
        ),
        ({"role": "user", "content": "a", "name": 1}, "messages[1].name"),
        ("hi", "messages[1]"),
    ],
)
def test_messages_that_are_wrong(message: Any, place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(messages=[*HI, message])
    assert caught.value.param == place


def test_messages_with_tools_in_the_past() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    _, call, result = chat(messages=messages).request.messages
    assert call == Message("assistant", None, None, tuple(calls))
    assert result == Message("tool", "4", tool_call_id="1")


@pytest.mark.parametrize(
    ("field", "asks", "nothing"),
    [
        ("modalities", ["text", "audio"], ["text"]),
        ("audio", {"voice": "x"}, None),
        ("functions", [{}], []),
        ("function_call", "auto", "none"),
        ("web_search_options", {}, None),
        ("chat_template", "x", None),
        ("continue_final_message", True, False),
        ("use_beam_search", True, False),
    ],
)
def test_what_would_change_the_answer_is_refused(field: str, asks: Any, nothing: Any) -> None:
    for ask in (chat, completion):
        with pytest.raises(BadRequest, match="not supported") as caught:
            ask(**{field: asks})
        assert caught.value.param == field
        assert field not in ask(**{field: nothing}).ignored


def test_tools_that_may_not_be_called_do_nothing() -> None:
    assert chat(tools=[tool("f")], tool_choice="none") == chat()


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters} if parameters else {"name": name}
    return {"type": "function", "function": function}


def test_tools_arrive_as_templates_take_them() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    request = chat(tools=[tool("f", **schema), tool("g")], parallel_tool_calls=False).request
    assert [t["function"]["name"] for t in request.tools] == ["f", "g"]
    assert request.tools[0]["function"]["parameters"] == schema
    assert request.tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert (request.must_call, request.parallel_calls) == ((), False)
    assert chat(tools=[tool("f"), tool("g")], tool_choice="required").request.must_call == (
        "f",
        "g",
    )
    named = {"type": "function", "function": {"name": "g"}}
    request = chat(tools=[tool("f"), tool("g")], tool_choice=named).request
    assert (request.must_call, request.parallel_calls) == (("g",), False)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [tool("f"), tool("a b")]}, "tools[1].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool("f", type="array")]}, "tools[0].function.parameters.type"),
        ({"tools": [tool("f", properties=[])]}, "tools[0].function.parameters.properties"),
        ({"tools": [tool("f", properties={"a": 1})]}, "tools[0].function.parameters.properties.a"),
        ({"tools": [tool("f", required="a")]}, "tools[0].function.parameters.required"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [tool("f")]}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [tool("f")]},
            "tool_choice.function.name",
        ),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ],
)
def test_what_is_wrong_with_tools_has_a_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == place


def test_reasoning() -> None:
    message = {"role": "assistant", "content": "a", "reasoning": "b"}
    ask = chat(messages=[*HI, message], reasoning_effort="low", thinking_token_budget=7)
    assert ask.request.messages[1].reasoning == "b"
    assert (ask.request.reasoning_effort, ask.request.thinking_budget) == ("low", 7)


def test_harmless_fields_are_listed() -> None:
    assert chat(metadata={}, service_tier="auto", user="u").ignored == ("metadata", "service_tier")


def test_best_of() -> None:
    assert completion(n=2, best_of=2).request.n == 2
    with pytest.raises(BadRequest, match="best_of"):
        completion(best_of=3)


def test_choices_in_all() -> None:
    with pytest.raises(BadRequest, match="256"):
        completion(prompt=["a"] * 100, n=3)


def test_combinations() -> None:
    with pytest.raises(BadRequest, match="min_tokens"):
        chat(min_tokens=6, max_tokens=5)
    with pytest.raises(BadRequest, match="top_logprobs"):
        chat(top_logprobs=1)
    with pytest.raises(BadRequest, match="prompt_logprobs"):
        chat(prompt_logprobs=1, stream=True)


def test_template_variables() -> None:
    with pytest.raises(Forbidden):
        chat(chat_template_kwargs={"a": 1})
    assert chat(chat_template_kwargs={}).request.template_variables == {}
    asked = chat(variables=True, chat_template_kwargs={"a": [1]})
    assert asked.request.template_variables == {"a": [1]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
FIELDS = ("n", "temperature", "stop", "seed", "messages", "logit_bias", "prompt", "tools", "top_k")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_json_is_read_or_refused_with_a_place(fields: dict[str, Any]) -> None:
    for ask in (chat, completion):
        try:
            ask(**fields)
        except MainspringError as error:
            assert error.status in {400, 403}
            assert error.param


def test_a_suffix_asks_for_the_middle() -> None:
    assert completion(suffix="x").request.suffix == "x"
    assert completion(suffix="").request.suffix == completion(suffix=None).request.suffix == ""
    with pytest.raises(BadRequest, match="suffix: needs prompt to be a text") as caught:
        completion(prompt=[1, 2], suffix="x")
    assert caught.value.param == "suffix"
    with pytest.raises(BadRequest, match="suffix: not supported"):
        chat(suffix="x")
