"""From logits to tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from mainspring.engine.grammar import after, forbid
from mainspring.engine.sequence import Sequence, TokenLogprob
from mainspring.errors import BadRequest, GrammarError
from mainspring.kernels import Array, Kernels
from mainspring.types import Sampling

__all__ = ["INTERNAL", "NUMERICAL", "Draw", "Sampler", "check", "uniforms"]

log = logging.getLogger(__name__)

MOST = {
    "temperature": float(np.finfo(np.float32).max),
    "top_k": np.iinfo(np.int32).max,
    "top_p": 1.0,
    "min_p": 1.0,
}
GAMMA = np.uint64(0x9E37_79B9_7F4A_7C15)


def check(sampling: Sampling) -> None:
    """Raise BadRequest for numbers that the kernels, which see a whole batch, do not take."""
    for field, most in MOST.items():
        value = getattr(sampling, field)
        if not 0 <= value <= most:
            raise BadRequest(f"{field} is {value}; it must be 0 to {most:g}", param=field)
    most = MOST["temperature"]
    for token, bias in sampling.logit_bias.items():
        if not -most <= bias <= most:
            raise BadRequest(
                f"logit_bias of token {token} is {bias}; it must be {-most:g} to {most:g}",
                param="logit_bias",
            )


def uniforms(seeds: Array, positions: Array) -> Array:
    """The numbers in [0, 1), float64, that decide the draws at these output positions.

    A pure function of (seed, position), so the same seed draws the same text whatever the batch,
    and a replay goes on where it stopped: output `position` of the SplitMix64 generator (Steele,
    Lea, Flood 2014) whose state is the mixed seed, which sets neighbouring seeds apart. Both
    arrays are uint64.
    """
    state = _mix(seeds + GAMMA) + (positions + np.uint64(1)) * GAMMA
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: Array = z ^ (z >> np.uint64(31))
    return mixed


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn for one sequence: a token, or why there is none."""

    token: int
    logprob: TokenLogprob | None = None
    error: tuple[str, str] | None = None


NUMERICAL = Draw(
    -1, error=("numerical_error", "the model's output is not a number (NaN or infinite logits)")
)
INTERNAL = Draw(-1, error=("internal_error", "choosing the next token failed"))


