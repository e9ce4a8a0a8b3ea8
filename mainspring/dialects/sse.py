"""Server-sent events, the server's side: frames of one data line, and comments."""

from __future__ import annotations

__all__ = ["CONTENT_TYPE", "DONE", "comment", "frame"]

CONTENT_TYPE = "text/event-stream; charset=utf-8"


def frame(data: bytes) -> bytes:
    """One event. `data` is JSON on one line."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip: keeps idle connections open."""
    return b": " + text.replace("\n", " ").encode() + b"\n\n"


DONE = frame(b"[DONE]")
