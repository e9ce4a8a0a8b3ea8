"""What a step will take, learned from what steps took."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mainspring.engine.architectures import ModelShape

__all__ = ["CostModel", "StepSize", "attended"]

MEMORY = 46.0
"""A step counts half as much after about this many more: the machine changes within minutes."""
GUESS = 0.1
"""The guess of a coefficient counts like this share of the first step that shows it."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """What makes a step long."""

    drawn: int
    """rows whose logits are computed"""
    prefill: int
    """the other rows"""
    attended: int
    """cached tokens read by attention, summed over all rows"""


class CostModel:
    """seconds = fixed + decode * drawn + token * prefill + attention * attended.

    Coefficients are at least 0. They minimise the squared relative error over past steps with
    exponentially fading weights, by one sweep of coordinate descent on the normal equations a
    step (Franc, Hlavac, Navara 2005: sequential coordinate-wise non-negative least squares). A
    coefficient that recent steps say nothing about keeps its value. Errors being relative, a step
    that a suspended machine or a cold page cache made k times too long weighs 1/k^2. The first
    guess is the model's arithmetic on a modest machine; the first step sets its scale.
    """

    def __init__(self, shape: ModelShape) -> None:
        operations, bandwidth = 1.5e11, 1e10
        token = 2 * shape.parameters / operations
        self._theta = [
            1e-4 + shape.weight_bytes / bandwidth,
            token,
            token,
            4 * shape.layers * shape.heads * shape.head / operations,
        ]
        self._a = [[0.0] * 4 for _ in range(4)]
        self._b = [0.0] * 4
        self._fade = 0.5 ** (1 / MEMORY)
        self.observed = 0

    @property
    def fixed(self) -> float:
        """Seconds of a step besides its rows."""
        return self._theta[0]

    @property
    def decode(self) -> float:
        """Seconds that one more decoding sequence adds, besides its context."""
        return self._theta[1]

    @property
    def token(self) -> float:
        """Seconds that one more prefill token adds, besides its context."""
        return self._theta[2]

    def predict(self, size: StepSize) -> float:
        """Seconds that a step of this size will take."""
        fixed, decode, token, attention = self._theta
        return fixed + decode * size.drawn + token * size.prefill + attention * size.attended

    def prefill(self, count: int, computed: int) -> float:
        """Seconds that `count` prefill tokens after `computed` ones add to a step."""
        return self._theta[2] * count + self._theta[3] * attended(count, computed)

    def row(self, context: int) -> float:
        """Seconds that one more row whose token is drawn adds, after `context` cached tokens."""
        return self._theta[1] + self._theta[3] * context

    def fitting(self, seconds: float, computed: int) -> int:
        """The most prefill tokens after `computed` ones that add at most `seconds` to a step."""
        if seconds <= 0:
            return 0
        # attention * count^2 / 2 + linear * count = seconds, in the form that is stable for small
        # attention.
        half = self._theta[3] / 2
        linear = self._theta[2] + self._theta[3] * (computed + 0.5)
        root = linear + math.sqrt(linear * linear + 4 * half * seconds)
        return int(2 * seconds / root) if root > 0 else 1 << 30

    def observe(self, size: StepSize, seconds: float) -> None:
        """Learn that a step of this size took `seconds`."""
        seconds = max(seconds, 1e-7)
        if not self.observed:
            scale = seconds / self.predict(size)
            self._theta = [scale * t for t in self._theta]
        self.observed += 1
        x = (1 / seconds, size.drawn / seconds, size.prefill / seconds, size.attended / seconds)
        self._accumulate(x)
        theta = self._theta
        for i, row in enumerate(self._a):
            if x[i] > 0:
                rest = sum(row[j] * theta[j] for j in range(4) if j != i)
                theta[i] = max(0.0, (self._b[i] - rest) / row[i])

    def _accumulate(self, x: tuple[float, float, float, float]) -> None:
        """Fade the normal equations and add a step's features, in units of its own time."""
        fade = self._fade
        for i, row in enumerate(self._a):
            xi = x[i]
            if xi > 0 and row[i] == 0:
                row[i] = GUESS * xi * xi
                self._b[i] = row[i] * self._theta[i]
            for j in range(4):
                row[j] = fade * row[j] + xi * x[j]
            self._b[i] = fade * self._b[i] + xi


def attended(count: int, computed: int) -> int:
    """Tokens that attention reads for `count` rows after `computed` ones: each sees itself too."""
    return count * computed + count * (count + 1) // 2
