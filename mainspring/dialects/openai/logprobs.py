"""The three shapes of log-probabilities: chat, completions, and vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mainspring.types import Request, Task, Token

__all__ = ["ChoiceLogprobs", "prompt_logprobs_field"]

FLOOR = -9999.0
"""JSON has no minus infinity; this is what the official API writes for an impossible token."""


class ChoiceLogprobs:
    """Renders one choice's tokens as they come. `text_offset` counts characters of its text."""

    def __init__(self, request: Request) -> None:
        self._asked = request.sampling.logprobs is not None
        self._chat = request.task is Task.CHAT
        self._echo = request.echo
        self._offset = 0

    def add(self, prompt: Sequence[Token], tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The `logprobs` field of a piece with these tokens; None when not asked for."""
        if not self._asked:
            return None
        if self._chat:
            return {"content": [_chat_token(token) for token in tokens], "refusal": None}
        return self._completion([*prompt, *tokens] if self._echo else tokens)

    def _completion(self, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [_top_by_text(token) for token in tokens],
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, FLOOR)


def _entry(token: Token) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": _finite(token.logprob),
        "bytes": list(token.data),
    }


def _chat_token(token: Token) -> dict[str, Any]:
    return _entry(token) | {"top_logprobs": [_entry(other) for other in token.top]}


def _top_by_text(token: Token) -> dict[str, float | None] | None:
    """Best first, the chosen one last where it is not among them."""
    if token.logprob is None:
        return None
    top = {other.text: _finite(other.logprob) for other in token.top}
    top.setdefault(token.text, _finite(token.logprob))
    return top


def prompt_logprobs_field(tokens: Sequence[Token]) -> list[dict[str, Any] | None]:
    """For each prompt token: id -> log-probability, rank where known, text; null for the first."""
    field: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            field.append(None)
            continue
        ranked: dict[str, Any] = {}
        for rank, other in enumerate(token.top, start=1):
            ranked[str(other.id)] = _ranked(other, rank)
        ranked.setdefault(str(token.id), _ranked(token, None))
        field.append(ranked)
    return field


def _ranked(token: Token, rank: int | None) -> dict[str, Any]:
    return {"logprob": _finite(token.logprob), "rank": rank, "decoded_token": token.text}
