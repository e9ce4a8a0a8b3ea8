"""A checkpoint whose experts are in MXFP4, as gpt-oss is published.

Microscaling (OCP MX 1.0): 32 numbers along k share a power of two. A number is one of 16: a sign
and 0, 0.5, 1, 1.5, 2, 3, 4 or 6. All of them are bfloat16 numbers, so nothing is rounded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mainspring.engine.checkpoint import DTYPES, SafetensorsCheckpoint, Tensor
from mainspring.errors import ModelError
from mainspring.kernels import Array

__all__ = ["Mxfp4Checkpoint"]

GROUP = 32
SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NUMBERS = np.array([sign * size for sign in (1, -1) for size in SIZES], np.float32)
PAIRS = np.stack([np.tile(NUMBERS, 16), np.repeat(NUMBERS, 16)], axis=1)
"""[256, 2]: what a byte holds, the lower half first"""
MIDDLE = 127
"""the stored exponent of 1"""
HIGHEST = MIDDLE + 120
"""of an exponent; beyond are numbers that are not finite"""
DTYPE = "MXFP4"


@dataclass(frozen=True, slots=True)
class Expert:
    """Where one expert's product lies."""

    name: str
    """of the tensors, without their endings"""
    index: int
    rows: int
    k: int
    paired: bool
    """rows 0, 2, .. are the gate's and 1, 3, .. those that it opens"""

    def ordered(self, rows: Array) -> Array:
        """The gate's rows before the others."""
        return np.concatenate([rows[::2], rows[1::2]]) if self.paired else rows


class Mxfp4Checkpoint:
    """Presents `experts.I.NAME.weight` [n, k] and `.bias` [n] of each expert, where the files hold
    `experts.NAME_blocks` [count, n, k / 32, 16], `_scales` [count, n, k / 32] and `_bias`.

    Raises ModelError naming the tensor.
    """

    def __init__(self, stored: SafetensorsCheckpoint) -> None:
        self.stored = stored
        self.config: dict[str, Any] = {**stored.config, "quantization_config": None}
        self.generation = stored.generation
        self.stamps = stored.stamps
        self.experts: dict[str, Expert] = {}
        self.tensors: dict[str, Tensor] = dict(self._presented())

    def _presented(self) -> Iterator[tuple[str, Tensor]]:
        left = dict(self.stored.tensors)
        for name in self.stored.tensors:
            if not name.endswith("_blocks"):
                continue
            whole = name.removesuffix("_blocks")
            parts = {end: left.pop(f"{whole}_{end}", None) for end in ("blocks", "scales", "bias")}
            yield from self._split(whole, parts)
        yield from left.items()

    def _split(self, name: str, parts: dict[str, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
        blocks, scales, bias = parts["blocks"], parts["scales"], parts["bias"]
        if blocks is None or len(blocks.shape) != 4 or blocks.shape[3] != GROUP // 2:
            raise ModelError(f"{name}_blocks must be [experts, n, k / {GROUP}, {GROUP // 2}]")
        count, rows, groups, _ = blocks.shape
        if scales is None or scales.shape != (count, rows, groups):
            raise ModelError(f"{name}_scales must be {[count, rows, groups]}")
        if bias is None or bias.shape != (count, rows):
            raise ModelError(f"{name}_bias must be {[count, rows]}")
        for end, tensor in (("blocks", blocks), ("scales", scales)):
            if tensor.dtype != "U8":
                raise ModelError(f"{name}_{end} is {tensor.dtype}; it must be U8")
        folder, _, product = name.rpartition(".")
        paired = product == "gate_up_proj"
        if paired and rows % 2:
            raise ModelError(f"{name}_blocks has {rows} rows; gate and up must have as many")
        for index in range(count):
            expert = Expert(name, index, rows, groups * GROUP, paired)
            path, nbytes = f"{folder}.{index}.{product}", (blocks.nbytes + scales.nbytes) // count
            self.experts[f"{path}.weight"] = self.experts[f"{path}.bias"] = expert
            shape = (rows, expert.k)
            yield f"{path}.weight", replace(blocks, dtype=DTYPE, shape=shape, nbytes=nbytes)
            yield f"{path}.bias", replace(bias, shape=(rows,), nbytes=bias.nbytes // count)

    def dtype_of(self, name: str) -> np.dtype[Any]:
        if self.tensors[name].dtype == DTYPE:
            return DTYPES["BF16"]
        expert = self.experts.get(name)
        return self.stored.dtype_of(name if expert is None else f"{expert.name}_bias")

    def read(self, name: str, out: Array) -> None:
        """As `Checkpoint.read`, an expert's matrix as the bits of bfloat16."""
        expert = self.experts.get(name)
        if expert is None:
            self.stored.read(name, out)
        elif name.endswith(".bias"):
            stored = np.empty_like(out)
            self.stored.read(f"{expert.name}_bias", stored, expert.index)
            out[:] = expert.ordered(stored)
        else:
            numbers = PAIRS[self._bytes(expert, "blocks", GROUP // 2)]
            exponents = self._bytes(expert, "scales").astype(np.int32)
            if exponents.max() > HIGHEST:
                raise ModelError(f"{expert.name}_scales holds numbers that are not finite")
            numbers *= np.ldexp(np.float32(1), exponents - MIDDLE)[:, :, None, None]
            bits = numbers.reshape(expert.rows, expert.k).view(np.uint32) >> 16
            out[:] = expert.ordered(bits)

    def _bytes(self, expert: Expert, end: str, *more: int) -> Array:
        out = np.empty((expert.rows, expert.k // GROUP, *more), np.uint8)
        self.stored.read(f"{expert.name}_{end}", out, expert.index)
        return out

    def close(self) -> None:
        self.stored.close()
