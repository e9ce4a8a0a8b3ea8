"""From scheduled work to logits."""

from __future__ import annotations

from collections.abc import Sequence as Items

from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch, Piece
from mainspring.engine.cost import StepSize
from mainspring.engine.scheduler import Work
from mainspring.kernels import Array, Kernels, KvFormat

__all__ = ["Runner"]


class Runner:
    """Owns the KV cache and runs the model over it."""

    def __init__(
        self,
        model: Architecture,
        kernels: Kernels,
        *,
        blocks: int,
        dtype: KvFormat,
    ) -> None:
        shape = model.shape
        self._model = model
        self.cache = kernels.cache(shape.layers, blocks, shape.kv_heads, shape.head, dtype)

    def run(self, batch: Batch) -> Array:
        """The logits [R, vocabulary] of the batch's `logit_rows`; its tokens are cached."""
        return self._model.forward(batch, self.cache)

    @staticmethod
    def batch(work: Items[Work]) -> Batch:
        """The rows of the work.

        Logits are wanted where a sequence's last pending token is and of the guesses after it, and
        of every prompt row of a sequence whose prompt is scored.
        """
        pieces: list[Piece] = []
        rows: list[int] = []
        end = 0
        for sequence, count in work:
            computed, guesses = sequence.computed, sequence.guesses
            new = sequence.tokens[computed : computed + count] + guesses
            pieces.append((new, computed, sequence.table))
            start, end = end, end + len(new)
            if sequence.scored:
                rows += range(start, end)
            elif count == sequence.pending:
                rows += range(end - 1 - len(guesses), end)
        return Batch.of(pieces, rows, [sequence.adapter for sequence, _ in work])

    @staticmethod
    def size(batch: Batch) -> StepSize:
        """What makes this batch's step long."""
        total, drawn = len(batch.tokens), len(batch.logit_rows)
        return StepSize(drawn, total - drawn, int(batch.positions.sum()) + total)
