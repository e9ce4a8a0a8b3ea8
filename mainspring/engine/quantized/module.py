"""One quantized matrix: its tensors in the file, in each of the layouts, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mainspring.engine.checkpoint import Tensor
from mainspring.engine.codes import Codes, share
from mainspring.engine.quantized.scheme import Scheme
from mainspring.errors import ModelError
from mainspring.kernels import Array, CodedFormat

__all__ = ["IGNORED", "KINDS", "Module"]

KINDS: dict[str, tuple[str, ...]] = {
    "qweight": ("qzeros", "scales", "g_idx"),
    "weight_packed": ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
    "weight": ("weight_scale", "weight_zero_point", "weight_scale_inv"),
}
"""ends of the names of a quantized matrix: of its integers, and of what belongs to them"""
IGNORED = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "kv_scale")
"""scales of activations, which are quantized by their own size here, and of KV caches"""
NEEDED = {
    "awq": ("scales", "qzeros"),
    "gptq": ("scales", "qzeros"),
    "compressed-tensors": ("weight_scale",),
    "fp8": (),
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""the column of eight that each 4 bits of a word belong to, lowest bits first"""

Read = Callable[[str], Array]
FLOATS = ("F32", "F16", "BF16")
STORED = {
    "awq": {"qweight": "I32"},
    "gptq": {"qweight": "I32"},
    "compressed-tensors": {"weight_packed": "I32", "weight": "I8"},
    "fp8": {"weight": "F8_E4M3"},
}
"""types of the integers"""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What every layout comes to: value = (integer - zero) * scale."""

    integers: Array
    """int16 or uint8 [n, k]"""
    scales: Array
    """float32 [n, groups]"""
    zeros: Array | None
    """[n, groups]; None: they are all the middle of the range, and taken off already"""
    places: Array | None
    """int32 [k]: the group of each number; None: they lie side by side"""


class Module:
    """The matrix called `name`, of which the file holds `parts` by the ends of their names.

    `read` gives the numbers of a part, bfloat16 as uint16 bits and fp8 as bytes. Raises ModelError
    naming the tensor and what is wrong with it.
    """

    def __init__(
        self, name: str, kind: str, parts: Mapping[str, Tensor], scheme: Scheme, read: Read
    ) -> None:
        self.name = name
        self._read = read
        self.kind = kind
        self.parts = parts
        self.scheme = scheme
        self.shape = self._shape()
        """(n, k)"""
        missing = [part for part in NEEDED[scheme.method] if part not in parts]
        if missing:
            raise ModelError(f"{name}.{missing[0]} is missing from the checkpoint")
        self.groups = self._groups()

    # What the headers say -----------------------------------------------------------------------

    def kept(self) -> CodedFormat | None:
        """The fastest format that holds the matrix exactly; None: there is none."""
        scheme = self.scheme
        if scheme.method == "fp8" or not scheme.ordered:
            return None
        by = scheme.group if self.groups > 1 else 128
        if by % 32:
            return None
        if not scheme.symmetric:
            return "q4" if scheme.bits == 4 else None
        if by % 128:
            return "q8" if scheme.bits == 8 else "q4"
        return "int8" if scheme.bits == 8 else "int4"

    def _shape(self) -> tuple[int, int]:
        tensor = self.parts[self.kind]
        if len(tensor.shape) != 2:
            raise self._wrong(self.kind, "must have two dimensions")
        if STORED[self.scheme.method].get(self.kind) != tensor.dtype:
            raise self._wrong(self.kind, f"is {tensor.dtype}, which {self.scheme.method} has not")
        first, second = tensor.shape
        if self.kind == "weight":
            return first, second
        per = 32 // self.scheme.bits
        if self.scheme.method == "awq":
            return second * per, first
        return (second, first * per) if self.kind == "qweight" else (first, second * per)

    def _groups(self) -> int:
        """Groups of a row, after checking the shapes of all parts."""
        n, k = self.shape
        groups = -(-k // self.scheme.group) if self.scheme.group else 1
        per = 32 // self.scheme.bits
        if self.scheme.method in ("awq", "gptq"):
            self._expect("scales", FLOATS, (groups, n))
            self._expect("qzeros", ("I32",), (groups, -(-n // per)))
        elif self.scheme.method == "compressed-tensors":
            whole = () if self.scheme.group else ((n,), (1,), ())
            self._expect("weight_scale", FLOATS, (n, groups), *whole)
            packed = self.parts.get("weight_zero_point")
            rows = -(-n // per) if packed is not None and packed.dtype == "I32" else n
            self._expect("weight_zero_point", ("I32", "I8"), (rows, groups), *whole)
        else:
            tall, wide = self.scheme.block
            blocks = [(-(-n // tall), -(-k // wide))] if tall and wide else []
            for name in ("weight_scale", "weight_scale_inv"):
                self._expect(name, FLOATS, (n, 1), (n,), (1,), (), *blocks)
        for name in ("g_idx", "weight_g_idx"):
            self._expect(name, ("I32",), (k,))
        return groups

    def _expect(self, part: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        if (found := self.parts.get(part)) is None:
            return
        if found.dtype not in dtypes:
            raise self._wrong(part, f"is {found.dtype}; it must be {' or '.join(dtypes)}")
        if found.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self._wrong(part, f"has shape {list(found.shape)}, config.json makes it {wanted}")

    def _wrong(self, part: str, reason: str) -> ModelError:
        return ModelError(f"{self.name}.{part} {reason}")

    # What the tensors hold ----------------------------------------------------------------------

    def codes(self) -> Codes:
        """The integers as they are, in the format of `kept`."""
        format = self.kept()
        assert format is not None
        found = self._unpacked()
        if found.places is not None:
            raise self._wrong("g_idx", "is not in order, though config.json says so (desc_act)")
        scales = self._spread(found.scales, share(format))
        if format != "q4":
            return Codes(found.integers.astype(np.int8), scales, None, format)
        codes, zeros = found.integers, found.zeros
        if zeros is None:
            codes, zeros = codes + np.int16(8), np.full_like(found.scales, 8)
        zeros = self._spread(zeros.astype(np.float32), 32)
        return Codes(codes.astype(np.int8), scales, -(zeros * scales), format)

    def _spread(self, of_groups: Array, size: int) -> Array:
        """[n, groups] -> one for each `size` numbers of k."""
        k = self.shape[1]
        count = -(-k // size)
        times = -(-self.scheme.group // size) if self.groups > 1 else count
        return np.ascontiguousarray(np.repeat(of_groups, times, axis=1)[:, :count])

    def values(self) -> Array:
        """The matrix in float32 [n, k]."""
        if self.scheme.method == "fp8":
            return self._floats()
        found = self._unpacked()
        k = self.shape[1]
        places = found.places
        if places is None:
            places = np.arange(k) // (self.scheme.group or k)
        values = found.integers.astype(np.float32)
        if found.zeros is not None:
            values -= found.zeros.astype(np.float32)[:, places]
        values *= found.scales[:, places]
        return values

    def _unpacked(self) -> Unpacked:
        unpack = {"awq": self._awq, "gptq": self._gptq}.get(self.scheme.method, self._compressed)
        found = unpack()
        if not np.isfinite(found.scales).all():
            raise self._wrong("scales", "hold NaN or infinity: the file is damaged")
        if found.zeros is None or not self.scheme.symmetric:
            return found
        middle = 1 << (self.scheme.bits - 1)
        if (found.zeros != middle).any():
            raise self._wrong(
                "qzeros", f"are not all {middle}, though config.json says sym: set sym to false"
            )
        integers = found.integers.astype(np.int16) - np.int16(middle)
        return Unpacked(integers, found.scales, None, found.places)

    def _awq(self) -> Unpacked:
        integers, zeros = (_awq_columns(self._read(part)) for part in ("qweight", "qzeros"))
        scales = np.ascontiguousarray(_floats(self._read("scales")).T)
        return Unpacked(integers, scales, zeros, None)

    def _gptq(self) -> Unpacked:
        bits, (n, _) = self.scheme.bits, self.shape
        integers = _packed(self._read("qweight").T, bits)
        zeros = _packed(self._read("qzeros"), bits)[:, :n].T.astype(np.int16)
        zeros = (zeros + np.int16(self.scheme.offset)) & np.int16((1 << bits) - 1)
        scales = np.ascontiguousarray(_floats(self._read("scales")).T)
        return Unpacked(integers, scales, zeros, self._places("g_idx"))

    def _compressed(self) -> Unpacked:
        (n, _), groups = self.shape, self.groups
        middle = np.int16(1 << (self.scheme.bits - 1))
        if self.kind == "weight_packed":
            integers = _packed(self._read(self.kind), self.scheme.bits).astype(np.int16)
        else:
            integers = self._read(self.kind).astype(np.int16) + middle
        scales = _floats(self._read("weight_scale"))
        scales = np.broadcast_to(scales.reshape(-1, groups), (n, groups)).astype(np.float32)
        zeros = np.full((n, groups), middle)
        if (point := self.parts.get("weight_zero_point")) is not None:
            stored = self._read("weight_zero_point")
            if point.dtype == "I32":
                zeros = _packed(stored.T, self.scheme.bits).T[:n].astype(np.int16)
            else:
                zeros = np.broadcast_to(stored.astype(np.int16).reshape(-1, groups), (n, groups))
                zeros = zeros + middle
        return Unpacked(integers, scales, zeros, self._places("weight_g_idx"))

    def _places(self, part: str) -> Array | None:
        """The group of each number along k; None where they lie side by side."""
        k = self.shape[1]
        if part not in self.parts or not self.scheme.group:
            return None
        places = self._read(part)
        if places.min() < 0 or places.max() >= self.groups:
            raise self._wrong(part, f"names groups that are not there; there are {self.groups}")
        return None if (places == np.arange(k) // self.scheme.group).all() else places

    def _floats(self) -> Array:
        """fp8 numbers times the scale of the matrix, the row or the block."""
        n, k = self.shape
        values = E4M3[self._read("weight")]
        names = [name for name in ("weight_scale_inv", "weight_scale") if name in self.parts]
        if not names:
            raise self._wrong("weight_scale", "is missing from the checkpoint")
        scales = _floats(self._read(names[0]))
        if scales.size in (1, n) and (scales.ndim < 2 or scales.shape[1] == 1):
            spread = scales.reshape(-1, 1)
        else:
            tall, wide = self.scheme.block
            spread = np.repeat(np.repeat(scales, tall, axis=0)[:n], wide, axis=1)[:, :k]
        values = np.asarray(values * spread, np.float32)
        if not np.isfinite(values).all():
            raise self._wrong("weight", "or its scale holds NaN or infinity: the file is damaged")
        return values


def _floats(array: Array) -> Array:
    """float32 of float32, float16, or the bits of bfloat16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _packed(words: Array, bits: int) -> Array:
    """int32 [rows, columns] -> uint8 [rows, columns * 32 / bits], lowest bits first."""
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return data
    out = np.empty((data.shape[0], data.shape[1] * 2), np.uint8)
    out[:, 0::2], out[:, 1::2] = data & 15, data >> 4
    return out


def _awq_columns(words: Array) -> Array:
    """int32 [rows, columns] -> uint8 [8 columns, rows]."""
    columns = np.ascontiguousarray(words.T)
    out = np.empty((columns.shape[0], 8, columns.shape[1]), np.uint8)
    for i, place in enumerate(AWQ_ORDER):
        out[:, place] = (columns >> np.int32(4 * i)) & np.int32(15)
    return out.reshape(-1, columns.shape[1])


def _e4m3() -> Array:
    """All 256 numbers of FP8 E4M3 (arXiv 2209.05433): no infinity, two NaN."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, (codes & 7) / 8
    size: Any = np.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (
        np.maximum(exponent, 1) - 7
    )
    size[codes & 127 == 127] = np.nan
    return np.asarray(np.where(codes & 128, -size, size), np.float32)


E4M3 = _e4m3()
