"""Matrices that are quantized in their files: integers, and what makes them numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mainspring.kernels import Array, CodedFormat

__all__ = ["Codes", "HoldsCodes", "share"]


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix [n, k] as `Kernels.coded_weight` takes it: value = code * scale (+ min)."""

    codes: Array
    """int8 [n, k]"""
    scales: Array
    """float32 [n, groups of `format` along k]"""
    mins: Array | None
    format: CodedFormat

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def size(self) -> int:
        return self.codes.size

    @classmethod
    def stacked(cls, parts: Sequence[Codes]) -> Codes:
        """One matrix of several of the same format and k, one under the other."""
        if len(parts) == 1:
            return parts[0]
        mins = [part.mins for part in parts if part.mins is not None]
        return cls(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scales for part in parts]),
            np.concatenate(mins) if mins else None,
            parts[0].format,
        )


@runtime_checkable
class HoldsCodes(Protocol):
    """A Checkpoint with tensors that a Weight can hold as they are."""

    def kept(self, name: str) -> CodedFormat | None:
        """The format that holds the tensor exactly; None: `read` it and round."""
        ...

    def codes(self, name: str) -> Codes:
        """A tensor that is `kept`. Raises ModelError where its numbers make no sense."""
        ...


def share(format: CodedFormat) -> int:
    """How many numbers along k share a scale."""
    return 32 if format in ("q8", "q4") else 128
