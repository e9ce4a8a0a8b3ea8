"""What the reference kernels keep of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mainspring.kernels import Array, WeightFormat

__all__ = ["GROUP", "SUBGROUP", "ReferenceLowRank", "ReferenceWeight"]

GROUP = 128
SUBGROUP = 32


@dataclass(frozen=True)
class ReferenceWeight:
    """`values` are floats (float32, bf16) or the integers of a quantized matrix.

    `scales` and `mins` are those of each 128 along k, in q8 and q4 of each 32.
    """

    values: Array  # [n, k]
    scales: Array  # [n, groups]; empty for float formats
    bias: Array | None
    format: WeightFormat
    mins: Array | None = None

    @property
    def n(self) -> int:
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        mins = 0 if self.mins is None else self.mins.nbytes
        return self.values.nbytes + self.scales.nbytes + mins

    def matrix(self) -> Array:
        """The dequantized matrix, float32 [n, k]."""
        if not self.scales.size:
            return self.values
        values = self.values * self._spread(self.scales)
        return np.asarray(values if self.mins is None else values + self._spread(self.mins))

    def _spread(self, of_groups: Array) -> Array:
        size = SUBGROUP if self.format in ("q8", "q4") else GROUP
        return np.asarray(np.repeat(of_groups, size, axis=1)[:, : self.k])


@dataclass(frozen=True)
class ReferenceLowRank:
    down: Array  # [k, r]
    up: Array  # [r, n]

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes
