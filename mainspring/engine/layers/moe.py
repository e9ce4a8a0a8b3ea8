"""A mixture of experts: each token goes through a few feed-forward layers of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.source import Source
from mainspring.kernels import Array, Kernels, Weight

__all__ = ["Experts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The router, in float32 whatever the model's format, and its experts."""

    kernels: Kernels
    router: Weight
    experts: tuple[FeedForward, ...]
    top: int
    """experts for each token"""
    normalize: bool
    """the chosen experts' shares are scaled to add up to 1"""

    @classmethod
    def load(
        cls,
        source: Source,
        prefix: str,
        names: Sequence[str],
        *,
        count: int,
        top: int,
        inner: int,
        normalize: bool,
    ) -> Experts:
        """The tensors of `prefix`, in either of two layouts.

        One tensor for each expert and product, `names` being gate, up and down; or all experts
        together in `experts.gate_up_proj` [count, 2 inner, hidden] and `experts.down_proj`.
        """
        hidden = source.sizes.hidden
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
        return cls(
            kernels=source.kernels,
            router=source.weight([f"{prefix}.gate"], (count,), hidden, role="router"),
            experts=tuple(
                FeedForward(source.kernels, gate_up, down, source.sizes.activation)
                for gate_up, down in zip(first, last, strict=True)
            ),
            top=top,
            normalize=normalize,
        )

    def __call__(self, x: Array) -> Array:
        """[rows, hidden] -> [rows, hidden]

        A row's experts are added in order of their number, so its sum does not depend on what
        other rows chose.
        """
        chosen, shares = self._route(x)
        out = np.zeros_like(x)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            out[rows] += self.experts[expert](x[rows]) * shares[rows, places, None]
        return out

    def _route(self, x: Array) -> tuple[Array, Array]:
        """Each row's experts [rows, top] and their shares [rows, top]."""
        logits = self.kernels.linear(x, self.router)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : self.top]
        shares = np.take_along_axis(shares, chosen, axis=1)
        if self.normalize:
            shares /= shares.sum(axis=1, keepdims=True)
        return chosen, shares