class Sampler:
    """Draws the tokens of a batch's sequences, of each by its own Sampling."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._sequences: list[Sequence] = []
        self._parameters: tuple[Array, ...] = ()

    def draw(self, logits: Array, sequences: list[Sequence]) -> list[Draw]:
        """One Draw for each row of logits [rows, vocabulary]; `sequences` says whose it is.

        A sequence's rows stand together: first the row of its next token, then those after one,
        two, ... of its guesses. Rows of sequences with penalties or a grammar are changed in place.
        A row that holds NaN or infinity, or whose penalties or grammar fail, spoils only its own
        sequence's Draw.
        """
        ahead = _ahead(sequences)
        asking = [i for i, s in enumerate(sequences) if s.sampling.logprobs is not None]
        raw = logits[asking] if asking else None
        failed = self._change(logits, sequences, ahead)
        chosen = self._sample(logits, sequences, ahead)
        draws = [Draw(token) if token >= 0 else NUMERICAL for token in chosen]
        for row, failure in failed.items():
            draws[row] = failure
        if raw is not None:
            self._score(raw, asking, sequences, draws)
        return draws

    def guess(self, logits: Array, sequences: list[Sequence]) -> list[int]:
        """What each sequence would draw from its row after all its guesses; -1 where that fails.

        Rows of sequences with penalties or a grammar are changed in place.
        """
        ahead = [len(sequence.guesses) for sequence in sequences]
        failed = self._change(logits, sequences, ahead)
        chosen = self._sample(logits, sequences, ahead)
        for row in failed:
            chosen[row] = -1
        return chosen

    def score_prompt(self, logits: Array, sequence: Sequence) -> Draw | None:
        """Append the log-probabilities of the prompt tokens that follow the computed ones.

        `logits` are the rows of the sequence's next tokens. Returns the failure, if there is one.
        """
        start = sequence.computed + 1
        ids = sequence.tokens[start : min(start + len(logits), sequence.prompt)]
        if not ids:
            return None
        rows = logits[: len(ids)]
        try:
            if not np.isfinite(rows.max(axis=1)).all():
                return NUMERICAL
            top = sequence.sampling.prompt_logprobs or 0
            sequence.prompt_logprobs += self.log_probabilities(rows, ids, top)
        except Exception:  # one sequence's failure must not end the others
            log.exception("scoring the prompt of sequence %s failed", sequence.id)
            return INTERNAL
        return None

    def log_probabilities(self, logits: Array, ids: Items[int], top: int) -> list[TokenLogprob]:
        """Of each row's `ids` entry and its `top` likeliest tokens."""
        top = min(top, logits.shape[1])
        own, best, values = self._kernels.log_probabilities(logits, np.array(ids, np.int32), top)
        return [
            TokenLogprob(value, tuple(zip(names, scores, strict=True)))
            for value, names, scores in zip(
                own.tolist(), best.tolist(), values.tolist(), strict=True
            )
        ]

    @staticmethod
    def _change(logits: Array, sequences: list[Sequence], ahead: list[int]) -> dict[int, Draw]:
        """Apply each sequence's penalties and grammar to its rows; returns where that failed."""
        failed: dict[int, Draw] = {}
        for row, (sequence, count) in enumerate(zip(sequences, ahead, strict=True)):
            penalties, matcher = sequence.penalties, sequence.matcher
            if penalties is None and matcher is None:
                continue
            guesses = sequence.guesses[:count]
            try:
                if penalties is not None:
                    with penalties.after(guesses):
                        penalties.apply(logits[row])
                if matcher is not None:
                    with after(matcher, guesses):
                        forbid(logits[row], matcher.mask())
                    if penalties is not None:
                        _check_possible(logits[row])
            except GrammarError as error:
                failed[row] = Draw(-1, error=(error.code, error.message))
            except Exception:  # one sequence's failure must not end the others
                log.exception("penalties or grammar of sequence %s failed", sequence.id)
                failed[row] = INTERNAL
        return failed

    def _sample(self, logits: Array, sequences: list[Sequence], ahead: list[int]) -> list[int]:
        if sequences != self._sequences:
            self._sequences = sequences
            self._parameters = self._gather(sequences)
        temperature, top_k, top_p, min_p, seeds, prompts = self._parameters
        lengths = np.array(
            [len(s.tokens) + n for s, n in zip(sequences, ahead, strict=True)], np.uint64
        )
        uniform = uniforms(seeds, lengths - prompts)
        tokens = self._kernels.sample(logits, temperature, top_k, top_p, min_p, uniform)
        drawn: list[int] = tokens.tolist()
        return drawn

    @staticmethod
    def _gather(sequences: list[Sequence]) -> tuple[Array, ...]:
        samplings = [s.sampling for s in sequences]
        return (
            np.array([s.temperature for s in samplings], np.float32),
            np.array([s.top_k for s in samplings], np.int32),
            np.array([s.top_p for s in samplings], np.float32),
            np.array([s.min_p for s in samplings], np.float32),
            np.array([s.seed for s in sequences], np.uint64),
            np.array([s.prompt for s in sequences], np.uint64),
        )

    def _score(
        self, raw: Array, asking: list[int], sequences: list[Sequence], draws: list[Draw]
    ) -> None:
        """Add log-probabilities to the Draws of the rows that ask and have a token."""
        good = [(i, row) for i, row in enumerate(asking) if draws[row].error is None]
        if not good:
            return
        tops = [sequences[row].sampling.logprobs or 0 for _, row in good]
        ids = [draws[row].token for _, row in good]
        scores = self.log_probabilities(raw[[i for i, _ in good]], ids, max(tops))
        for (_, row), score, top in zip(good, scores, tops, strict=True):
            draws[row] = Draw(draws[row].token, TokenLogprob(score.logprob, score.top[:top]))


def _check_possible(logits: Array) -> None:
    """Raise GrammarError where no token is left."""
    if np.isneginf(logits.max()):
        raise GrammarError("the grammar's text ends before min_tokens; ask for fewer")


def _ahead(sequences: list[Sequence]) -> list[int]:
    """How many guesses stand before each row."""
    counts: list[int] = []
    last: Sequence | None = None
    for sequence in sequences:
        counts.append(counts[-1] + 1 if sequence is last else 0)
        last = sequence
    return counts
