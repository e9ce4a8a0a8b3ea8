"""How a sequence is held to a grammar: tokens that cannot come next get no chance."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from mainspring.kernels import Array

__all__ = ["Matcher", "after", "forbid"]


ADDED = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), 0, -np.inf)
ADDED = np.ascontiguousarray(ADDED[:, ::-1], np.float32)
"""[256, 8]: what a byte of a mask adds to eight logits. Branches would cost up to ten times it."""


class Matcher(Protocol):
    """Follows one sequence's output through its grammar, token by token.

    Knows what may come next. The ids that end a text are tokens of the grammar, too: they may come
    wherever the text could be complete. A matcher that gave up (its grammar became too complex)
    says so in `mask` alone; the other methods do nothing then.
    """

    @property
    def complete(self) -> bool:
        """Nothing can follow, but an end."""
        ...

    def mask(self) -> Array:
        """Bit i % 32 of word i // 32, uint32: token i may come next. Raises GrammarError."""
        ...

    def push(self, token: int) -> None:
        """A token of the output; it may come, as `mask` or `fitting` said."""
        ...

    def pop(self, count: int) -> None:
        """Take back the last `count` tokens."""
        ...

    def fitting(self, tokens: Items[int]) -> int:
        """How many of these tokens, one after the other, may come next."""
        ...


def forbid(logits: Array, mask: Array) -> None:
    """Make the tokens [vocabulary] impossible whose bit of `mask` is 0, in place."""
    logits += np.take(ADDED, mask.view(np.uint8), axis=0).reshape(-1)[: len(logits)]


@contextmanager
def after(matcher: Matcher, guesses: Items[int]) -> Iterator[Matcher]:
    """The matcher as it will be if the next tokens are those guesses, which fit."""
    done = 0
    try:
        for token in guesses:
            matcher.push(token)
            done += 1
        yield matcher
    finally:
        if done:
            matcher.pop(done)
