"""What a LoRA adapter adds to a model's products (Hu 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mainspring.kernels import Array, LowRank

__all__ = ["AdaptedRows", "Adapter", "Slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the matrix of a checkpoint's tensor lies in a model: one of a product's, maybe fused
    with others.
    """

    index: int
    """of the product"""
    first: int
    """its first row there, so the first column of the result that is its own"""
    n: int
    k: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """Matrices of low rank for some of a model's products. It has no state and no name."""

    parts: Mapping[int, tuple[tuple[LowRank, int], ...]]
    """of each product, by its index, the matrices and the columns at which they begin"""
    digest: bytes
    """32 bytes over all that makes its numbers: only equals share keys and values"""
    rank: int
    """the largest of its matrices"""
    nbytes: int


AdaptedRows = tuple[tuple[Array, Adapter], ...]
"""The rows of a batch, int32, ascending, of each Adapter that is used there."""
