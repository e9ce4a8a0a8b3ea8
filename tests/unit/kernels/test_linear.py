"""Matrix products against the reference, and their independence of batch and threads."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from mainspring.kernels import Activation, Array, Format, Kernels, bf16_bits, bf16_values

FORMATS = get_args(Format)
SHAPES = [(1, 1), (1, 33), (63, 33), (64, 128), (65, 127), (130, 200), (257, 300)]
ROWS = (0, 1, 5, 6, 7, 33, 200)


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equals_the_reference(
    kernels: Kernels, reference: Kernels, format: Format, n: int, k: int
) -> None:
    matrix, bias = numbers(1, n, k), numbers(2, n)
    ours = kernels.weight(matrix, bias, format=format)
    theirs = reference.weight(matrix, bias, format=format)
    assert (ours.n, ours.k, ours.format) == (n, k, format)
    for rows in ROWS:
        x = numbers(rows, rows, k)
        y = kernels.linear(x, ours)
        assert y.dtype == np.float32
        # Both add k products of size 1 in float32, in different orders.
        np.testing.assert_allclose(y, reference.linear(x, theirs), rtol=2e-5, atol=4e-6 * k**0.5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packed_numbers_are_the_references(
    kernels: Kernels, reference: Kernels, format: Format, n: int, k: int
) -> None:
    """The quantizer's choices too, bit for bit: a model has the same weights on every machine."""
    matrix = numbers(3, n, k)
    ids = np.random.default_rng(4).integers(0, n, 40).astype(np.int32)
    ours = kernels.embedding(ids, kernels.weight(matrix, format=format))
    theirs = reference.embedding(ids, reference.weight(matrix, format=format))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_batch(
    kernels: Kernels, alone: Kernels, format: Format
) -> None:
    matrix, bias, x = numbers(5, 200, 333), numbers(6, 200), numbers(7, 120, 333)
    weight, other = (k.weight(matrix, bias, format=format) for k in (kernels, alone))
    whole = kernels.linear(x, weight)
    np.testing.assert_array_equal(alone.linear(x, other), whole)
    for row in (0, 1, 47, 48, 119):
        np.testing.assert_array_equal(kernels.linear(x[row : row + 1], weight)[0], whole[row])
    for first, last in ((3, 10), (40, 60), (1, 120)):
        np.testing.assert_array_equal(kernels.linear(x[first:last], weight), whole[first:last])


@pytest.mark.parametrize("format", FORMATS)
def test_sources_may_be_half_precision(kernels: Kernels, format: Format) -> None:
    halves = numbers(8, 70, 150).astype(np.float16)
    halves[0, :5] = [0, 6e-8, -6e-5, 65504, -1]  # subnormal and extreme
    bits = bf16_bits(numbers(9, 70, 150))
    ids = np.arange(70, dtype=np.int32)
    for source, floats in ((halves, halves.astype(np.float32)), (bits, bf16_values(bits))):
        a, b = (kernels.weight(m, format=format) for m in (source, floats))
        np.testing.assert_array_equal(kernels.embedding(ids, a), kernels.embedding(ids, b))


