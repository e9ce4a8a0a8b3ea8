"""Chunks -> bytes: a whole answer, a stream of events, errors, models.

`timings` and `timeline`, our additions, are in milliseconds; see `timings_fields`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mainspring.dialects import sse
from mainspring.dialects.openai.logprobs import ChoiceLogprobs, prompt_logprobs_field
from mainspring.dialects.openai.request import Ask
from mainspring.errors import MainspringError
from mainspring.types import (
    CallPiece,
    Chunk,
    Finish,
    ModelInfo,
    Task,
    Timeline,
    Timings,
    Token,
    Usage,
)

__all__ = [
    "Stream",
    "Whole",
    "error_body",
    "error_fields",
    "model_body",
    "models_body",
    "timings_fields",
]

encode = msgspec.json.encode
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Stream:
    """Writes one answer as server-sent events."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._chat = ask.request.task is Task.CHAT
        self._object = "chat.completion.chunk" if self._chat else "text_completion"
        self._logprobs: dict[int, ChoiceLogprobs] = {}
        self._held: dict[str, Any] | None = None

    def frames(self, chunk: Chunk) -> bytes:
        """The events of one Chunk, often one, sometimes none."""
        if chunk.usage is not None:
            return self._last(chunk, chunk.usage)
        out = []
        choice = self._logprobs.get(chunk.index)
        if choice is None:
            choice = self._logprobs[chunk.index] = ChoiceLogprobs(self._ask.request)
            if self._chat:
                out.append(self._frame(chunk.index, {"role": "assistant", "content": ""}))
        out += self._pieces(chunk, choice)
        if chunk.finish is not None:
            # The last finish waits for the timings, which come with the final Chunk.
            if self._held is not None:
                out.append(self._event(self._held))
            piece: dict[str, Any] | str = {} if self._chat else ""
            self._held = self._body(chunk.index, piece, None, chunk.finish)
            self._held["choices"][0]["stop_reason"] = chunk.stop_reason
        return b"".join(out)

    def _pieces(self, chunk: Chunk, choice: ChoiceLogprobs) -> list[bytes]:
        """The events of what a Chunk brings; its tokens go with the first."""
        pieces: list[dict[str, Any] | str] = []
        if chunk.reasoning:
            pieces.append({self._ask.reasoning: chunk.reasoning})
        if chunk.text:
            pieces.append(self._text(chunk.text))
        pieces += ({"tool_calls": [call_fields(call)]} for call in chunk.calls)
        tokens = bool(chunk.tokens or chunk.prompt_tokens)
        if tokens and not pieces:
            pieces = [self._text("")]
        logprobs = choice.add(chunk.prompt_tokens, chunk.tokens) if pieces else None
        nothing = choice.add((), ()) if pieces else None
        return [
            self._frame(chunk.index, piece, nothing if number else logprobs)
            for number, piece in enumerate(pieces)
        ]

    def _text(self, text: str) -> dict[str, Any] | str:
        return {"content": text} if self._chat else text

    def error(self, error: MainspringError) -> bytes:
        """An error after the answer has begun; nothing but `end` may follow."""
        return sse.frame(error_body(error))

    def end(self) -> bytes:
        return sse.DONE

    def _last(self, chunk: Chunk, usage: Usage) -> bytes:
        extra = _extra(self._ask, chunk)
        out = []
        if self._held is not None:
            if not self._ask.include_usage:
                self._held |= extra
            out.append(self._event(self._held))
            self._held = None
        if self._ask.include_usage:
            body = self._envelope([]) | {"usage": usage_fields(usage)} | extra
            out.append(sse.frame(encode(body)))
        return b"".join(out)

    def _frame(
        self, index: int, piece: dict[str, Any] | str, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        return self._event(self._body(index, piece, logprobs, None))

    def _event(self, body: dict[str, Any]) -> bytes:
        if self._ask.include_usage:
            body["usage"] = None
        return sse.frame(encode(body))

    def _body(
        self,
        index: int,
        piece: dict[str, Any] | str,
        logprobs: dict[str, Any] | None,
        finish: Finish | None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta" if self._chat else "text": piece,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return self._envelope([choice])

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        request = self._ask.request
        return {
            "id": request.id,
            "object": self._object,
            "created": self._ask.created,
            "model": request.model,
            "choices": choices,
        }


class _Choice:
    """What has come in of one choice."""

    def __init__(self, ask: Ask) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.prompt_tokens: list[Token] = []
        self.tokens: list[Token] = []
        self.finish: Finish | None = None
        self.stop_reason: str | int | None = None
        self.logprobs = ChoiceLogprobs(ask.request)

    def add_call(self, piece: CallPiece) -> None:
        if piece.name:
            fields = call_fields(piece)
            del fields["index"]  # a stream's alone
            self.calls.append(fields)
        else:
            self.calls[piece.index]["function"]["arguments"] += piece.arguments


class Whole:
    """Collects one answer and writes it as one body."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._choices: dict[int, _Choice] = {}
        self._final = Chunk()

    def add(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self._final = chunk
            return
        choice = self._choices.get(chunk.index)
        if choice is None:
            choice = self._choices[chunk.index] = _Choice(self._ask)
        choice.text.append(chunk.text)
        choice.reasoning.append(chunk.reasoning)
        for call in chunk.calls:
            choice.add_call(call)
        choice.tokens += chunk.tokens
        choice.prompt_tokens += chunk.prompt_tokens
        if chunk.finish is not None:
            choice.finish, choice.stop_reason = chunk.finish, chunk.stop_reason

    def body(self) -> bytes:
        """The answer, once the final Chunk is in."""
        ask = self._ask
        chat = ask.request.task is Task.CHAT
        choices = [self._choice(index, chat) for index in sorted(self._choices)]
        answer = {
            "id": ask.request.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": ask.created,
            "model": ask.request.model,
            "choices": choices,
            "usage": usage_fields(self._final.usage or Usage()),
        } | _extra(ask, self._final)
        if chat and self._ask.prompt_logprobs:
            answer["prompt_logprobs"] = prompt_logprobs_field(self._choices[0].prompt_tokens)
        return encode(answer)

    def _message(self, choice: _Choice, text: str) -> dict[str, Any]:
        content = None if choice.calls and not text else text
        message = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(choice.reasoning):
            message[self._ask.reasoning] = reasoning
        return {**message, "tool_calls": choice.calls} if choice.calls else message

    def _choice(self, index: int, chat: bool) -> dict[str, Any]:
        choice = self._choices[index]
        text = "".join(choice.text)
        fields: dict[str, Any] = {"index": index}
        if chat:
            fields["message"] = self._message(choice, text)
        else:
            fields["text"] = text
        fields["logprobs"] = choice.logprobs.add(choice.prompt_tokens, choice.tokens)
        fields["finish_reason"] = choice.finish
        fields["stop_reason"] = choice.stop_reason
        if not chat and self._ask.prompt_logprobs:
            fields["prompt_logprobs"] = prompt_logprobs_field(choice.prompt_tokens)
        return fields


def call_fields(piece: CallPiece) -> dict[str, Any]:
    """A piece of a tool call; the first one names it."""
    if not piece.name:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def usage_fields(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def timings_fields(timings: Timings, usage: Usage) -> dict[str, float]:
    """Milliseconds of the first choice, and tokens per second.

    tokenize     the request's last byte to the prompt's tokens
    queue        tokens to admitted by the scheduler
    prefill      admitted to first token
    decode       first to last token
    total        the request's last byte to the last token
    first_token  the request's last byte to the first token
    prompt_per_second     prompt tokens that were computed (not cached) over prefill
    predicted_per_second  tokens of all choices after each first one, over decode; 0 for one token
    """
    fields = {
        name: round(value * 1e3, 3) for name, value in msgspec.structs.asdict(timings).items()
    }
    computed = usage.prompt - usage.cached
    fields["prompt_per_second"] = _rate(computed, timings.prefill)
    fields["predicted_per_second"] = _rate(usage.output - 1, timings.decode)
    return fields


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 and count > 0 else 0.0


def timeline_fields(timeline: Timeline, arrival: float) -> dict[str, Any]:
    """Times in milliseconds since the request's last byte came in."""

    def since(time: float) -> float:
        return round((time - arrival) * 1e3, 3)

    return {
        "index": timeline.index,
        "events": [
            {"name": e.name, "ms": since(e.time), "tokens": e.tokens, "step": e.step}
            for e in timeline.events
        ],
        "tokens": [
            {"ms": since(t.time), "step": t.step, "batch": t.batch, "prefill": t.prefill}
            for t in timeline.tokens
        ],
    }


def _extra(ask: Ask, chunk: Chunk) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if chunk.timings is not None:
        extra["timings"] = timings_fields(chunk.timings, chunk.usage or Usage())
    if ask.request.timeline:
        extra["timeline"] = [timeline_fields(t, ask.request.arrival) for t in chunk.timelines]
    return extra


def error_fields(error: MainspringError) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "message": error.message,
        "type": ERROR_TYPES.get(error.status, kind),
        "param": error.param,
        "code": error.code,
    }


def error_body(error: MainspringError) -> bytes:
    return encode({"error": error_fields(error)})


def _model_fields(info: ModelInfo) -> dict[str, Any]:
    adapter = {"root": info.name, "parent": info.parent} if info.parent else {}
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "mainspring",
        "max_model_len": info.context,
        "format": info.format,
        "parameters": info.parameters,
        **adapter,
    }


def model_body(info: ModelInfo) -> bytes:
    return encode(_model_fields(info))


def models_body(infos: list[ModelInfo]) -> bytes:
    return encode({"object": "list", "data": [_model_fields(info) for info in infos]})
