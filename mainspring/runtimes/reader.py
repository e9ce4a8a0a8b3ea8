"""A chat model's text, told apart: reasoning, content, tool calls."""

from __future__ import annotations

from msgspec import Struct

from mainspring.runtimes.calls import Calls
from mainspring.runtimes.literal import Literal
from mainspring.runtimes.reasoning import Marks
from mainspring.runtimes.stops import Stops
from mainspring.types import CallPiece

__all__ = ["Part", "Reader"]


class Part(Struct, frozen=True):
    """What a piece of text brings."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallPiece, ...] = ()


class Reader:
    """Reads one choice, the same wherever its text is cut into pieces.

    Reasoning stands at the beginning only, from its begin mark (or from the start, if the prompt
    `opened` it) to its end mark; white space around it is dropped. `marks` None: there is none;
    `calls` None: there are no calls.
    """

    def __init__(self, marks: Marks | None, calls: Calls | None, *, opened: bool = False) -> None:
        self._calls = calls
        self._opened = opened
        self._begin = Literal([marks.begin] if marks else [])
        self._end = Stops([marks.end] if marks else [])
        self._held = self._space = ""
        self._reasoning: list[str] = []
        self._started = False
        """some reasoning has come, so that white space counts"""
        self._state = self._at_start if marks else None
        """None: what comes is content and calls"""
        self._lead = False
        """white space is dropped: reasoning has ended just now"""

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends within reasoning, as far as is certain."""
        return self._state == self._in_reasoning or (self._state is not None and self._opened)

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls is not None and self._calls.count > 0

    @property
    def done(self) -> bool:
        """Whether nothing that may follow counts."""
        return self._calls is not None and self._calls.done

    def feed(self, text: str) -> Part:
        """What is certain now."""
        rest = self._feed_reasoning(text)
        content, calls = self._calls.feed(rest) if self._calls else (rest, ())
        return Part(self._take(), content, calls)

    def end(self) -> Part:
        """What was held back, when nothing follows."""
        rest = ""
        if self._state == self._in_reasoning:
            self._think(self._end.end())
            self._reasoning.append(self._space if self._started else "")
        elif self._state is not None:
            rest = self._held
        content, calls = self._calls.feed(rest) if self._calls else (rest, ())
        if self._calls:
            more, ended = self._calls.end()
            content, calls = content + more, calls + ended
        return Part(self._take(), content, calls)

    def _feed_reasoning(self, text: str) -> str:
        """Take what belongs to reasoning; the rest comes back."""
        for place, character in enumerate(text):
            if self._state is None:
                return self._led(text[place:])
            if not self._state(character):
                held, self._held, self._state = self._held, "", None
                return held + self._led(text[place + 1 :])
        return ""

    def _led(self, text: str) -> str:
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        return text

    def _take(self) -> str:
        text, self._reasoning = "".join(self._reasoning), []
        return text

    # States: take a character; False when it is the last before content ---------------------------

    def _at_start(self, character: str) -> bool:
        self._held += character
        if self._begin.feed(character):
            return True
        if self._begin.found is None and not self._opened:
            return False
        held, self._held = self._held, ""
        self._state = self._in_reasoning
        return self._begin.found is not None or all(map(self._in_reasoning, held))

    def _in_reasoning(self, character: str) -> bool:
        text, ended = self._end.feed(character)
        self._think(text)
        self._lead = ended is not None
        return ended is None

    def _think(self, text: str) -> None:
        kept = text.rstrip()
        if kept:
            self._reasoning.append((self._space if self._started else "") + self._start(kept))
            self._space = ""
        self._space += text[len(kept) :]

    def _start(self, text: str) -> str:
        text = text if self._started else text.lstrip()
        self._started = True
        return text
