"""What one forward pass computes."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.kernels import Array

__all__ = ["Batch"]


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
