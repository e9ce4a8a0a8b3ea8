"""Text to token ids and back: vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from mainspring.dialects.body import read_body
from mainspring.dialects.openai.fields import (
    MESSAGES_LIMIT,
    MessageFields,
    Name,
    TokenId,
    ignored_fields,
)
from mainspring.dialects.openai.request import messages_of
from mainspring.errors import BadRequest
from mainspring.types import Chunk, Request, Task

__all__ = ["TokenAsk", "parse_detokenize", "parse_tokenize", "text_body", "tokens_body"]

encode = msgspec.json.encode


class TokenizeFields(Struct, frozen=True, kw_only=True):
    model: Name
    prompt: str | None = None
    messages: (
        Annotated[list[MessageFields], Meta(min_length=1, max_length=MESSAGES_LIMIT)] | None
    ) = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeFields(Struct, frozen=True, kw_only=True):
    model: Name
    tokens: list[TokenId]


class TokenAsk(Struct, frozen=True, kw_only=True):
    """A Request and how its answer is to be written."""

    request: Request
    strings: bool = False
    """The tokens' texts, too."""
    ignored: tuple[str, ...] = ()
    """Fields of the body that have no effect here."""


def parse_tokenize(body: bytes, *, id: str, arrival: float, tenant: str) -> TokenAsk:
    """A body of /tokenize: one prompt, or the messages of a chat. Raises BadRequest."""
    fields, raw = read_body(body, TokenizeFields)
    if (fields.prompt is None) == (fields.messages is None):
        raise BadRequest("prompt: give either prompt or messages", param="prompt")
    if fields.messages is not None and fields.add_special_tokens:
        raise BadRequest(
            "add_special_tokens: the chat template writes them; leave it out",
            param="add_special_tokens",
        )
    return TokenAsk(
        request=Request(
            id=f"tok-{id}",
            task=Task.TOKENIZE,
            model=fields.model,
            arrival=arrival,
            prompts=() if fields.prompt is None else (fields.prompt,),
            messages=messages_of(fields.messages or []),
            begin=fields.add_special_tokens is not False,
            tenant=tenant,
        ),
        strings=bool(fields.return_token_strs),
        ignored=_ignored(raw, fields),
    )


def parse_detokenize(body: bytes, *, id: str, arrival: float, tenant: str) -> TokenAsk:
    """A body of /detokenize. Raises BadRequest."""
    fields, raw = read_body(body, DetokenizeFields)
    return TokenAsk(
        request=Request(
            id=f"detok-{id}",
            task=Task.DETOKENIZE,
            model=fields.model,
            arrival=arrival,
            prompts=(tuple(fields.tokens),),
            tenant=tenant,
        ),
        ignored=_ignored(raw, fields),
    )


def _ignored(raw: dict[str, Any], fields: Struct) -> tuple[str, ...]:
    return ignored_fields(raw, fields.__struct_fields__)


def tokens_body(ask: TokenAsk, chunk: Chunk, context: int) -> bytes:
    """`context` is the model's, in tokens."""
    ids = [token.id for token in chunk.prompt_tokens]
    texts = [token.text for token in chunk.prompt_tokens] if ask.strings else None
    return encode({"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": texts})


def text_body(chunk: Chunk) -> bytes:
    return encode({"prompt": chunk.text})
