"""Lines on stderr: one an event, `name=value` pairs, nothing in them that a terminal obeys."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["configure", "escaped", "pairs"]

UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
PLAIN = re.compile(r"[^\s\"=\\]+")
VALUE_LIMIT = 200


def escaped(text: str) -> str:
    """`text` without control, line or direction characters: they become \\n, \\u001b, ..."""

    def escape(match: re.Match[str]) -> str:
        return "\\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}"

    return UNSAFE.sub(escape, text).encode("utf-8", "backslashreplace").decode()


def pairs(**fields: Any) -> str:
    """`name=value` in the order given, without those that are None; values cut at 200."""
    return " ".join(f"{name}={_value(v)}" for name, v in fields.items() if v is not None)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    text = text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "..."
    if PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        line = f"{time}Z {record.levelname.lower()} {escaped(record.getMessage())}"
        if record.exc_info:
            # Indented, so that nothing in a traceback can pass for a line of its own.
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {escaped(part)}" for part in trace)
        return line


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the package's log to `stream` (stderr) from `level` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("mainspring")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
