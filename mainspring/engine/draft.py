"""What a sequence will say next, guessed from what it has said."""

from __future__ import annotations

from array import array
from collections.abc import Callable

__all__ = ["MOST", "Draft", "Trust", "worth"]

SHORTEST = 2
"""A guess is made where at least so many of the last tokens came before."""
LOOKED_UP = 4
"""So many are looked for at most; a longer match is found by following it."""
LEVELS = 8
"""Matches of so many tokens and more are believed alike."""
MOST = 15
"""Guesses in a step at most."""
FADE = 0.9
"""What a trial still counts after the next one of its level."""
HITS, TRIALS = 1.0, 2.0
"""What is believed before the first trial, and how firmly."""
CAUTION = 1.2
"""A guess must gain so many times what it costs."""


def worth(chance: Callable[[int], float], most: int, share: float) -> tuple[int, float]:
    """How many guesses are worth computing, at most `most`, and how much faster tokens come then.

    `chance(i)` is the chance of guess i to be right if all before it are. `share` is what a guess
    costs, over what the sequence's part of a step costs without any. A guess is worth its cost
    when it raises the expected tokens for each second of the step: with k guesses that are right
    with chances q1 .. qk (all before them being right too), (1 + q1 + .. + qk) / (1 + k * share).
    """
    rows = 0
    right, expected = 1.0, 1.0
    while rows < most:
        right *= chance(rows)
        if right * (1 + share * rows) < CAUTION * share * expected:
            break
        expected += right
        rows += 1
    return rows, expected / (1 + share * rows)


class Trust:
    """How often guesses were right: hits of trials, the older of which have faded."""

    __slots__ = ("hits", "trials")

    def __init__(self, hits: float = 0.0, trials: float = 0.0) -> None:
        self.hits = hits
        self.trials = trials

    def fade(self, left: float) -> None:
        """What was seen so far counts `left` times as much from now on."""
        self.hits *= left
        self.trials *= left

    def learn(self, right: bool) -> None:
        self.hits += right
        self.trials += 1


class Draft:
    """Guesses the next tokens of one sequence: those that followed its last few the last time.

    This is prompt lookup (Saxena 2023). Whether a guess is right shows as soon as the next token
    is drawn, whether or not its row was computed. So the chance of being right is measured at
    every token and costs nothing, for each length of match by itself: guesses stop where the text
    stops repeating and begin again where it does, without a probe.

    `tokens` is the sequence's own list: append to it, then `push`.
    """

    __slots__ = ("_hits", "_match", "_source", "_text", "_tokens", "_trials")

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._text = bytearray(array("i", tokens).tobytes())
        self._source = 0
        """position of the token that is guessed to come next; 0: there is no guess"""
        self._match = 0
        """tokens before `_source` that are known to equal the last ones"""
        self._hits = [HITS] * (LEVELS + 1)
        self._trials = [TRIALS] * (LEVELS + 1)
        self._look_up()

    def push(self, token: int) -> None:
        """This token was appended to the sequence: learn whether it was guessed."""
        self._text += array("i", (token,)).tobytes()
        if self._source:
            level = min(self._match, LEVELS)
            right = self._tokens[self._source] == token
            self._hits[level] = FADE * self._hits[level] + right
            self._trials[level] = FADE * self._trials[level] + 1
            if right:
                self._source += 1
                self._match += 1
                return
        self._look_up()

    @property
    def chance(self) -> float:
        """Of the next token's guess to be right; 0 when there is none."""
        return self._chance(0) if self._source else 0.0

    def guess(self, most: int, share: float) -> list[int]:
        """The next tokens, as many as are worth computing (see `worth`) and at most `most`."""
        if not self._source:
            return []
        guesses: list[int] = []
        for row in range(worth(self._chance, min(most, MOST), share)[0]):
            place = self._source + row - len(self._tokens)
            # A repetition shorter than the draft goes on with the draft itself.
            guesses.append(self._tokens[place] if place < 0 else guesses[place])
        return guesses

    def _chance(self, row: int) -> float:
        level = min(self._match + row, LEVELS)
        return self._hits[level] / self._trials[level]

    def _look_up(self) -> None:
        """Find the latest of the longest matches. A longer one ends no later than a shorter."""
        self._source, self._match = 0, 0
        end = len(self._tokens) - 1
        for length in range(SHORTEST, LOOKED_UP + 1):
            if not (end := self._latest(length, end)):
                return
            self._source, self._match = end, length
        while self._match < LEVELS and self._goes_back():
            self._match += 1

    def _goes_back(self) -> bool:
        """Whether the match holds for one more token towards the beginning."""
        before = self._source - 1 - self._match
        return before >= 0 and self._tokens[before] == self._tokens[-1 - self._match]

    def _latest(self, length: int, end: int) -> int:
        """Where the last `length` tokens stand for the last time before position `end`.

        Returns the position after them; 0 when they do not. Bytes are searched at some GB/s, and
        cost less memory than an index.
        """
        width = array("i").itemsize
        wanted = self._text[-length * width :]
        last = end * width
        while (place := self._text.rfind(wanted, 0, last)) % width and place > 0:
            last = place + len(wanted) - 1  # the bytes of other tokens, by chance
        return place // width + length if place >= 0 else 0
