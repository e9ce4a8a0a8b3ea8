"""Choosing tokens: the reference's choices, the right distribution, the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.kernels import Array, Kernels


def draw(
    kernels: Kernels,
    logits: Array,
    *,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    uniform: Any = 0.5,
) -> Array:
    rows = len(logits)
    f = lambda value, dtype: np.broadcast_to(np.asarray(value, dtype), rows).copy()  # noqa: E731
    return kernels.sample(
        np.ascontiguousarray(logits, np.float32),
        f(temperature, np.float32),
        f(top_k, np.int32),
        f(top_p, np.float32),
        f(min_p, np.float32),
        f(uniform, np.float64),
    )


@pytest.mark.parametrize("vocabulary", [1, 7, 260, 5000, 60_000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 10.0, 1e4])
def test_equals_the_reference(
    kernels: Kernels, reference: Kernels, vocabulary: int, spread: float
) -> None:
    rng = np.random.default_rng(vocabulary)
    rows = 24
    logits = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    logits[:, 0] = 0
    options = {
        "temperature": rng.choice([0, 0.3, 1, 2.5], rows),
        "top_k": rng.choice([0, 1, 5, 50, 1_000_000], rows),
        "top_p": rng.choice([1, 0.9, 0.5, 0.0], rows),
        "min_p": rng.choice([0, 0.05, 0.5, 1.0], rows),
        "uniform": rng.random(rows),
    }
    ours, theirs = (draw(k, logits, **options) for k in (kernels, reference))
    # Probabilities differ in the seventh digit: a draw on an edge may fall on its other side.
    assert np.count_nonzero(ours != theirs) <= 1


def test_the_distribution(kernels: Kernels) -> None:
    logits = np.log(np.array([[0.1, 0.4, 0.05, 0.25, 0.2]], np.float32))
    rows = 20_000
    uniform = (np.arange(rows) + 0.5) / rows

    def shares(**options: Any) -> Array:
        ids = draw(kernels, np.repeat(logits, rows, 0), uniform=uniform, **options)
        return np.bincount(ids, minlength=5) / rows

    np.testing.assert_allclose(shares(), [0.1, 0.4, 0.05, 0.25, 0.2], atol=1e-4)
    np.testing.assert_allclose(shares(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-4)
    np.testing.assert_allclose(
        shares(top_p=0.8), [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], atol=1e-4
    )
    np.testing.assert_allclose(shares(min_p=0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-4)
    squares = np.array([0.1, 0.4, 0.05, 0.25, 0.2]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squares / squares.sum(), atol=1e-4)


def test_equals_are_taken_by_id(kernels: Kernels) -> None:
    logits = np.zeros((4, 100_000), np.float32)
    ids = draw(kernels, logits, uniform=[0.0, 0.25, 0.5, 0.99999])
    np.testing.assert_array_equal(ids, [0, 25_000, 50_000, 99_999])
    np.testing.assert_array_equal(draw(kernels, logits, temperature=0), [0] * 4)
    np.testing.assert_array_equal(draw(kernels, logits, top_k=10, uniform=0.999), [9] * 4)
    np.testing.assert_array_equal(
        draw(kernels, logits, top_p=0.5, uniform=0.99999999), [49_999] * 4
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_likeliest(kernels: Kernels, temperature: float) -> None:
    logits = np.random.default_rng(1).standard_normal((6, 1000)).astype(np.float32)
    logits[0, 999] = np.nan
    logits[1] = -np.inf
    logits[2, 5] = np.inf
    logits[3] = np.nan
    logits[4, :999] = -np.inf
    chosen = draw(kernels, logits, temperature=temperature)
    assert chosen[:5].tolist() == [-1, -1, -1, -1, 999]
    assert chosen[5] >= 0


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_extreme_parameters(kernels: Kernels, uniform: float) -> None:
    logits = np.array([[1.0, 3.0, 2.0, -np.inf]], np.float32)
    for options in (
        {"temperature": 1e-30},
        {"temperature": 1e-45},
        {"top_k": 1},
        {"top_p": 0.0},
        {"top_p": 1e-30},
        {"min_p": 1.0},
        {"min_p": 2.0},
    ):
        assert draw(kernels, logits, uniform=uniform, **options)[0] == 1
    assert draw(kernels, logits, uniform=uniform, temperature=1e30)[0] in (0, 1, 2)
    huge = np.array([[3e38, -3e38, 3e38]], np.float32)
    assert draw(kernels, huge, uniform=uniform)[0] in (0, 2)


def test_rows_do_not_depend_on_their_batch(kernels: Kernels, alone: Kernels) -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((40, 30_000)) * 3).astype(np.float32)
    uniform = rng.random(40)
    whole = draw(kernels, logits, top_p=0.95, uniform=uniform)
    np.testing.assert_array_equal(draw(alone, logits, top_p=0.95, uniform=uniform), whole)
    for row in (0, 17, 39):
        single = draw(kernels, logits[row : row + 1], top_p=0.95, uniform=uniform[row])
        assert single[0] == whole[row]


@pytest.mark.parametrize(
    ("vocabulary", "top"), [(1, 1), (300, 0), (300, 20), (40_000, 20), (50, 50)]
)
def test_log_probabilities(kernels: Kernels, reference: Kernels, vocabulary: int, top: int) -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((9, vocabulary)) * 4).astype(np.float32)
    logits[1] = np.round(logits[1])  # many equals
    logits[2, 1:] = -np.inf
    logits[3] = np.nan
    logits[4, 0] = np.inf
    ids = rng.integers(0, vocabulary, 9).astype(np.int32)
    ours = kernels.log_probabilities(logits, ids, top)
    theirs = reference.log_probabilities(logits, ids, top)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5, atol=1e-5)
    assert (ours[1].dtype, ours[2].shape) == (np.int32, (9, top))


def test_wrong_arguments(kernels: Kernels) -> None:
    logits = np.zeros((2, 10), np.float32)
    for options in (
        {"temperature": -1},
        {"temperature": np.nan},
        {"top_k": -1},
        {"top_p": -0.1},
        {"min_p": -0.1},
        {"uniform": 1.0},
        {"uniform": -0.1},
        {"uniform": np.nan},
    ):
        with pytest.raises(ValueError, match="must not be negative"):
            draw(kernels, logits, **options)
    with pytest.raises(ValueError, match="empty"):
        draw(kernels, logits[:, :0])
    ids = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="top must"):
        kernels.log_probabilities(logits, ids, 11)
    with pytest.raises(ValueError, match="ids"):
        kernels.log_probabilities(logits, ids + 10, 1)
    with pytest.raises(ValueError, match="ids must have 2"):
        kernels.log_probabilities(logits, ids[:1], 1)
