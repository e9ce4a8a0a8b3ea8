"""Chunks -> bytes."""

from __future__ import annotations

import json
from typing import Any

from mainspring.dialects import openai, sse
from mainspring.dialects.openai import Ask
from mainspring.errors import ModelNotFound, Overloaded
from mainspring.types import (
    Chunk,
    Event,
    Finish,
    ModelInfo,
    Request,
    Sampling,
    Task,
    Timeline,
    Timings,
    Token,
    TokenTime,
    Usage,
)

TIMINGS = Timings(
    tokenize=0.001, queue=0.002, prefill=0.01, decode=0.1, total=0.113, first_token=0.013
)
FINAL = Chunk(usage=Usage(prompt=12, cached=2, output=5), timings=TIMINGS)


def ask(
    task: Task = Task.CHAT,
    *,
    include_usage: bool = False,
    prompt_logprobs: bool = False,
    **fields: Any,
) -> Ask:
    request = Request(id="x-1", task=task, model="m", arrival=100.0, **fields)
    return Ask(
        request=request, created=7, include_usage=include_usage, prompt_logprobs=prompt_logprobs
    )


def stream(asked: Ask, chunks: list[Chunk]) -> list[Any]:
    writer = openai.Stream(asked)
    data = b"".join(writer.frames(chunk) for chunk in chunks) + writer.end()
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def whole(asked: Ask, chunks: list[Chunk]) -> Any:
    writer = openai.Whole(asked)
    for chunk in chunks:
        writer.add(chunk)
    return json.loads(writer.body())


def token(text: str, logprob: float | None = -1.0, *top: Token) -> Token:
    return Token(ord(text[0]), text, text.encode(), logprob, top)


def test_the_finish_waits_for_the_timings() -> None:
    events = stream(
        ask(n=2),
        [
            Chunk(index=1, text="b"),
            Chunk(index=0, text="a"),
            Chunk(index=1, finish=Finish.STOP, stop_reason="x"),
            Chunk(index=0, finish=Finish.LENGTH),
            FINAL,
        ],
    )
    seen = [(e["choices"][0]["index"], e["choices"][0]["finish_reason"]) for e in events]
    assert seen == [(1, None), (1, None), (0, None), (0, None), (1, "stop"), (0, "length")]
    assert events[4]["choices"][0]["stop_reason"] == "x"
    assert ["timings" in e for e in events] == [False] * 5 + [True]


def test_text_and_finish_in_one_chunk() -> None:
    events = stream(ask(), [Chunk(text="a", finish=Finish.STOP), FINAL])
    assert [e["choices"][0]["delta"] for e in events] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {},
    ]


def test_usage_is_null_until_the_end() -> None:
    events = stream(ask(include_usage=True), [Chunk(text="a"), Chunk(finish=Finish.STOP), FINAL])
    assert [e["usage"] for e in events[:-1]] == [None] * 3
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_timings_are_milliseconds() -> None:
    assert whole(ask(), [Chunk(finish=Finish.STOP), FINAL])["timings"] == {
        "tokenize": 1.0,
        "queue": 2.0,
        "prefill": 10.0,
        "decode": 100.0,
        "total": 113.0,
        "first_token": 13.0,
        "prompt_per_second": 1000.0,
        "predicted_per_second": 40.0,
    }


def test_no_time_is_no_rate() -> None:
    final = Chunk(usage=Usage(prompt=1, output=1), timings=Timings())
    timings = whole(ask(), [Chunk(finish=Finish.STOP), final])["timings"]
    assert timings["prompt_per_second"] == timings["predicted_per_second"] == 0


