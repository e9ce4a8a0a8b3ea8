"""What a sequence's own history and wishes do to its logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

import numpy as np

from mainspring.kernels import Array
from mainspring.types import Sampling, Thinking

__all__ = ["Penalties"]


class Counts:
    """Token ids in order of first appearance, with how often each came; grows in O(1)."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.empty(64, np.float64)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        size = len(self._index)
        place = self._index.setdefault(token, size)
        if place < size:
            self._counts[place] += 1
            return
        if size == len(self._ids):
            self._ids = np.resize(self._ids, 2 * size)
            self._counts = np.resize(self._counts, 2 * size)
        self._ids[size] = token
        self._counts[size] = 1

    def remove_last(self, token: int) -> None:
        """Undo the last `add`, which was of this token."""
        place = self._index[token]
        if self._counts[place] == 1:
            del self._index[token]
        else:
            self._counts[place] -= 1

    @property
    def ids(self) -> Array:
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> Array:
        return self._counts[: len(self._index)]


class Budget:
    """Ends reasoning when its tokens are used up; what it does depends on the output alone."""

    def __init__(self, thinking: Thinking, output: list[int]) -> None:
        self._thinking = thinking
        self._output = output

    def push(self, token: int) -> None:
        self._output.append(token)

    def pop(self) -> None:
        self._output.pop()

    def apply(self, logits: Array) -> None:
        """Leave nothing but the end where it is due."""
        thinking, output = self._thinking, self._output
        start = 0 if thinking.begin is None else 1
        if len(output) != start + thinking.budget or thinking.end in output:
            return
        if start and output[0] != thinking.begin:
            return
        logits[: thinking.end] = -np.inf
        logits[thinking.end + 1 :] = -np.inf
        logits[thinking.end] = 0


class Penalties:
    """Changes one sequence's row of logits before a token is drawn from it.

    In this order: repetition over prompt and output (divides positive, multiplies negative
    logits), presence and frequency over the output (subtracts presence + frequency * count), bias
    (adds), and while fewer than `min_tokens` tokens are out, the ids that would end the sequence
    become impossible; a thinking budget that is used up has the last word. History is kept
    incrementally: `push` every token drawn.
    """

    def __init__(
        self, sampling: Sampling, tokens: list[int], prompt: int, stops: frozenset[int]
    ) -> None:
        self._repetition = np.float32(sampling.repetition_penalty)
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._seen = Counts(tokens) if sampling.repetition_penalty != 1 else None
        counted = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._output = Counts(tokens[prompt:]) if counted else None
        self._bias_ids = np.fromiter(sampling.logit_bias, np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._stops = np.fromiter(sorted(stops), np.int64)
        self._masked = sampling.min_tokens - (len(tokens) - prompt) if stops else 0
        thinking = sampling.thinking
        self._budget = Budget(thinking, tokens[prompt:]) if thinking else None

    @classmethod
    def of(
        cls, sampling: Sampling, tokens: list[int], prompt: int, stops: frozenset[int]
    ) -> Penalties | None:
        """Penalties for prompt and output `tokens`, or None where `sampling` asks for none."""
        wanted = (
            sampling.repetition_penalty != 1
            or sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
            or sampling.logit_bias
            or sampling.thinking is not None
            or (stops and sampling.min_tokens > len(tokens) - prompt)
        )
        return cls(sampling, tokens, prompt, stops) if wanted else None

    def push(self, token: int) -> None:
        """A token was drawn."""
        self._masked -= 1
        if self._seen is not None:
            self._seen.add(token)
        if self._output is not None:
            self._output.add(token)
        if self._budget is not None:
            self._budget.push(token)

    @contextmanager
    def after(self, guesses: Items[int]) -> Iterator[Penalties]:
        """These penalties as they will be if the next tokens are `guesses`."""
        done = 0
        try:
            for token in guesses:
                self.push(token)
                done += 1
            yield self
        finally:
            for token in reversed(guesses[:done]):
                self._pop(token)

    def _pop(self, token: int) -> None:
        self._masked += 1
        if self._seen is not None:
            self._seen.remove_last(token)
        if self._output is not None:
            self._output.remove_last(token)
        if self._budget is not None:
            self._budget.pop()

    def apply(self, logits: Array) -> None:
        """Change the logits [vocabulary] float32 in place."""
        if self._seen is not None:
            ids = self._seen.ids
            values = logits[ids]
            r = self._repetition
            with np.errstate(over="ignore"):
                logits[ids] = np.where(values > 0, values / r, values * r)
        if self._output is not None:
            penalty = self._presence + self._frequency * self._output.counts
            logits[self._output.ids] -= penalty.astype(np.float32)
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._masked > 0:
            logits[self._stops] = -np.inf
        if self._budget is not None:
            self._budget.apply(logits)
