"""Products of low rank and the gate by itself, against the reference."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from mainspring.kernels import Array, Format, Kernels, LowRankUse, bf16_bits


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rows(*places: int) -> Array:
    return np.array(places, np.int32)


SHAPES = ((64, 4, 64), (1, 1, 1), (203, 19, 70), (896, 16, 1152), (31, 70, 2100))


def matrices(k: int, r: int, n: int, format: str, seed: int = 0) -> tuple[Array, Array]:
    down, up = numbers(seed, k, r) / np.float32(k**0.5), numbers(seed + 1, r, n)
    return (down, up) if format == "float32" else (bf16_bits(down), bf16_bits(up))


@pytest.mark.parametrize("format", ["float32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(
    kernels: Kernels, reference: Kernels, shape: tuple[int, int, int], format: str
) -> None:
    k, r, n = shape
    x, y, before = numbers(2, 11, k), numbers(3, 11, n + 5), numbers(3, 11, n + 5)
    places = rows(0, 2, 3, 9, 10, 7)
    down, up = matrices(k, r, n, format)
    kernels.add_low_rank(y, x, [(places, kernels.low_rank(down, up), 3)])
    wanted = before.copy()
    reference.add_low_rank(wanted, x, [(places, reference.low_rank(down, up), 3)])
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=2e-5)
    untouched = [1, 4, 5, 6, 8]
    np.testing.assert_array_equal(y[untouched], before[untouched])
    np.testing.assert_array_equal(y[:, :3], before[:, :3])
    np.testing.assert_array_equal(y[:, n + 3 :], before[:, n + 3 :])


@pytest.mark.parametrize("format", ["float32", "bf16"])
def test_a_row_does_not_know_its_batch(kernels: Kernels, alone: Kernels, format: str) -> None:
    height, k, n = 60, 200, 1500
    x, before = numbers(4, height, k), numbers(5, height, n)
    packed = [kernels.low_rank(*matrices(k, r, n, format, r)) for r in (3, 16, 33)]
    rng = np.random.default_rng(6)
    owner = rng.integers(-1, 3, height)
    uses: list[LowRankUse] = [
        (rng.permutation(np.nonzero(owner == i)[0]).astype(np.int32), matrix, 0)
        for i, matrix in enumerate(packed)
    ]
    y = before.copy()
    kernels.add_low_rank(y, x, uses)
    single = before.copy()
    for row in range(height):
        if owner[row] >= 0:
            alone.add_low_rank(single, x, [(rows(row), packed[owner[row]], 0)])
    np.testing.assert_array_equal(y, single)
    np.testing.assert_array_equal(y[owner < 0], before[owner < 0])


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_is_the_end_of_gated_linear(
    kernels: Kernels, format: Format, activation: Literal["silu", "gelu_tanh"]
) -> None:
    for width, k, count in ((1, 5, 2), (64, 96, 1), (64, 96, 40), (100, 130, 7), (256, 64, 130)):
        x, matrix = numbers(7, count, k), numbers(8, 2 * width, k)
        weight = kernels.weight(matrix, format=format)
        np.testing.assert_array_equal(
            kernels.gate(kernels.linear(x, weight), activation),
            kernels.gated_linear(x, weight, activation),
        )


def test_poison_stays_in_its_rows(kernels: Kernels) -> None:
    x, y = numbers(9, 6, 40), numbers(10, 6, 90)
    down, up = matrices(40, 8, 90, "float32")
    up[3, 5] = np.inf
    down[7, 2] = np.nan
    kernels.add_low_rank(y, x, [(rows(1, 4), kernels.low_rank(down, up), 0)])
    assert np.isfinite(y).all(axis=1).tolist() == [True, False, True, True, False, True]


def test_wrong_arguments(kernels: Kernels) -> None:
    x, y = numbers(0, 3, 40), numbers(0, 3, 90)
    down, up = matrices(40, 8, 90, "float32")
    matrix = kernels.low_rank(down, up)
    with pytest.raises(ValueError, match="up must be float32"):
        kernels.low_rank(down, bf16_bits(up))
    with pytest.raises(ValueError, match="up must have 8"):
        kernels.low_rank(down, up[:7])
    with pytest.raises(ValueError, match="empty"):
        kernels.low_rank(down[:0], up)
    with pytest.raises(ValueError, match="first column"):
        kernels.add_low_rank(y, x, [(rows(0), matrix, 1)])
    with pytest.raises(ValueError, match="as wide"):
        kernels.add_low_rank(y, y, [(rows(0), matrix, 0)])
    for place in (3, -1):
        with pytest.raises(ValueError, match=r"rows\[0\]"):
            kernels.add_low_rank(y, x, [(rows(place), matrix, 0)])
    with pytest.raises(ValueError, match="y must have 3"):
        kernels.add_low_rank(y[:2], x, [(rows(0), matrix, 0)])
    with pytest.raises(ValueError, match="activation"):
        kernels.gate(x, "relu")  # type: ignore[arg-type]
