"""What one forward pass computes."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from mainspring.engine.adapter import AdaptedRows, Adapter
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
    adapted: AdaptedRows = ()
    """the rows of each Adapter"""

    @classmethod
    def of(
        cls,
        pieces: Items[Piece],
        logit_rows: list[int],
        adapters: Items[Adapter | None] = (),
    ) -> Batch:
        """Lay the pieces' tokens out flat; `adapters` are the pieces', or none."""
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
            _adapted(adapters, starts) if any(adapters) else (),
        )


def _adapted(adapters: Items[Adapter | None], starts: list[int]) -> AdaptedRows:
    """Each Adapter's rows together, so that its matrices are read for all of them at once."""
    rows: dict[Adapter, list[int]] = {}
    for adapter, first, end in zip(adapters, starts, starts[1:], strict=False):
        if adapter is not None:
            rows.setdefault(adapter, []).extend(range(first, end))
    return tuple((np.array(places, np.int32), adapter) for adapter, places in rows.items())
