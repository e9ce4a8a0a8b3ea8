"""The layer of a decoder: attention and feed-forward around a residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mainspring.engine.adapter import AdaptedRows
from mainspring.engine.batch import Batch
from mainspring.engine.source import Source
from mainspring.kernels import Array, Cache, Kernels

__all__ = ["Attends", "Block", "Mixer", "PostNormBlock", "PreNormBlock", "SandwichBlock"]


class Attends(Protocol):
    """What a block begins with."""

    @property
    def layer(self) -> int: ...

    def __call__(self, x: Array, batch: Batch, cache: Cache) -> Array:
        """x [rows, hidden] -> [rows, hidden]; what the rows leave to later ones is in `cache`."""
        ...


class Mixer(Protocol):
    """What follows attention: a feed-forward layer or a mixture of experts."""

    def __call__(self, x: Array, adapted: AdaptedRows) -> Array:
        """[rows, hidden] -> [rows, hidden]"""
        ...


class Block(Protocol):
    def __call__(self, x: Array, add: Array | None, batch: Batch, cache: Cache) -> Array:
        """One layer over the residual stream `x` [rows, hidden], which is changed in place.

        `add` is what the layer before left to be added to `x`; the result is what this one does.
        So each addition is fused with the norm after it.
        """
        ...


@dataclass(frozen=True, slots=True)
class PreNormBlock:
    """norm, attention, add; norm, feed-forward, add: llama and most after it."""

    kernels: Kernels
    eps: float
    attention_norm: Array
    attention: Attends
    mixer_norm: Array
    mixer: Mixer
    scale: float = 1.0
    """of what attention and feed-forward add"""

    @classmethod
    def load(
        cls, source: Source, attention: Attends, mixer: Mixer, *, scale: float = 1.0
    ) -> PreNormBlock:
        hidden, prefix = source.sizes.hidden, f"model.layers.{attention.layer}."
        return cls(
            source.kernels,
            source.sizes.eps,
            source.vector(prefix + "input_layernorm.weight", hidden),
            attention,
            source.vector(prefix + "post_attention_layernorm.weight", hidden),
            mixer,
            scale,
        )

    def __call__(self, x: Array, add: Array | None, batch: Batch, cache: Cache) -> Array:
        k = self.kernels
        y = k.rms_norm(x, self.attention_norm, self.eps, add=add)
        y = self._scaled(self.attention(y, batch, cache))
        y = k.rms_norm(x, self.mixer_norm, self.eps, add=y)
        return self._scaled(self.mixer(y, batch.adapted))

    def _scaled(self, y: Array) -> Array:
        if self.scale != 1:
            y *= self.scale
        return y


@dataclass(frozen=True, slots=True)
class PostNormBlock:
    """attention, norm, add; feed-forward, norm, add: olmo 2 and 3."""

    kernels: Kernels
    eps: float
    attention: Attends
    attended_norm: Array
    mixer: Mixer
    mixed_norm: Array

    @classmethod
    def load(cls, source: Source, attention: Attends, mixer: Mixer) -> PostNormBlock:
        hidden, prefix = source.sizes.hidden, f"model.layers.{attention.layer}."
        return cls(
            source.kernels,
            source.sizes.eps,
            attention,
            source.vector(prefix + "post_attention_layernorm.weight", hidden),
            mixer,
            source.vector(prefix + "post_feedforward_layernorm.weight", hidden),
        )

    def __call__(self, x: Array, add: Array | None, batch: Batch, cache: Cache) -> Array:
        k = self.kernels
        if add is not None:
            x += add
        y = self.attention(x, batch, cache)
        x += k.rms_norm(y, self.attended_norm, self.eps)
        return k.rms_norm(self.mixer(x, batch.adapted), self.mixed_norm, self.eps)


@dataclass(frozen=True, slots=True)
class SandwichBlock:
    """As PreNormBlock, with a norm after attention and after feed-forward too: gemma 2 and 3."""

    kernels: Kernels
    eps: float
    attention_norm: Array
    attention: Attends
    attended_norm: Array
    mixer_norm: Array
    mixer: Mixer
    mixed_norm: Array

    @classmethod
    def load(cls, source: Source, attention: Attends, mixer: Mixer) -> SandwichBlock:
        """The gains are stored as their distance from 1."""
        hidden, prefix = source.sizes.hidden, f"model.layers.{attention.layer}."
        return cls(
            source.kernels,
            source.sizes.eps,
            1 + source.vector(prefix + "input_layernorm.weight", hidden),
            attention,
            1 + source.vector(prefix + "post_attention_layernorm.weight", hidden),
            1 + source.vector(prefix + "pre_feedforward_layernorm.weight", hidden),
            mixer,
            1 + source.vector(prefix + "post_feedforward_layernorm.weight", hidden),
        )

    def __call__(self, x: Array, add: Array | None, batch: Batch, cache: Cache) -> Array:
        k = self.kernels
        y = k.rms_norm(x, self.attention_norm, self.eps, add=add)
        y = self.attention(y, batch, cache)
        y = k.rms_norm(y, self.attended_norm, self.eps)
        y = k.rms_norm(x, self.mixer_norm, self.eps, add=y)
        y = self.mixer(y, batch.adapted)
        return k.rms_norm(y, self.mixed_norm, self.eps)
