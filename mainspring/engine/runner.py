"""From scheduled work to logits."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.engine.cost import StepSize
from mainspring.engine.scheduler import Work
from mainspring.kernels import BLOCK, Array, Kernels, KvFormat

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
        """Lay the work's tokens out flat.

        Logits are wanted where a sequence's last pending token is and of the guesses after it, and
        of every prompt row of a sequence whose prompt is scored.
        """
        tokens: list[int] = []
        positions: list[int] = []
        starts = [0]
        lengths: list[int] = []
        rows: list[int] = []
        for sequence, count in work:
            computed, guesses = sequence.computed, sequence.guesses
            done = count == sequence.pending
            length = computed + count + len(guesses)
            if length == computed + 1:
                tokens.append(sequence.tokens[computed])
                positions.append(computed)
            else:
                tokens += sequence.tokens[computed : computed + count]
                tokens += guesses
                positions += range(computed, length)
            start, end = starts[-1], len(tokens)
            if sequence.scored:
                rows += range(start, end)
            elif done:
                rows += range(end - 1 - len(guesses), end)
            starts.append(end)
            lengths.append(length)
        width = -(-max(lengths) // BLOCK)
        tables = np.zeros((len(work), width), np.int32)
        for row, (sequence, _) in zip(tables, work, strict=True):
            held = sequence.table[:width]
            row[: len(held)] = held
        return Batch(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            np.array(starts, np.int32),
            np.array(lengths, np.int32),
            tables,
            np.array(rows, np.int32),
        )

    @staticmethod
    def size(batch: Batch) -> StepSize:
        """What makes this batch's step long."""
        total, drawn = len(batch.tokens), len(batch.logit_rows)
        return StepSize(drawn, total - drawn, int(batch.positions.sum()) + total)
