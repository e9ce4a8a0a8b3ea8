"""The OpenAI dialect, server side: bytes -> Request, Chunks -> bytes. No I/O.

The shapes are those of the official `openai` client's types; the additions are vLLM's, so that a
client of either finds what it knows.
"""

from mainspring.dialects.openai.answer import Stream, Whole, error_body, model_body, models_body
from mainspring.dialects.openai.request import Ask, parse_chat, parse_completion

__all__ = [
    "Ask",
    "Stream",
    "Whole",
    "error_body",
    "model_body",
    "models_body",
    "parse_chat",
    "parse_completion",
]
