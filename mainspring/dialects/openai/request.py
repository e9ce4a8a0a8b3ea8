"""bytes -> Request."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from mainspring.dialects.body import read_body
from mainspring.dialects.openai.fields import (
    PROMPTS_LIMIT,
    ChatFields,
    CompletionFields,
    MessageFields,
    SharedFields,
    ignored_fields,
)
from mainspring.dialects.openai.grammar import grammar_of
from mainspring.dialects.openai.tools import called, read_tools
from mainspring.errors import BadRequest, Forbidden
from mainspring.types import Message, Request, Sampling, Task

__all__ = ["Ask", "messages_of", "parse_chat", "parse_completion"]

ROLES = ("system", "developer", "user", "assistant", "tool")
SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "ignore_eos",
)
REASONING, OFF = "reasoning_content", "off"
CHOICES_IN_ALL = 256
"""`n` times the number of prompts at most."""


class Ask(Struct, frozen=True, kw_only=True):
    """A Request and how its answer is to be written."""

    request: Request
    created: int
    """Unix time"""
    stream: bool = False
    include_usage: bool = False
    prompt_logprobs: bool = False
    """Asked for by name; `echo` with `logprobs` needs them in the Request too."""
    reasoning: str = REASONING
    """The field of a message that reasoning goes to."""
    ignored: tuple[str, ...] = ()
    """Fields of the body that have no effect here."""


def parse_chat(
    body: bytes,
    *,
    id: str,
    arrival: float,
    created: int,
    tenant: str,
    template_variables: bool,
    reasoning: str = REASONING,
) -> Ask:
    """A body of /v1/chat/completions. Raises BadRequest or Forbidden with the place.

    `reasoning` is the field of the answer that reasoning goes to; "off": it stays in the content.
    """
    fields, raw = read_body(body, ChatFields)
    variables = fields.chat_template_kwargs or {}
    if variables and not template_variables:
        raise Forbidden(
            "chat_template_kwargs: this server does not let clients set template variables; "
            "the operator can, with --template-variables",
            param="chat_template_kwargs",
        )
    if fields.top_logprobs and not fields.logprobs:
        raise BadRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    limit = fields.max_tokens
    if fields.max_completion_tokens is not None:
        limit = fields.max_completion_tokens
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    request = Request(
        id=f"chatcmpl-{id}",
        task=Task.CHAT,
        messages=messages_of(fields.messages),
        template_variables=variables,
        **read_tools(fields.tools, fields.tool_choice, fields.parallel_tool_calls),
        reasoning=reasoning != OFF,
        reasoning_effort=fields.reasoning_effort,
        thinking_budget=fields.thinking_token_budget,
        sampling=_sampling(fields, limit, logprobs, fields.prompt_logprobs),
        **_shared(fields, arrival, tenant),
    )
    ask = _ask(request, fields, raw, created)
    return msgspec.structs.replace(ask, reasoning=reasoning)


def parse_completion(body: bytes, *, id: str, arrival: float, created: int, tenant: str) -> Ask:
    """A body of /v1/completions. Raises BadRequest with the place."""
    fields, raw = read_body(body, CompletionFields)
    prompts = _prompts(fields.prompt)
    n = fields.n or 1
    if len(prompts) * n > CHOICES_IN_ALL:
        raise BadRequest(
            f"n: {len(prompts)} prompts of {n} choices are {len(prompts) * n}; the limit is "
            f"{CHOICES_IN_ALL}",
            param="n",
        )
    if fields.best_of is not None and fields.best_of != n:
        raise BadRequest("best_of: only supported equal to n; leave it out", param="best_of")
    if fields.suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest("suffix: needs prompt to be a text, not token ids", param="suffix")
    top = fields.prompt_logprobs
    if fields.echo and fields.logprobs is not None:
        top = max(fields.logprobs, top or 0)
    request = Request(
        id=f"cmpl-{id}",
        task=Task.COMPLETE,
        prompts=prompts,
        echo=bool(fields.echo),
        suffix=fields.suffix or "",
        sampling=_sampling(fields, fields.max_tokens, fields.logprobs, top),
        **_shared(fields, arrival, tenant),
    )
    return _ask(request, fields, raw, created)


def _ask(request: Request, fields: SharedFields, raw: dict[str, Any], created: int) -> Ask:
    options = fields.stream_options
    if fields.prompt_logprobs is not None and fields.stream:
        raise BadRequest(
            "prompt_logprobs: not with stream; set stream to false", param="prompt_logprobs"
        )
    return Ask(
        request=request,
        created=created,
        stream=bool(fields.stream),
        include_usage=bool(options and options.include_usage),
        prompt_logprobs=fields.prompt_logprobs is not None,
        ignored=ignored_fields(raw, fields.__struct_fields__),
    )


def _shared(fields: SharedFields, arrival: float, tenant: str) -> dict[str, Any]:
    stop = fields.stop or ()
    return {
        "model": fields.model,
        "arrival": arrival,
        "n": fields.n or 1,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "seed": fields.seed,
        "chosen": frozenset(_given(fields)),
        "timeline": bool(fields.timeline),
        "grammar": grammar_of(fields),
        "tenant": f"{tenant}\0{fields.cache_salt}" if fields.cache_salt else tenant,
    }


def _sampling(
    fields: SharedFields, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
) -> Sampling:
    if max_tokens is not None and (fields.min_tokens or 0) > max_tokens:
        raise BadRequest(
            f"min_tokens: {fields.min_tokens} is over max_tokens, {max_tokens}", param="min_tokens"
        )
    return Sampling(
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        **_given(fields),
    )


def _given(fields: SharedFields) -> dict[str, Any]:
    """The fields of Sampling that go by the same name and were set."""
    given = {
        name: value for name in SAMPLING_FIELDS if (value := getattr(fields, name)) is not None
    }
    if "top_k" in given:
        given["top_k"] = max(given["top_k"], 0)  # -1 asks for all, too
    return given


def messages_of(messages: list[MessageFields]) -> tuple[Message, ...]:
    """A conversation. Raises BadRequest with the place."""
    return tuple(_message(fields, f"messages[{i}]") for i, fields in enumerate(messages))


def _message(fields: MessageFields, path: str) -> Message:
    if fields.role not in ROLES:
        raise BadRequest(
            f"{path}.role: unknown role {fields.role[:40]!r}; use one of {', '.join(ROLES)}",
            param=f"{path}.role",
        )
    calls = tuple(
        called(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(fields.tool_calls or ())
    )
    if fields.content is None and not (fields.role == "assistant" and calls):
        raise BadRequest(
            f"{path}.content: expected a string or a list of text parts", param=f"{path}.content"
        )
    return Message(
        # Chat templates know the older name of this role.
        role="system" if fields.role == "developer" else fields.role,
        content=_text(fields, path),
        name=fields.name,
        tool_calls=calls,
        tool_call_id=fields.tool_call_id,
        reasoning=fields.reasoning_content or fields.reasoning,
    )


def _text(fields: MessageFields, path: str) -> str | None:
    if fields.content is None or isinstance(fields.content, str):
        return fields.content
    texts = []
    for index, part in enumerate(fields.content):
        place = f"{path}.content[{index}]"
        if part.type != "text":
            raise BadRequest(
                f"{place}.type: {part.type[:40]!r} is not supported; only text parts are",
                param=f"{place}.type",
            )
        if part.text is None:
            raise BadRequest(f"{place}.text: this field is required", param=f"{place}.text")
        texts.append(part.text)
    return "\n".join(texts)


def _prompts(prompt: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(_token(item, i) for i, item in enumerate(prompt)),)
    if len(prompt) > PROMPTS_LIMIT:
        raise BadRequest(
            f"prompt: {len(prompt)} prompts; the limit is {PROMPTS_LIMIT}", param="prompt"
        )
    if all(isinstance(item, str) for item in prompt) or all(
        isinstance(item, list) for item in prompt
    ):
        return tuple(item if isinstance(item, str) else tuple(_ids(item)) for item in prompt)
    raise BadRequest(
        "prompt: a list holds only strings, only token ids, or only lists of token ids",
        param="prompt",
    )


def _ids(item: int | list[int]) -> list[int]:
    return item if isinstance(item, list) else [item]


def _token(item: object, index: int) -> int:
    if not isinstance(item, int) or not 0 <= item < 1 << 31:
        raise BadRequest(
            f"prompt[{index}]: expected a token id, an `int` from 0 to 2147483647",
            param=f"prompt[{index}]",
        )
    return item
