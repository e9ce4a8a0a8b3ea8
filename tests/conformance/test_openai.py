"""The official client against a live server: its types are the oracle."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conformance.conftest import Server

USER: Any = [{"role": "user", "content": "hello"}]


def chat(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    fields = {"model": "tiny", "messages": USER, "max_tokens": 8, "temperature": 0, **fields}
    answer = client.chat.completions.create(**fields)
    strict(ChatCompletion, answer)
    return answer


def chunks(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    fields = {"model": "tiny", "messages": USER, "max_tokens": 8, "temperature": 0, **fields}
    found = list(client.chat.completions.create(stream=True, **fields))
    for chunk in found:
        strict(ChatCompletionChunk, chunk)
    return found


def strict(kind: type[Any], answer: Any) -> None:
    """The client builds its objects without checks; this checks every field."""
    kind.model_validate(answer.model_dump(), strict=True)


def text_of(found: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in found
        for choice in chunk.choices
        if choice.index == index
    )


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert models[0].object == "model"
    assert client.models.retrieve("tiny").owned_by == "mainspring"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/none")


def test_chat(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage
    # <|user|>hello<|end|><|assistant|>
    assert answer.usage.prompt_tokens == 8
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == 16
    assert answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    extra: Any = answer.model_extra
    assert set(extra["timings"]) == {
        "tokenize",
        "queue",
        "prefill",
        "decode",
        "total",
        "first_token",
        "prompt_per_second",
        "predicted_per_second",
    }
    times = extra["timings"]
    parts = times["tokenize"] + times["queue"] + times["prefill"] + times["decode"]
    assert math.isclose(parts, times["total"], rel_tol=0.05, abs_tol=1)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = chat(client)
    found = chunks(client)
    assert text_of(found) == whole.choices[0].message.content
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in found}) == 1
    first, *_, last = found
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert all(chunk.choices[0].finish_reason is None for chunk in found[:-1])
    assert all("usage" not in chunk.model_fields_set for chunk in found)
    assert last.model_extra and "timings" in last.model_extra


def test_stream_usage(client: openai.OpenAI) -> None:
    *pieces, last = chunks(client, stream_options={"include_usage": True})
    assert all("usage" in piece.model_fields_set and piece.usage is None for piece in pieces)
    assert last.choices == []
    assert last.usage and last.usage.completion_tokens == 8
    assert last.usage.prompt_tokens_details
    assert last.model_extra and "timings" in last.model_extra


def test_cached_tokens(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "the same beginning " * 8}]
    first, second = chat(client, messages=long), chat(client, messages=long)
    assert second.usage and second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens_details.cached_tokens in range(32, 160)
    assert first.choices[0].message.content == second.choices[0].message.content


def test_several_choices(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    assert answer.usage and answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == 8
    found = chunks(client, n=3, temperature=1, seed=5)
    assert [text_of(found, index) for index in range(3)] == texts
    ends = [c.choices[0].index for c in found if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]


def test_seeds(client: openai.OpenAI) -> None:
    one, again, other = (
        chat(client, temperature=1, seed=seed, max_tokens=24).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_logprobs(client: openai.OpenAI) -> None:
    content = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert content and content.content and len(content.content) == 8
    for token in content.content:
        assert token.bytes is not None
        assert len(token.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    none = chat(client, logprobs=True).choices[0].logprobs
    assert none and none.content and none.content[0].top_logprobs == []
    streamed = [
        token
        for chunk in chunks(client, logprobs=True, top_logprobs=3)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or []
    ]
    assert [t.token for t in streamed] == [t.token for t in content.content]


def test_stop(client: openai.OpenAI) -> None:
    text = chat(client, max_tokens=40).choices[0].message.content
    assert text
    mark = text[len(text) // 2]
    choice = chat(client, max_tokens=40, stop=[mark, "never there"]).choices[0]
    assert choice.message.content == text[: text.index(mark)]
    assert choice.finish_reason == "stop"
    assert choice.model_extra and choice.model_extra["stop_reason"] == mark


def test_bias_and_stop_ids(client: openai.OpenAI) -> None:
    answer = chat(client, logit_bias={"65": 100}, max_tokens=4)
    letter = answer.choices[0].message.content
    assert letter and len(set(letter)) == 1
    ended = chat(client, logit_bias={"65": 100}, extra_body={"stop_token_ids": [65]})
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].model_extra and ended.choices[0].model_extra["stop_reason"] == 65


def test_vllm_fields(client: openai.OpenAI) -> None:
    fields = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
    body = {**fields, "min_tokens": 4, "prompt_logprobs": 2}
    answer = chat(client, temperature=1, extra_body=body)
    prompt: Any = (answer.model_extra or {})["prompt_logprobs"]
    assert answer.usage
    assert len(prompt) == answer.usage.prompt_tokens
    assert prompt[0] is None
    assert all(len(entry) >= 2 for entry in prompt[1:])
    assert {"logprob", "rank", "decoded_token"} == set(next(iter(prompt[1].values())))


def test_timeline(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body={"timeline": True})
    timeline: Any = (answer.model_extra or {})["timeline"][0]
    names = [event["name"] for event in timeline["events"]]
    assert names[0] == "arrival" and names[-1] == "finished"
    assert len(timeline["tokens"]) == 8
    times = [token["ms"] for token in timeline["tokens"]]
    assert times == sorted(times)


def test_roles_and_parts(client: openai.OpenAI) -> None:
    roles: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "name": "me"},
        {"role": "user", "content": "d"},
    ]
    answer = chat(client, messages=roles)
    roles[0]["role"] = "system"
    roles[1]["content"] = "a\nb"
    same = chat(client, messages=roles)
    assert answer.choices[0].message.content == same.choices[0].message.content


def test_special_tokens_in_content_are_text(client: openai.OpenAI) -> None:
    answer = chat(client, messages=[{"role": "user", "content": "<|end|>"}])
    assert answer.usage and answer.usage.prompt_tokens == 3 + len("<|end|>")


# Completions ------------------------------------------------------------------------------------


def complete(client: openai.OpenAI, **fields: Any) -> Completion:
    fields = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "temperature": 0, **fields}
    answer = client.completions.create(**fields)
    strict(Completion, answer)
    return answer


def test_completions(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length"
    text = answer.choices[0].text
    pieces = list(
        client.completions.create(
            model="tiny", prompt="hello", max_tokens=6, temperature=0, stream=True
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces) == text
    assert pieces[-1].choices[0].finish_reason == "length"


def test_every_kind_of_prompt(client: openai.OpenAI) -> None:
    one = complete(client).choices[0].text
    ids = tiny_ids("hello")
    assert complete(client, prompt=ids).choices[0].text == one
    assert [c.text for c in complete(client, prompt=[ids, ids]).choices] == [one, one]
    both = complete(client, prompt=["hello", "world"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == one
    assert both.usage and both.usage.prompt_tokens == 10


def tiny_ids(text: str) -> list[int]:
    from tests.tiny import tiny_tokenizer

    ids: list[int] = tiny_tokenizer().encode(text).ids
    return ids


def test_echo_and_logprobs(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    # Not through `complete`: the official API, too, has null for the first token, against its type.
    choice = client.completions.create(
        model="tiny", prompt="hello", max_tokens=6, temperature=0, echo=True, logprobs=2
    ).choices[0]
    assert choice.text == "hello" + plain
    found = choice.logprobs
    assert found and found.tokens and found.token_logprobs and found.text_offset
    assert found.tokens[:5] == list("hello")
    assert found.text_offset[:6] == [0, 1, 2, 3, 4, 5]
    assert len(found.tokens) == len(found.token_logprobs) == 11
    assert found.top_logprobs and found.top_logprobs[0] is None
    assert len(found.top_logprobs[1]) in {2, 3}


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 10**9}, "n"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, "chat_template"),
    ],
)
def test_bad_requests_name_the_place(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
    assert caught.value.code == "invalid_request"
    assert param.split("[")[0].split(".")[0] in caught.value.message


def test_ids_out_of_the_vocabulary(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        complete(client, prompt=[1, 260])
    with pytest.raises(openai.BadRequestError):
        chat(client, logit_bias={"260": 1})


def test_a_prompt_over_the_context_names_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="x" * 600)
    assert caught.value.code == "context_length_exceeded"
    assert "512" in caught.value.message and "60" in caught.value.message


def test_a_prompt_that_fills_the_context(client: openai.OpenAI) -> None:
    answer = complete(client, prompt="x" * 511, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"


def test_template_variables_are_the_operators(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        chat(client, extra_body={"chat_template_kwargs": {"a": 1}})


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean tiny") as caught:
        chat(client, model="tinny")
    assert caught.value.code == "model_not_found"


# The asynchronous client, and leaving -----------------------------------------------------------


async def test_the_asynchronous_client(server: Server, client: openai.OpenAI) -> None:
    alone = chat(client, temperature=1, seed=3).choices[0].message.content
    async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="x") as many:
        fields: Any = {"model": "tiny", "messages": USER, "max_tokens": 8}

        async def whole(seed: int) -> str | None:
            answer = await many.chat.completions.create(seed=seed, **fields)
            return answer.choices[0].message.content

        async def streamed(seed: int) -> str:
            stream = await many.chat.completions.create(seed=seed, stream=True, **fields)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        texts = await asyncio.gather(
            *(whole(i) for i in range(8)), *(streamed(i) for i in range(8))
        )
    assert texts[:8] == texts[8:]
    assert texts[3] == alone


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_cancels_at_once(server: Server, stream: bool) -> None:
    before = server.metric("mainspring_steps_total")
    body = {"model": "tiny", "prompt": "go", "max_tokens": 500, "ignore_eos": True, "n": 8}
    async with httpx.AsyncClient(base_url=server.address) as client:
        if stream:
            async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as r:
                await anext(r.aiter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/completions", json=body, timeout=0.3)
    server.wait_for_idle()
    assert server.metric("mainspring_steps_total") - before < 480
