"""A checkpoint whose matrices are quantized, with one tensor for each matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mainspring.engine.checkpoint import DTYPES, Checkpoint, Tensor
from mainspring.engine.codes import Codes
from mainspring.engine.quantized.module import IGNORED, KINDS, Module
from mainspring.engine.quantized.scheme import Scheme
from mainspring.errors import ModelError
from mainspring.kernels import Array, CodedFormat

__all__ = ["QuantizedCheckpoint"]

TYPES: dict[str, np.dtype[Any]] = {
    **DTYPES,
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),  # the bits
}


SOME = 64
"""rows that an error is measured on"""


class QuantizedCheckpoint:
    """Presents `name.weight` [n, k] where the files hold integers, scales and zero points.

    Which matrices are quantized, the files tell; how, `quantization_config`. Raises ModelError
    naming the field or tensor.
    """

    def __init__(self, stored: Checkpoint) -> None:
        given = stored.config["quantization_config"]
        if not isinstance(given, dict):
            raise ModelError(
                "config.json: quantization_config must be an object", param="quantization_config"
            )
        self.stored = stored
        self.config: dict[str, Any] = {**stored.config, "quantization_config": None}
        self.generation = stored.generation
        self.stamps = stored.stamps
        self.scheme = Scheme.of(given)
        self.modules: dict[str, Module] = {}
        self.tensors: Mapping[str, Tensor] = dict(self._presented())

    def _presented(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the files but the parts of a matrix, and the matrices."""
        left = dict(self.stored.tensors)
        for name, tensor in self.stored.tensors.items():
            path, _, kind = name.rpartition(".")
            if (kind == "weight" and tensor.dtype in DTYPES) or kind not in KINDS:
                continue
            parts = {
                part: left.pop(f"{path}.{part}")
                for part in (kind, *KINDS[kind])
                if f"{path}.{part}" in left
            }
            if (twice := f"{path}.weight") in self.modules or (kind != "weight" and twice in left):
                raise ModelError(f"{path} is in the checkpoint twice: {kind} and another form")
            module = Module(path, kind, parts, self.scheme, partial(self._part, path))
            self.modules[f"{path}.weight"] = module
            nbytes = sum(part.nbytes for part in parts.values())
            dtype = "fp8" if self.scheme.method == "fp8" else f"int{self.scheme.bits}"
            yield f"{path}.weight", replace(tensor, dtype=dtype, shape=module.shape, nbytes=nbytes)
        for name, tensor in left.items():
            if not name.endswith(IGNORED):
                yield name, tensor

    def __str__(self) -> str:
        """What `mainspring show` says."""
        formats = {module.kept() for module in self.modules.values()}
        exact = sorted(format for format in formats if format is not None)
        said = [f"kept exactly as {' and '.join(exact)}"] if exact else []
        if None in formats:
            said.append("rounded to the format asked for")
        return f"{self.scheme}: {', others '.join(said) or 'nothing is quantized'}"

    def some_rounded(self) -> Array | None:
        """Rows of the smallest matrix that no format holds exactly, as floats; None: no such."""
        rounded = [module for module in self.modules.values() if module.kept() is None]
        if not rounded:
            return None
        return min(rounded, key=lambda module: module.shape).values()[:SOME]

    def kept(self, name: str) -> CodedFormat | None:
        return self.modules[name].kept() if name in self.modules else None

    def codes(self, name: str) -> Codes:
        return self.modules[name].codes()

    def dtype_of(self, name: str) -> np.dtype[Any]:
        return np.dtype(np.float32) if name in self.modules else self.stored.dtype_of(name)

    def read(self, name: str, out: Array) -> None:
        if name in self.modules:
            out[:] = self.modules[name].values()
        else:
            self.stored.read(name, out)

    def close(self) -> None:
        self.stored.close()

    def _part(self, path: str, part: str) -> Array:
        name = f"{path}.{part}"
        tensor = self.stored.tensors[name]
        dtype = TYPES[tensor.dtype]
        count = math.prod(tensor.shape)
        if count * dtype.itemsize != tensor.nbytes:
            raise ModelError(
                f"{name} {tensor.dtype} {list(tensor.shape)} takes {count * dtype.itemsize} bytes, "
                f"the file has {tensor.nbytes}"
            )
        out = np.empty(tensor.shape, dtype)
        self.stored.read(name, out)
        return out
