"""The gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mainspring.engine.adapter import AdaptedRows
from mainspring.engine.layers.linear import Linear
from mainspring.engine.source import Source
from mainspring.kernels import Activation, Array

__all__ = ["FeedForward"]


@dataclass(frozen=True, slots=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), with gate and up as one product."""

    gate_up: Linear
    down: Linear
    activation: Activation

    @classmethod
    def load(
        cls,
        source: Source,
        prefix: str,
        *,
        names: Sequence[str] = ("gate_proj", "up_proj"),
        inner: int = 0,
        bias: bool = False,
    ) -> FeedForward:
        """The tensors of `prefix`. One of `names`: stored fused. `inner` 0: the model's width."""
        sizes = source.sizes
        inner = inner or sizes.inner
        rows = (inner, inner) if len(names) == 2 else (2 * inner,)
        return cls(
            source.linear([f"{prefix}.{name}" for name in names], rows, sizes.hidden, bias=bias),
            source.linear([f"{prefix}.down_proj"], (sizes.hidden,), inner, bias=bias),
            sizes.activation,
        )

    def __call__(self, x: Array, adapted: AdaptedRows = ()) -> Array:
        """[rows, hidden] -> [rows, hidden]"""
        return self.down(self.gate_up.gated(x, self.activation, adapted), adapted)
