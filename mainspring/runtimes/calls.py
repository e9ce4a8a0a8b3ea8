"""Tool calls in a text that arrives in pieces."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from itertools import groupby

from mainspring.runtimes.call import CallReader, NoCall, Tools, call_reader
from mainspring.runtimes.literal import SPACE, Literal, squashed
from mainspring.runtimes.toolformat import CALL_ID, JsonCall, ToolFormat
from mainspring.types import CallPiece

__all__ = ["Calls"]

ALPHABET = string.ascii_letters + string.digits


def new_id() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CALL_ID))


class Calls:
    """Tells calls from content, the same wherever the text is cut into pieces.

    Held back is only what may be the beginning of a call, until its name is read, and white space
    before it. What looks like a call and turns out to be none is content. With `parallel` False
    nothing counts after the first call: `done` says that it is over.
    """

    def __init__(
        self,
        format: ToolFormat,
        tools: Tools,
        *,
        parallel: bool = True,
        ids: Callable[[], str] = new_id,
    ) -> None:
        self.done = False
        self.count = 0
        """calls so far"""
        self._format = format
        self._tools = tools
        self._parallel = parallel
        self._ids = ids
        brace = "{" if isinstance(format.call, JsonCall) else ""
        self._first = squashed(format.first + brace)
        between, last = squashed((format.between or "") + brace), squashed(format.last)
        # After a text that also ends calls, the next one begins as the first does.
        again = format.between is not None and not between.startswith(last + self._first)
        self._closings = [text for text in (between if again else "", last) if text]
        self._again = again
        self._content: list[str] = []
        self._pieces: list[CallPiece] = []
        self._space = ""
        """white space that is content if more of it follows"""
        self._raw = ""
        """what will be content if it is no call"""
        self._held = ""
        """what followed a call"""
        self._said = False
        self._literal = Literal(())
        self._reader: CallReader | None = None
        self._state = self._in_content

    def feed(self, text: str) -> tuple[str, tuple[CallPiece, ...]]:
        """The content and the pieces of calls that are certain now."""
        for character in text:
            self._state(character)
        return self._take()

    def end(self) -> tuple[str, tuple[CallPiece, ...]]:
        """What was held back, when nothing follows."""
        if self._state == self._in_call and self._reader is not None:
            self._reader.end()
        if self._raw or not self.count:
            self._say(self._raw)
        return self._take()

    def _take(self) -> tuple[str, tuple[CallPiece, ...]]:
        content, self._content = "".join(self._content), []
        pieces, self._pieces = self._pieces, []
        joined: list[CallPiece] = []
        for (index, name), group in groupby(pieces, lambda piece: (piece.index, piece.name)):
            if name:
                joined += group
            elif text := "".join(piece.arguments for piece in group):
                joined.append(CallPiece(index=index, arguments=text))
        return content, tuple(joined)

    def _say(self, text: str) -> None:
        if text or self._space:
            self._content.append(self._space + text)
        self._said = self._said or bool(text)
        self._raw = self._space = ""

    def _again_as_content(self, text: str) -> None:
        """Read again what followed a beginning that was none."""
        self._state = self._in_content
        for character in text:
            self._state(character)

    # States: what the next character is -----------------------------------------------------------

    def _in_content(self, character: str) -> None:
        if character in SPACE:
            self._space += character
        elif character != self._first[0] or (self._format.bare and (self._said or self.count)):
            self._say(character)
        else:
            self._literal = Literal([self._first])
            self._state = self._in_first
            self._in_first(character)

    def _in_first(self, character: str) -> None:
        self._raw += character
        if self._literal.feed(character):
            return
        if self._literal.found is not None:
            self._begin()
            return
        raw, self._raw = self._raw, ""
        self._say(raw[0])
        self._again_as_content(raw[1:])

    def _begin(self) -> None:
        self._reader = call_reader(
            self._format.call, self._closings, self._tools, self._named, self._argued
        )
        self._state = self._in_call

    def _in_call(self, character: str) -> None:
        assert self._reader is not None
        if self._raw:
            self._raw += character
        try:
            rest = self._reader.feed(character)
        except NoCall:
            raw = self._raw
            # Nothing of it is looked at twice: a text of many beginnings is read in its own time.
            self._say(raw[:-1])
            self._again_as_content(raw[-1:])
            return
        if rest is not None:
            self._over(rest)

    def _over(self, rest: str) -> None:
        """A call has ended."""
        if not self._parallel:
            self.done = True
            self._state = self._ignore
            return
        self._literal = Literal(self._closings)
        self._state = self._after_call if self._closings else self._in_content
        for character in rest:
            self._state(character)

    def _after_call(self, character: str) -> None:
        self._held += character
        if self._literal.feed(character):
            return
        found, held, rest = self._literal.found, self._held, self._literal.raw
        self._held = ""
        if found is None:
            self._again_as_content(held)
        elif self._again and not found:
            self._raw = held
            self._begin()
            for one in rest:
                self._state(one)
        else:
            self._again_as_content(rest)

    def _ignore(self, character: str) -> None:
        pass

    # What the reader of a call tells --------------------------------------------------------------

    def _named(self, name: str) -> None:
        if self._format.bare and name not in self._tools:
            raise NoCall
        self._pieces.append(CallPiece(index=self.count, id=self._ids(), name=name))
        self.count += 1
        self._raw = self._space = ""

    def _argued(self, text: str) -> None:
        self._pieces.append(CallPiece(index=self.count - 1, arguments=text))
