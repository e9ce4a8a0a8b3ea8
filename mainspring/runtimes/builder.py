"""Builds matchers beside the Engine: while one is built, the others' steps go on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from mainspring.runtimes.protocol import Add, Vocabulary

if TYPE_CHECKING:
    from mainspring.runtimes.matcher import GrammarMatcher, Matchers

__all__ = ["Builder"]


class Builder:
    """One thread that makes the matchers of requests with a grammar, in order. Until the first,
    nothing of it is imported or started."""

    def __init__(self) -> None:
        self.done = 0
        """matchers made, or failed"""
        self._thread: ThreadPoolExecutor | None = None
        self._matchers: Future[Matchers] | None = None
        self._building: dict[str, tuple[Add, Future[GrammarMatcher]]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._building)

    def learn(self, vocabulary: Vocabulary) -> None:
        """The tokens that grammars are matched over; known before the first `build`."""
        self._thread = self._thread or ThreadPoolExecutor(1, "matchers")
        self._matchers = self._thread.submit(_matchers, vocabulary)

    def build(self, message: Add) -> None:
        """Begin with the matcher of a request."""
        assert self._thread is not None and self._matchers is not None
        matchers = self._matchers
        future = self._thread.submit(lambda: matchers.result().make(message.grammar))
        self._building[message.id] = (message, future)

    def cancel(self, id: str) -> bool:
        """Forget a request; False when none of this id waits for its matcher."""
        if (found := self._building.pop(id, None)) is None:
            return False
        found[1].cancel()
        return True

    def built(self, seconds: float) -> Iterator[tuple[Add, Future[GrammarMatcher]]]:
        """Requests whose matchers are made, or failed; waits so long for the first of them."""
        if not self._building:
            return
        first = next(iter(self._building.values()))[1]
        wait([first], seconds)
        for id, (message, future) in list(self._building.items()):
            if not future.done():
                return
            del self._building[id]
            self.done += 1
            yield message, future


def _matchers(vocabulary: Vocabulary) -> Matchers:
    # The import costs 30 ms, which no Worker without grammars shall pay.
    from mainspring.runtimes.matcher import Matchers

    return Matchers(vocabulary)
