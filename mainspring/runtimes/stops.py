"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Stops"]


class Stops:
    """Finds the first stop string to be complete, wherever the text is cut into pieces.

    Text that may be the beginning of one is held back, and no longer than that.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [text for text in strings if text]
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is certain now, and the stop string that ended it."""
        if not self._strings:
            return text, None
        text = self._held + text
        if hit := self._first(text):
            end, length, string = hit
            self._held = ""
            return text[: end - length], string
        keep = self._beginning(text)
        self._held = text[keep:]
        return text[:keep], None

    def skip(self, text: str) -> str:
        """Let a text pass in which no stop string counts."""
        text, self._held = self._held + text, ""
        return text

    def end(self) -> str:
        """What was held back, when nothing follows."""
        text, self._held = self._held, ""
        return text

    def _first(self, text: str) -> tuple[int, int, str] | None:
        """End, length and text of the stop string that ends first; of several, the longest."""
        hits = [
            (at + len(string), -len(string), string)
            for string in self._strings
            if (at := text.find(string)) >= 0
        ]
        if not hits:
            return None
        end, negative, string = min(hits)
        return end, -negative, string

    def _beginning(self, text: str) -> int:
        """Where the longest end of `text` starts that could become a stop string."""
        first = max(0, len(text) - self._longest + 1)
        for at in range(first, len(text)):
            tail = text[at:]
            if any(string.startswith(tail) for string in self._strings):
                return at
        return len(text)
