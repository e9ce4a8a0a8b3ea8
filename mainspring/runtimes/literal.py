"""One of several texts, a character at a time, with any white space."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SPACE", "Literal", "squashed"]

SPACE = frozenset(" \t\r\n")
SPACE_LIMIT = 64
"""characters of white space in one text; more of it belongs to no format"""


class Literal:
    """Finds which of `texts` comes next. White space counts neither in them nor in what comes."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [squashed(text) for text in texts]
        self._seen = ""
        """what has come, without white space"""
        self._spaces = 0
        self.raw = ""
        """what has come since `found`, or at all"""
        self.found: int | None = None
        """the index of a text that has come; a longer one still may"""

    def feed(self, character: str) -> bool:
        """Take the next character; False once it is decided: see `found`, then `raw`."""
        self.raw += character
        if character in SPACE:
            self._spaces += 1
            return self._spaces <= SPACE_LIMIT
        self._seen += character
        possible = [text for text in self._texts if text.startswith(self._seen)]
        if self._seen in possible:
            self.found, self.raw = self._texts.index(self._seen), ""
        return any(len(text) > len(self._seen) for text in possible)


def squashed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())
