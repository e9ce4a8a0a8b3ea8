"""The bytes of packed matrices, which prepared models keep in files."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from mainspring.kernels import Format, LastingKernels, load_kernels
from mainspring.kernels.cpu import machine

# Of the layout "panels-1". When these change, change kLayout in native/operations.h too: files
# that were prepared before must not be read as if they were new.
SUMS: dict[Format, int] = {
    "float32": 0xCFFA56C4,
    "bf16": 0x35F88ABD,
    "int8": 0xAD016379,
    "int4": 0xA217CC8B,
}


def numbers(n: int, k: int) -> np.ndarray:
    """From integers alone, so that they are the same with every numpy."""
    steps = np.arange(n * k, dtype=np.uint32) * np.uint32(2654435761)
    return ((steps >> 8).astype(np.float32) / (1 << 23) - 1).reshape(n, k)


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
def test_the_layout_is_the_one_that_was_named(kernels: LastingKernels, format: Format) -> None:
    assert kernels.layout == "panels-1"
    memory = kernels.weight(numbers(130, 420), format=format).memory
    assert zlib.crc32(memory) == SUMS[format]


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
def test_bytes_make_the_weight(kernels: LastingKernels, format: Format) -> None:
    matrix, bias = numbers(130, 420), numbers(1, 130)[0]
    one = kernels.weight(matrix, bias, format=format)
    same = kernels.blank(130, 420, bias, format=format)
    assert (same.n, same.k, same.format, same.nbytes) == (130, 420, format, one.nbytes)
    same.memory[:] = one.memory
    x = numbers(5, 420)
    assert np.array_equal(kernels.linear(x, same), kernels.linear(x, one))


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
def test_any_bytes_are_safe(kernels: LastingKernels, format: Format) -> None:
    """A file may hold anything: it gives numbers or NaN, and no crash."""
    weight = kernels.blank(130, 420, format=format)
    for byte in (0x80, 0xFF, 0x7F):
        weight.memory[:] = byte
        assert kernels.linear(numbers(5, 420), weight).shape == (5, 130)
        assert kernels.embedding(np.array([0, 129], np.int32), weight).shape == (2, 420)


def test_memory_outlives_its_weight(kernels: LastingKernels) -> None:
    memory = kernels.weight(numbers(64, 32), format="float32").memory
    assert memory.dtype == np.uint8
    assert np.array_equal(memory.view(np.float32).reshape(32, 64).T, numbers(64, 32))


def test_sizes_that_cannot_be(kernels: LastingKernels) -> None:
    for n, k in ((0, 5), (5, 0), (-1, 5), (1 << 31, 5)):
        with pytest.raises(ValueError, match="n and k must be 1 to"):
            kernels.blank(n, k, format="int8")
    with pytest.raises(MemoryError):
        kernels.blank((1 << 31) - 1, (1 << 31) - 1, format="float32")


def test_the_reference_keeps_nothing() -> None:
    assert not isinstance(load_kernels("reference"), LastingKernels)
    assert all(isinstance(load_kernels(isa), LastingKernels) for isa in machine().isas)
