"""The OpenAI dialect, server side: bytes -> Request, Chunks -> bytes. No I/O.

The shapes are those of the official `openai` client's types; the additions are vLLM's, so that a
client of either finds what it knows.
"""

from mainspring.dialects.openai.answer import Stream, Whole, error_body, model_body, models_body
from mainspring.dialects.openai.request import Ask, parse_chat, parse_completion
from mainspring.dialects.openai.tokens import (
    TokenAsk,
    parse_detokenize,
    parse_tokenize,
    text_body,
    tokens_body,
)

__all__ = [
    "Ask",
    "Stream",
    "TokenAsk",
    "Whole",
    "error_body",
    "model_body",
    "models_body",
    "parse_chat",
    "parse_completion",
    "parse_detokenize",
    "parse_tokenize",
    "text_body",
    "tokens_body",
]