def test_extreme_activations_stay_exact(kernels: Kernels, reference: Kernels) -> None:
    """All products at their largest: a 16-bit sum on the way would saturate."""
    matrix = np.ones((64, 256), np.float32)
    x = np.ones((3, 256), np.float32) * np.array([[1], [-1], [0]], np.float32)
    matrix[1::2] = -1
    for format in ("int8", "int4"):
        y = kernels.linear(x, kernels.weight(matrix, format=format))
        np.testing.assert_allclose(y, x @ matrix.T, rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_visible_and_in_its_row(
    kernels: Kernels, format: Format, poison: float
) -> None:
    x = numbers(10, 9, 140)
    weight = kernels.weight(numbers(11, 66, 140), format=format)
    clean = kernels.linear(x, weight)
    x[4, 130] = poison
    y = kernels.linear(x, weight)
    assert not np.isfinite(y[4]).any()
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


def test_zeros_and_tiny_numbers(kernels: Kernels, reference: Kernels) -> None:
    matrix = np.zeros((5, 260), np.float32)
    matrix[1, :128], matrix[2, 3], matrix[3] = 1e-38, 1e-25, 1e-31
    for format in FORMATS:
        for x in (np.zeros((2, 260), np.float32), np.full((2, 260), 1e-33, np.float32)):
            ours = kernels.linear(x, kernels.weight(matrix, format=format))
            theirs = reference.linear(x, reference.weight(matrix, format=format))
            np.testing.assert_allclose(ours, theirs, atol=1e-37)


def test_quantization_error(kernels: Kernels) -> None:
    """What rounding costs on normally distributed weights, relative to their size."""
    matrix = numbers(12, 128, 1024)
    ids = np.arange(128, dtype=np.int32)
    limits = {"float32": 0.0, "bf16": 0.002, "int8": 0.008, "int4": 0.09}
    for format, limit in limits.items():
        stored = kernels.embedding(ids, kernels.weight(matrix, format=format))
        assert np.sqrt(np.mean((stored - matrix) ** 2)) <= limit


def test_packed_sizes(kernels: Kernels) -> None:
    matrix = np.zeros((128, 1024), np.float32)
    bits = {f: kernels.weight(matrix, format=f).nbytes * 8 / matrix.size for f in FORMATS}
    assert bits == {"float32": 32, "bf16": 16, "int8": 8.25, "int4": 4.5}


def test_wrong_arguments(kernels: Kernels) -> None:
    matrix = numbers(13, 8, 16)
    weight = kernels.weight(matrix, format="int8")
    for x in (
        numbers(0, 2, 15),
        numbers(0, 2, 16).astype(np.float64),
        numbers(0, 2, 32)[:, ::2],
        numbers(0, 16),
    ):
        with pytest.raises(ValueError, match="x must"):
            kernels.linear(x, weight)
    with pytest.raises(ValueError, match="format must be"):
        kernels.weight(matrix, format="int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matrix must be"):
        kernels.weight(matrix.astype(np.int64), format="int8")
    with pytest.raises(ValueError, match="C-contiguous"):
        kernels.weight(matrix.T, format="int8")
    with pytest.raises(ValueError, match="empty"):
        kernels.weight(matrix[:0], format="int8")
    with pytest.raises(ValueError, match="bias must have 8"):
        kernels.weight(matrix, numbers(0, 7), format="int8")
    for bad in (-1, 8):
        with pytest.raises(ValueError, match=r"ids\[1\] is"):
            kernels.embedding(np.array([0, bad], np.int32), weight)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("width", [1, 33, 64, 100, 192])  # halves of whole panels, and others
@pytest.mark.parametrize("activation", get_args(Activation))
def test_gated_equals_the_reference(
    kernels: Kernels,
    reference: Kernels,
    format: Format,
    width: int,
    activation: Activation,
) -> None:
    matrix, bias, x = numbers(8, 2 * width, 70), numbers(9, 2 * width), numbers(10, 65, 70)
    bias[0], x[0] = 200, x[0] * 100  # where e^x overflows
    ours = kernels.weight(matrix, bias, format=format)
    theirs = reference.weight(matrix, bias, format=format)
    y = kernels.gated_linear(x, ours, activation)
    assert y.shape == (65, width)
    expected = reference.gated_linear(x, theirs, activation)
    # Errors of both halves as in `linear`, each multiplied by the other half.
    gate, up = np.split(np.abs(reference.linear(x, theirs)), 2, axis=1)
    allowed = 2e-5 * np.abs(expected) + 4e-6 * 70**0.5 * (1 + np.abs(x).max()) * (gate + up + 1)
    assert (np.abs(y - expected) <= allowed).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("width", [100, 192])
def test_gated_rows_do_not_depend_on_their_batch(
    kernels: Kernels, alone: Kernels, format: Format, width: int
) -> None:
    matrix, x = numbers(11, 2 * width, 333), numbers(12, 120, 333)
    x[7, 0] = np.nan
    weight, other = (k.weight(matrix, format=format) for k in (kernels, alone))
    whole = kernels.gated_linear(x, weight, "silu")
    assert np.isnan(whole).all(axis=1).tolist() == [row == 7 for row in range(120)]
    np.testing.assert_array_equal(alone.gated_linear(x, other, "silu"), whole)
    for row in (0, 1, 47, 48, 119):
        alone_row = kernels.gated_linear(x[row : row + 1], weight, "silu")
        np.testing.assert_array_equal(alone_row[0], whole[row])


def test_gated_refuses_what_has_no_halves(kernels: Kernels) -> None:
    weight = kernels.weight(numbers(13, 5, 7), format="float32")
    with pytest.raises(ValueError, match="halves"):
        kernels.gated_linear(numbers(14, 1, 7), weight, "silu")
    weight = kernels.weight(numbers(13, 4, 7), format="float32")
    with pytest.raises(ValueError, match="activation"):
        kernels.gated_linear(numbers(14, 1, 7), weight, "relu")  # type: ignore[arg-type]
