"""Matrices that are quantized already: kept as they are, and multiplied like the others."""

from __future__ import annotations

import zlib
from typing import Any, get_args

import numpy as np
import pytest

from mainspring.kernels import Array, CodedFormat, Kernels, LastingKernels

FORMATS: tuple[CodedFormat, ...] = get_args(CodedFormat)
SHAPES = [(1, 1), (1, 33), (64, 128), (65, 127), (130, 200), (257, 300)]
ROWS = (0, 1, 4, 6, 7, 33, 100)
SMALLEST = {"int8": -128, "q8": -128, "int4": -8, "q4": 0}
LARGEST = {"int8": 127, "q8": 127, "int4": 7, "q4": 15}
# Of the layout "panels-1"; see test_pack.py.
SUMS = {"q8": 0x3C58FE4E, "q4": 0x9D671860}


def coded(format: CodedFormat, n: int, k: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of `coded_weight`."""
    rng = np.random.default_rng(seed)
    groups = -(-k // (32 if format in ("q8", "q4") else 128))
    return {
        "codes": rng.integers(SMALLEST[format], LARGEST[format] + 1, (n, k), np.int8),
        "scales": (rng.random((n, groups)) / LARGEST[format]).astype(np.float32),
        "mins": rng.standard_normal((n, groups)).astype(np.float32) if format == "q4" else None,
        "bias": rng.standard_normal(n).astype(np.float32),
    }


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equals_the_reference(
    kernels: Kernels, reference: Kernels, format: CodedFormat, n: int, k: int
) -> None:
    given = coded(format, n, k)
    ours, theirs = (each.coded_weight(**given, format=format) for each in (kernels, reference))
    assert (ours.n, ours.k, ours.format) == (n, k, format)
    for rows in ROWS:
        x = numbers(rows, rows, k)
        np.testing.assert_allclose(
            kernels.linear(x, ours), reference.linear(x, theirs), rtol=2e-5, atol=1e-5 * k**0.5
        )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_nothing_is_rounded(kernels: Kernels, format: CodedFormat, n: int, k: int) -> None:
    given = coded(format, n, k)
    size = 32 if format in ("q8", "q4") else 128
    scales = np.repeat(given["scales"], size, axis=1)[:, :k]
    expected = given["codes"] * scales
    if given["mins"] is not None:
        expected = expected + np.repeat(given["mins"], size, axis=1)[:, :k]
    weight = kernels.coded_weight(**given, format=format)
    stored = kernels.embedding(np.arange(n, dtype=np.int32), weight)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_batch(
    kernels: Kernels, alone: Kernels, format: CodedFormat
) -> None:
    given, x = coded(format, 256, 333), numbers(7, 120, 333)
    x[5, 300] = np.nan
    weight, other = (each.coded_weight(**given, format=format) for each in (kernels, alone))
    for call in (
        lambda by, rows, w: by.linear(rows, w),
        lambda by, rows, w: by.gated_linear(rows, w, "silu"),
    ):
        whole = call(kernels, x, weight)
        assert np.isnan(whole).any(axis=1).tolist() == [row == 5 for row in range(120)]
        np.testing.assert_array_equal(call(alone, x, other), whole)
        for first, last in ((0, 1), (47, 48), (3, 7), (3, 10), (40, 60), (1, 120)):
            np.testing.assert_array_equal(call(kernels, x[first:last], weight), whole[first:last])


@pytest.mark.parametrize("format", FORMATS)
def test_extreme_codes_stay_exact(kernels: Kernels, format: CodedFormat) -> None:
    for code in (SMALLEST[format], LARGEST[format]):
        given = coded(format, 64, 256)
        given["codes"][:] = code
        given["scales"][:], given["bias"][:] = 1, 0
        if given["mins"] is not None:
            given["mins"][:] = -8
        x = np.ones((3, 256), np.float32) * np.array([[1], [-1], [0]], np.float32)
        y = kernels.linear(x, kernels.coded_weight(**given, format=format))
        value = code - 8 if format == "q4" else code
        np.testing.assert_allclose(y, np.repeat(x[:, :1] * 256 * value, 64, axis=1), rtol=1e-6)


@pytest.mark.parametrize("format", ["q8", "q4"])
def test_bytes_make_the_weight(kernels: LastingKernels, format: CodedFormat) -> None:
    given = coded(format, 130, 420)
    steps = np.arange(130 * 420, dtype=np.int64) * 7919 % (LARGEST[format] - SMALLEST[format] + 1)
    given["codes"][:] = (steps + SMALLEST[format]).reshape(130, 420)
    for at, name in enumerate(("scales", "mins")):
        if given[name] is not None:
            given[name][:] = (np.arange(130 * 14) + at).reshape(130, 14)
    one = kernels.coded_weight(**given, format=format)
    assert zlib.crc32(one.memory) == SUMS[format]
    same = kernels.blank(130, 420, given["bias"], format=format)
    same.memory[:] = one.memory
    x = numbers(5, 5, 420)
    assert np.array_equal(kernels.linear(x, same), kernels.linear(x, one))
    for byte in (0x80, 0xFF, 0x7F):  # any bytes are safe
        same.memory[:] = byte
        assert kernels.linear(x, same).shape == (5, 130)
        assert kernels.embedding(np.array([0, 129], np.int32), same).shape == (2, 420)


def test_sizes(kernels: Kernels) -> None:
    bits = {}
    for format in FORMATS:
        weight = kernels.coded_weight(**coded(format, 128, 1024) | {"bias": None}, format=format)
        bits[format] = weight.nbytes * 8 / (128 * 1024)
    assert bits == {"int8": 8.25, "int4": 4.5, "q8": 9, "q4": 6}


def test_wrong_arguments(kernels: Kernels) -> None:
    given = coded("q4", 8, 64)
    for changed, message in (
        ({"codes": given["codes"].astype(np.uint8)}, "codes must be int8"),
        ({"codes": given["codes"] + np.int8(1)}, "codes must be 0 to 15"),
        ({"codes": given["codes"] - np.int8(16)}, "codes must be 0 to 15"),
        ({"codes": given["codes"].T}, "C-contiguous|2 entries"),
        ({"scales": given["scales"][:, :1]}, "scales must have 2"),
        ({"mins": given["mins"][:7]}, "mins must have 8"),
        ({"mins": None}, "mins belong"),
        ({"bias": given["bias"][:7]}, "bias must have 8"),
        ({"codes": given["codes"][:0]}, "n and k|must have"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.coded_weight(**given | changed, format="q4")
    for format, message in (("bf16", "format must be"), ("q3", "format must be")):
        with pytest.raises(ValueError, match=message):
            kernels.coded_weight(**given, format=format)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes must be -8 to 7"):
        wide = coded("int4", 8, 64)
        kernels.coded_weight(**wide | {"codes": wide["codes"] + np.int8(1)}, format="int4")
    with pytest.raises(ValueError, match="it chooses no codes"):
        kernels.weight(numbers(0, 4, 4), format="q8")  # type: ignore[arg-type]
