"""A product that adapters can change, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.engine.adapter import AdaptedRows
from mainspring.kernels import Activation, Array, Kernels, LowRankUse, Weight

__all__ = ["Linear"]


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ matrix.T + bias, and for the rows of an Adapter what that adds to it.

    `adapted` says which rows of x belong to which Adapter; rows of none, and a call without any,
    cost nothing and have the bits of the plain product.
    """

    kernels: Kernels
    weight: Weight
    index: int = -1
    """of this product in the model, by which Adapters know it; -1: none changes it"""

    def __call__(self, x: Array, adapted: AdaptedRows = ()) -> Array:
        """[rows, k] -> [rows, n]"""
        y = self.kernels.linear(x, self.weight)
        if uses := self._uses(adapted):
            self.kernels.add_low_rank(y, x, uses)
        return y

    def gated(self, x: Array, activation: Activation, adapted: AdaptedRows = ()) -> Array:
        """[rows, k] -> [rows, n / 2]: the first half of the product gates the second."""
        if not (uses := self._uses(adapted)):
            return self.kernels.gated_linear(x, self.weight, activation)
        y = self.kernels.linear(x, self.weight)
        self.kernels.add_low_rank(y, x, uses)
        return self.kernels.gate(y, activation)

    def _uses(self, adapted: AdaptedRows) -> list[LowRankUse]:
        return [
            (rows, matrix, first)
            for rows, adapter in adapted
            for matrix, first in adapter.parts.get(self.index, ())
        ]
