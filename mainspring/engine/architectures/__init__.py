"""One model family a file; the file's name is the Hugging Face `model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mainspring.engine.batch import Batch
from mainspring.kernels import Array, Cache, Format

__all__ = ["Architecture", "ModelShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a loaded model that others plan with."""

    family: str
    """Hugging Face `model_type`"""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    """width of one head"""
    vocabulary: int
    context: int
    """positions at most, prompt and output together"""
    parameters: int
    eos: tuple[int, ...]
    """token ids that end a sequence"""
    weight_bytes: int
    format: Format


class Architecture(Protocol):
    """One loaded model. Its only state is its weights."""

    @property
    def shape(self) -> ModelShape: ...

    def forward(self, batch: Batch, cache: Cache) -> Array:
        """Compute the batch's tokens, storing their keys and values in `cache`.

        Returns float32 logits [R, vocabulary] of `batch.logit_rows`, a new array that the caller
        may change. A row's logits depend on its sequence's tokens alone, bit for bit.
        """
        ...
