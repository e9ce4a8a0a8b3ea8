"""What a small model says that a large one will say next."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch, Piece
from mainspring.engine.cost import CostModel
from mainspring.engine.runner import Runner
from mainspring.engine.sampler import Sampler
from mainspring.engine.sequence import Sequence
from mainspring.kernels import BLOCK, Kernels, KvFormat, blocks_of

__all__ = ["DraftModel", "Wish"]

LEAST = 8
"""Up to about so many rows cost hardly more than one does."""

Wish = tuple[Sequence, int]
"""A sequence and how many guesses it wants, at least 1."""
Span = tuple[Sequence, int, int, int]
"""A sequence, its wish, and from where to where its tokens are computed."""


class DraftModel:
    """Guesses by drawing from a smaller model of the same vocabulary (Leviathan 2023, Chen 2023).

    It draws with the sequence's own Sampling, seed and position, so that two models that agree
    draw the same token at any temperature.

    Its KV cache has the blocks of the large model's and is read through the same block tables.
    Nothing is computed there until guesses are wanted; then what is missing is (`lag`). Of each
    block it is known which tokens' rows it holds here, so what sequences share is computed once,
    and blocks that came from the prefix cache, a tier or a preemption are no special case.
    """

    def __init__(
        self,
        model: Architecture,
        kernels: Kernels,
        blocks: int,
        dtype: KvFormat,
        clock: Callable[[], float],
    ) -> None:
        self.context = model.shape.context
        self.seconds = 0.0
        """that it has computed"""
        self.cost = CostModel(model.shape)
        self._runner = Runner(model, kernels, blocks=blocks, dtype=dtype)
        self._sampler = Sampler(kernels)
        self._clock = clock
        self._digests: list[bytes | None] = [None] * blocks
        """of each full block: which tokens' keys and values it holds in this cache"""

    def lag(self, sequence: Sequence) -> int:
        """Rows to compute before the first guess, at least 1."""
        full = sequence.drafted // BLOCK
        known = min(len(sequence.digests), len(sequence.blocks))
        while full < known and self._digests[sequence.blocks[full]] == sequence.digests[full]:
            full += 1
            sequence.drafted = full * BLOCK
        return max(1, len(sequence.tokens) - sequence.drafted)

    def guess(self, wishes: list[Wish], room: int) -> list[Sequence]:
        """Set the guesses of those sequences that have caught up, and return those.

        Each gets as many as it wishes, or fewer where a row holds no numbers; the others get
        none yet. Together about `room` rows of lag are computed, and of each sequence LEAST; what
        two sequences share is left to the first. A sequence holds the blocks of its guesses.
        """
        spans: list[Span] = []
        written: set[int] = set()
        for sequence, wish in wishes:
            sequence.guesses = []
            lag = self.lag(sequence)
            first = len(sequence.tokens) - lag
            if sequence.blocks[first // BLOCK] in written:
                continue
            count = min(lag, max(room, LEAST))
            room -= count
            spans.append((sequence, wish, first, first + count))
            written.update(self._forget(sequence, first, first + count + wish))
        return self._go_on(*self._catch_up(spans))

    def accept(self, sequence: Sequence, right: int) -> None:
        """So many of its guesses were right and are now its tokens; their rows are computed."""
        self._count(sequence, sequence.drafted + right)

    def _catch_up(self, spans: list[Span]) -> tuple[list[Wish], list[int]]:
        """Compute rows of tokens; for those who thereby reach their last, what they draw."""
        pieces: list[Piece] = []
        rows: list[int] = []
        ready: list[Wish] = []
        total = 0
        for sequence, wish, first, end in spans:
            pieces.append((sequence.tokens[first:end], first, sequence.table))
            total += end - first
            if end == len(sequence.tokens):
                ready.append((sequence, wish))
                rows.append(total - 1)
        drawn = self._compute(pieces, rows, [sequence for sequence, _ in ready])
        for sequence, _, _, end in spans:
            self._count(sequence, end)
        return ready, drawn

    def _go_on(self, ready: list[Wish], drawn: list[int]) -> list[Sequence]:
        """Append what was drawn to the guesses and draw the next, as long as any is wished."""
        guessing = [sequence for sequence, _ in ready]
        while ready:
            going: list[Wish] = []
            for (sequence, wish), token in zip(ready, drawn, strict=True):
                if token >= 0:
                    sequence.guesses.append(token)
                    if len(sequence.guesses) < wish:
                        going.append((sequence, wish))
            ready = going
            sequences = [sequence for sequence, _ in ready]
            pieces = [
                ([s.guesses[-1]], len(s.tokens) + len(s.guesses) - 1, s.table) for s in sequences
            ]
            drawn = self._compute(pieces, list(range(len(ready))), sequences) if ready else []
        return guessing

    def _compute(self, pieces: list[Piece], rows: list[int], drawing: list[Sequence]) -> list[int]:
        """Compute the pieces; the tokens that `drawing` draw from these rows, -1 for none."""
        began = self._clock()
        batch = Batch.of(pieces, rows)
        logits = self._runner.run(batch)
        drawn = self._sampler.guess(logits, drawing) if drawing else []
        seconds = self._clock() - began
        self.seconds += seconds
        self.cost.observe(self._runner.size(batch), seconds)
        return drawn

    def _forget(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Rows `start` to `end` will be written: what their blocks held is gone; returns those."""
        blocks = sequence.blocks[start // BLOCK : blocks_of(end)]
        for block in blocks:
            self._digests[block] = None
        return blocks

    def _count(self, sequence: Sequence, rows: int) -> None:
        """The first `rows` rows are computed: others that share the full blocks can read them."""
        for i in range(sequence.drafted // BLOCK, rows // BLOCK):
            if sequence.hashed:
                self._digests[sequence.blocks[i]] = sequence.digests[i]
        sequence.drafted = rows
