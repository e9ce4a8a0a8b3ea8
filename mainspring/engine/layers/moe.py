"""A mixture of experts: each token goes through a few feed-forward layers of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.engine.adapter import AdaptedRows
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.linear import Linear
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source
from mainspring.kernels import Array

__all__ = ["Experts"]


@dataclass(frozen=True, slots=True)
class Experts:
    """The router, its experts, and one that every token goes through."""

    router: Router
    experts: tuple[FeedForward, ...]
    shared: FeedForward | None = None

    @classmethod
    def load(
        cls,
        source: Source,
        prefix: str,
        names: Sequence[str],
        router: Router,
        *,
        inner: int,
        shared: FeedForward | None = None,
    ) -> Experts:
        """The tensors of `prefix`, in either of two layouts.

        One tensor for each expert and product, `names` being gate, up and down; or all experts
        together in `experts.gate_up_proj` [count, 2 inner, hidden] and `experts.down_proj`.
        """
        hidden, count = source.sizes.hidden, router.count
        if f"{prefix}.experts.gate_up_proj" in source:
            first = source.stack(f"{prefix}.experts.gate_up_proj", count, 2 * inner, hidden)
            last = source.stack(f"{prefix}.experts.down_proj", count, hidden, inner)
        else:
            gate, up, down = names
            first, last = [], []
            for expert in range(count):
                path = f"{prefix}.experts.{expert}."
                first.append(source.weight([path + gate, path + up], (inner, inner), hidden))
                last.append(source.weight([path + down], (hidden,), inner))
        experts = tuple(
            FeedForward(
                Linear(source.kernels, gate_up),
                Linear(source.kernels, down),
                source.sizes.activation,
            )
            for gate_up, down in zip(first, last, strict=True)
        )
        return cls(router, experts, shared)

    def __call__(self, x: Array, adapted: AdaptedRows = ()) -> Array:
        """[rows, hidden] -> [rows, hidden]; an Adapter changes the shared expert alone.

        A row's experts are added in order of their number, so its sum does not depend on what
        other rows chose.
        """
        chosen, shares = self.router(x)
        out = np.zeros_like(x)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            out[rows] += self.experts[expert](x[rows]) * shares[rows, places, None]
        if self.shared is not None:
            out += self.shared(x, adapted)
        return out