def test_the_timeline_counts_from_arrival() -> None:
    line = Timeline(0, (Event("admitted", 100.5, 3, 7),), (TokenTime(101.0, 8, 2, 4),))
    final = Chunk(usage=Usage(), timings=TIMINGS, timelines=(line,))
    answer = whole(ask(timeline=True), [Chunk(finish=Finish.STOP), final])
    assert answer["timeline"] == [
        {
            "index": 0,
            "events": [{"name": "admitted", "ms": 500.0, "tokens": 3, "step": 7}],
            "tokens": [{"ms": 1000.0, "step": 8, "batch": 2, "prefill": 4}],
        }
    ]
    assert "timeline" not in whole(ask(), [Chunk(finish=Finish.STOP), final])


def test_chat_logprobs() -> None:
    asked = ask(sampling=Sampling(logprobs=1))
    chunks = [
        Chunk(text="a", tokens=(token("a", -0.5, token("b", -0.1)),)),
        Chunk(tokens=(token("é", float("-inf")),)),
        Chunk(finish=Finish.STOP),
        FINAL,
    ]
    content = whole(asked, chunks)["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -0.1, "bytes": [98]}],
    }
    assert (content[1]["bytes"], content[1]["logprob"]) == ([195, 169], -9999.0)
    events = stream(asked, chunks)
    # A token whose text is held back still has its log-probability in the stream.
    assert events[2]["choices"][0]["delta"] == {"content": ""}
    assert events[2]["choices"][0]["logprobs"]["content"] == [content[1]]


def test_completion_logprobs_and_offsets() -> None:
    asked = ask(Task.COMPLETE, echo=True, sampling=Sampling(logprobs=1, prompt_logprobs=1))
    chunks = [
        Chunk(text="hi", prompt_tokens=(token("h", None), token("i", -2.0, token("j", -1.0)))),
        Chunk(text="yo", tokens=(token("yo", -0.5),)),
        Chunk(text="!", tokens=(token("!", -0.25),), finish=Finish.STOP),
        FINAL,
    ]
    answer = whole(asked, chunks)
    assert "prompt_logprobs" not in answer["choices"][0]
    assert answer["choices"][0]["text"] == "hiyo!"
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["h", "i", "yo", "!"],
        "token_logprobs": [None, -2.0, -0.5, -0.25],
        "top_logprobs": [None, {"j": -1.0, "i": -2.0}, {"yo": -0.5}, {"!": -0.25}],
        "text_offset": [0, 1, 2, 4],
    }
    named = ask(Task.COMPLETE, prompt_logprobs=True, sampling=Sampling(prompt_logprobs=1))
    assert whole(named, chunks)["choices"][0]["prompt_logprobs"] == [
        None,
        {
            "106": {"logprob": -1.0, "rank": 1, "decoded_token": "j"},
            "105": {"logprob": -2.0, "rank": None, "decoded_token": "i"},
        },
    ]
    offsets = [
        e["choices"][0]["logprobs"]["text_offset"]
        for e in stream(asked, chunks)
        if e["choices"][0]["logprobs"]
    ]
    assert offsets == [[0, 1], [2], [4]]


def test_errors() -> None:
    writer = openai.Stream(ask())
    body = json.loads(writer.error(Overloaded("full", retry_after=1)).decode()[6:])
    assert body == {
        "error": {
            "message": "full",
            "type": "rate_limit_error",
            "param": None,
            "code": "overloaded",
        }
    }
    missing = json.loads(openai.error_body(ModelNotFound.among("a", ["b"])))["error"]
    assert (missing["type"], missing["param"]) == ("invalid_request_error", "model")


def test_models() -> None:
    info = ModelInfo(
        name="m",
        family="llama",
        parameters=1,
        format="int8",
        context=9,
        vocabulary=2,
        weight_bytes=3,
        kv_bytes=4,
        max_running=5,
        created=6,
    )
    listed = json.loads(openai.models_body([info]))
    assert listed["object"] == "list"
    assert listed["data"] == [json.loads(openai.model_body(info))]
    assert listed["data"][0]["created"] == 6


def test_frames() -> None:
    assert sse.frame(b"{}") == b"data: {}\n\n"
    assert sse.comment("keep\nalive") == b": keep alive\n\n"
    assert sse.DONE == b"data: [DONE]\n\n"
