"""Which experts a token goes through, and what each contributes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mainspring.engine.source import Source
from mainspring.kernels import Array, Kernels, Weight

__all__ = ["Router"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The likeliest experts of each token, computed in float32 whatever the model's format.

    Experts may be in `groups` of equal size. Then only those of the `best` groups can be chosen: by
    their likeliest expert or, with a correction, by the sum of their two likeliest (DeepSeek V3,
    arXiv 2412.19437).
    """

    kernels: Kernels
    weight: Weight
    top: int
    """experts for each token"""
    normalize: bool
    """the chosen experts' shares are scaled to add up to 1"""
    sigmoid: bool = False
    """an expert's score is its own sigmoid instead of a share of the softmax"""
    correction: Array | None = None
    """[experts], added to the scores to choose by, not to the shares"""
    groups: int = 1
    best: int = 1
    scale: float = 1.0
    """of the shares at last"""

    @property
    def count(self) -> int:
        """experts in all"""
        return self.weight.n

    @classmethod
    def load(
        cls,
        source: Source,
        name: str,
        *,
        count: int,
        top: int,
        normalize: bool,
        bias: bool = False,
        sigmoid: bool = False,
        correction: Array | None = None,
        groups: int = 1,
        best: int = 1,
        scale: float = 1.0,
    ) -> Router:
        """The tensor `name`.weight [count, hidden], and `name`.bias. Raises ModelError."""
        if count % groups:
            fault = f"is {groups}; {count} experts make no such groups"
            raise source.fields.refuse("n_group", fault)
        return cls(
            kernels=source.kernels,
            weight=source.weight([name], (count,), source.sizes.hidden, bias=bias, role="router"),
            top=top,
            normalize=normalize,
            sigmoid=sigmoid,
            correction=correction,
            groups=groups,
            best=best,
            scale=scale,
        )

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x [rows, hidden] -> each row's experts [rows, top] and their shares [rows, top]."""
        logits = self.kernels.linear(x, self.weight)
        if self.sigmoid:
            scores = 1 / (1 + np.exp(-np.maximum(logits, np.float32(-80))))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        ranked = scores if self.correction is None else scores + self.correction
        if self.groups > 1:
            ranked = np.where(self._within(ranked), ranked, np.float32(-np.inf))
        chosen = np.argsort(-ranked, axis=1, kind="stable")[:, : self.top]
        shares = np.take_along_axis(scores, chosen, axis=1)
        if self.normalize:
            shares /= shares.sum(axis=1, keepdims=True)
        return chosen, shares if self.scale == 1 else shares * np.float32(self.scale)

    def _within(self, ranked: Array) -> Array:
        """Whether an expert is of its row's best groups: bool [rows, experts]."""
        grouped = ranked.reshape(len(ranked), self.groups, -1)
        most = -np.sort(-grouped, axis=2)[:, :, : 1 if self.correction is None else 2].sum(axis=2)
        best = np.argsort(-most, axis=1, kind="stable")[:, : self.best]
        within = np.zeros((len(ranked), self.groups), bool)
        np.put_along_axis(within, best, True, axis=1)
        return np.repeat(within, grouped.shape[2], axis=1)
