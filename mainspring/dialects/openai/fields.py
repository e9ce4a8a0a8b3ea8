"""What a request may hold: every field, its type and its bounds, and what we refuse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from mainspring.dialects.openai.grammar import GuidedFields
from mainspring.dialects.openai.tools import (
    TOOLS_LIMIT,
    ToolCallFields,
    ToolChoiceFields,
    ToolFields,
)
from mainspring.errors import BadRequest

__all__ = [
    "ChatFields",
    "CompletionFields",
    "MessageFields",
    "Part",
    "SharedFields",
    "StreamOptions",
    "ignored_fields",
]

CHOICES_LIMIT = 128
"""`n` at most."""
MESSAGES_LIMIT = 4096
PROMPTS_LIMIT = 256
STOPS_LIMIT = 16
STOP_LENGTH = 256
STOP_IDS_LIMIT = 256
BIAS_LIMIT = 1024
TOP_LOGPROBS_LIMIT = 20
INT64 = (1 << 63) - 1
INT32 = (1 << 31) - 1

Count = Annotated[int, Meta(ge=1, le=INT32)]
TokenId = Annotated[int, Meta(ge=0, le=INT32)]
Top = Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_LIMIT)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
StopText = Annotated[str, Meta(min_length=1, max_length=STOP_LENGTH)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class SharedFields(GuidedFields, frozen=True, kw_only=True):
    """The fields of both paths."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_LIMIT)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=BIAS_LIMIT)
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-INT64 - 1, le=INT64)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=STOPS_LIMIT)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=STOP_IDS_LIMIT)] | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Top | None = None
    timeline: bool | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    user: str | None = None


class Part(Struct, frozen=True):
    type: str
    text: str | None = None


class MessageFields(Struct, frozen=True):
    role: str
    content: str | list[Part] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: list[ToolCallFields] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatFields(SharedFields, frozen=True, kw_only=True):
    messages: Annotated[list[MessageFields], Meta(min_length=1, max_length=MESSAGES_LIMIT)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ToolFields], Meta(max_length=TOOLS_LIMIT)] | None = None
    tool_choice: str | ToolChoiceFields | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0, le=INT32)] | None = None


class CompletionFields(SharedFields, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | int | list[TokenId]], Meta(min_length=1)]
    logprobs: Top | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=CHOICES_LIMIT)] | None = None


REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "suffix": ("",),
    "echo": (False,),
    "web_search_options": (),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (True, False),
    "logits_processors": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "return_token_ids": (False,),
    "thinking_token_budget": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
}
"""Fields that change the answer and that we do not do, with the values that ask for nothing."""

HARMLESS = frozenset({"tool_choice", "parallel_tool_calls"})


def ignored_fields(raw: dict[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names of fields that have no effect here.

    Raises BadRequest for one that would change the answer: it must not be ignored in silence.
    """
    ignored = []
    for name, value in raw.items():
        if name in known or name in HARMLESS or value is None:
            continue
        if name not in REFUSED:
            ignored.append(name)
        elif not any(value == nothing for nothing in REFUSED[name]):
            raise BadRequest(f"{name}: not supported by this server; leave it out", param=name)
    return tuple(ignored)
