"""The least loop that drives an Architecture: no scheduler, every sequence its own blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.kernels import BLOCK, Array, Kernels

__all__ = ["Loop"]


class Loop:
    """Sequences that all start together and grow by one token each."""

    def __init__(self, model: Architecture, kernels: Kernels, sequences: int) -> None:
        shape = model.shape
        self.model = model
        self.blocks = -(-min(shape.context, 256) // BLOCK)
        total = sequences * self.blocks
        self.cache = kernels.cache(shape.layers, total, shape.kv_heads, shape.head, "float32")
        # Block ids are dealt out backwards, so that order in memory is not order of position.
        self.tables = np.arange(total, dtype=np.int32)[::-1].reshape(sequences, -1).copy()
        self.lengths = np.zeros(sequences, np.int32)

    def feed(self, new: Sequence[Sequence[int]], *, all_logits: bool = False) -> Array:
        """Append tokens to each sequence; the logits of the last of each, or of all rows."""
        counts = [len(tokens) for tokens in new]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        before = self.lengths
        self.lengths = (before + counts).astype(np.int32)
        positions = [np.arange(a, b) for a, b in zip(before, self.lengths, strict=True)]
        rows = np.arange(starts[-1]) if all_logits else starts[1:] - 1
        batch = Batch(
            tokens=np.concatenate([np.array(tokens, np.int32) for tokens in new]),
            positions=np.concatenate(positions).astype(np.int32),
            starts=starts,
            lengths=self.lengths,
            tables=self.tables,
            logit_rows=rows.astype(np.int32),
        )
        return self.model.forward(batch, self.cache)
