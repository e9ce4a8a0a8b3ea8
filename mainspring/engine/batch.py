"""What one forward pass computes."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from mainspring.kernels import Array, blocks_of

__all__ = ["Batch", "Piece"]

Piece = tuple[list[int], int, Array]
"""A sequence's new tokens, at least one; the position of the first; its block table."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The new tokens of S sequences, flat, sequence after sequence: T rows in all.

    Everything an Architecture needs to know is in here; it keeps no state between batches but the
    KV cache. Arrays are int32 and C-contiguous.
    """

    tokens: Array
    """[T] token ids"""
    positions: Array
    """[T] position of each token in its sequence"""
    starts: Array
    """[S + 1] rows starts[s] .. starts[s + 1] - 1 are sequence s's; each has at least one"""
    lengths: Array
    """[S] context length after the new tokens"""
    tables: Array
    """[S, B] block ids in order of position; entries past ceil(length / BLOCK) are unspecified"""
    logit_rows: Array
    """[R] rows whose logits are wanted, ascending"""

    @classmethod
    def of(cls, pieces: Items[Piece], logit_rows: list[int]) -> Batch:
        """Lay the pieces' tokens out flat."""
        tokens: list[int] = []
        positions: list[int] = []
        starts = [0]
        lengths: list[int] = []
        for new, first, _ in pieces:
            tokens += new
            lengths.append(first + len(new))
            positions += range(first, lengths[-1])
            starts.append(len(tokens))
        width = blocks_of(max(lengths))
        tables = np.zeros((len(pieces), width), np.int32)
        for row, (_, _, table) in zip(tables, pieces, strict=True):
            held = table[:width]
            row[: len(held)] = held
        return cls(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            np.array(starts, np.int32),
            np.array(lengths, np.int32),
            tables,
            np.array(logit_rows, np.int32),
        )
