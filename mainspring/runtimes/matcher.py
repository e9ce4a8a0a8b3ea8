"""Matchers over llguidance: what holds a sequence to its grammar in the Worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import llguidance
import numpy as np

from mainspring.errors import GrammarError
from mainspring.kernels import Array
from mainspring.runtimes.compiler import first_line, limits, vocabulary_of
from mainspring.runtimes.protocol import Vocabulary

__all__ = ["GrammarMatcher", "Matchers"]

KEPT, KEPT_CHARACTERS = 64, 4 << 20
"""grammars that stay compiled, and how long their texts are together"""


class GrammarMatcher:
    """A `mainspring.engine.grammar.Matcher`."""

    __slots__ = ("_inner",)

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner

    @property
    def complete(self) -> bool:
        return self._inner.is_stopped() and self._inner.is_accepting()

    def mask(self) -> Array:
        inner = self._inner
        words = np.frombuffer(inner.compute_bitmask(), np.uint32)
        if inner.is_error():
            raise GrammarError(f"the grammar cannot be followed: {first_line(inner.get_error())}")
        if inner.is_stopped() and not inner.is_accepting():
            raise GrammarError("no token of this model can go on in the grammar")
        return words

    def push(self, token: int) -> None:
        self._inner.consume_token(token)

    def pop(self, count: int) -> None:
        self._inner.rollback(count)

    def fitting(self, tokens: Sequence[int]) -> int:
        return self._inner.validate_tokens(list(tokens)) if tokens else 0


class Matchers:
    """Makes matchers over one vocabulary from compiled grammars (`Grammars.compile`).

    Takes up to seconds, mostly without holding the interpreter: call it in a thread.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary_of(vocabulary.tokens, vocabulary.special, vocabulary.eos)
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def make(self, grammar: str) -> GrammarMatcher:
        """A matcher at the beginning of the grammar. Raises GrammarError."""
        inner = self._kept.get(grammar)
        if inner is None:
            inner = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits())
            if inner.is_error():
                raise GrammarError(f"the grammar is none: {first_line(inner.get_error())}")
            self._keep(grammar, inner)
        self._kept.move_to_end(grammar)
        return GrammarMatcher(inner.deep_copy())

    def _keep(self, grammar: str, inner: llguidance.LLMatcher) -> None:
        self._kept[grammar] = inner
        while len(self._kept) > KEPT or sum(map(len, self._kept)) > max(
            KEPT_CHARACTERS, len(grammar)
        ):
            self._kept.popitem(last=False)
