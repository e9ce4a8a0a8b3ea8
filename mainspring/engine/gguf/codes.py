"""Blocks of a GGUF file as the codes and scales of a Weight, where one holds them exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mainspring.engine.codes import Codes
from mainspring.engine.gguf.header import row_bytes
from mainspring.errors import ModelError
from mainspring.kernels import Array, CodedFormat

__all__ = ["KEPT", "unpacked"]

NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
Parts = tuple[Array, Array, Array | None]
"""codes [blocks, numbers], scales and minima [blocks, numbers / 32]"""


def unpacked(dtype: str, data: Array, k: int, name: str) -> Codes:
    """Rows of `k` numbers, uint8 [n, bytes], as Codes. Raises ModelError for infinite scales."""
    format, split, block = KEPT[dtype]
    codes, scales, mins = split(data.reshape(-1, row_bytes(dtype, block)))
    n = len(data)
    finite = np.isfinite(scales).all() and (mins is None or np.isfinite(mins).all())
    if not finite:
        raise ModelError(f"{name} has a scale that is no finite number; the file is damaged")
    mins = None if mins is None else np.ascontiguousarray(mins.reshape(n, -1), np.float32)
    scales = np.ascontiguousarray(scales.reshape(n, -1), np.float32)
    return Codes(np.ascontiguousarray(codes.reshape(n, k), np.int8), scales, mins, format)


def _half(data: Array, at: int) -> Array:
    """float16 at a byte of each block, as float32 [blocks, 1]."""
    found: Array = np.ascontiguousarray(data[:, at : at + 2]).view("<f2").astype(np.float32)
    return found


def _nibbles(data: Array) -> Array:
    """The low halves of the bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _q8_0(data: Array) -> Parts:
    return data[:, 2:].view(np.int8), _half(data, 0), None


def _q5_0(data: Array) -> Parts:
    fifth = np.unpackbits(data[:, 2:6], axis=1, bitorder="little")
    return (_nibbles(data[:, 6:]) | fifth << 4).astype(np.int8) - np.int8(16), _half(data, 0), None


def _iq4_nl(data: Array) -> Parts:
    return NON_LINEAR[_nibbles(data[:, 2:])], _half(data, 0), None


def _q4_0(data: Array) -> Parts:
    scales = _half(data, 0)
    return _nibbles(data[:, 2:]), scales, -8 * scales


def _q4_1(data: Array) -> Parts:
    return _nibbles(data[:, 4:]), _half(data, 0), _half(data, 2)


def _q4_k(data: Array) -> Parts:
    """Eight six-bit scales and minima in 12 bytes; each 64 numbers lie in 32 bytes."""
    low, middle, high = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    mins = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=1)
    codes = _nibbles(data[:, 16:].reshape(-1, 4, 32))
    return codes, _half(data, 0) * scales, -(_half(data, 2) * mins)


KEPT: dict[str, tuple[CodedFormat, Callable[[Array], Parts], int]] = {
    "Q8_0": ("q8", _q8_0, 32),
    "Q5_0": ("q8", _q5_0, 32),
    "IQ4_NL": ("q8", _iq4_nl, 32),
    "Q4_0": ("q4", _q4_0, 32),
    "Q4_1": ("q4", _q4_1, 32),
    "Q4_K": ("q4", _q4_k, 256),
}
"""types that a format of the kernels holds, how, and the numbers of a block"""
