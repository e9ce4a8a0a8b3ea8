"""Norms, rotary embedding and activations against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.kernels import Array, Kernels

WIDTHS = (1, 7, 64, 200, 896)


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 5, 130])
def test_rms_norm(kernels: Kernels, reference: Kernels, rows: int, width: int) -> None:
    x, add, gain = numbers(1, rows, width), numbers(2, rows, width), numbers(3, width)
    np.testing.assert_allclose(
        kernels.rms_norm(x, gain, 1e-6), reference.rms_norm(x, gain, 1e-6), rtol=1e-5, atol=1e-6
    )
    ours, theirs = x.copy(), x.copy()
    y = kernels.rms_norm(ours, gain, 1e-6, add=add)
    np.testing.assert_allclose(
        y, reference.rms_norm(theirs, gain, 1e-6, add=add), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(ours, theirs)  # the residual stream is updated in place


def test_head_norm_leaves_the_other_heads(kernels: Kernels, reference: Kernels) -> None:
    ours = numbers(4, 40, 6 * 20 + 3)
    theirs, before, gain = ours.copy(), ours.copy(), numbers(5, 20)
    kernels.head_norm(ours, gain, 1e-5, first=2, heads=3)
    reference.head_norm(theirs, gain, 1e-5, first=2, heads=3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours[:, :40], before[:, :40])
    np.testing.assert_array_equal(ours[:, 100:], before[:, 100:])


@pytest.mark.parametrize(("head", "half"), [(16, 8), (64, 32), (80, 16), (6, 3), (2, 1)])
def test_rope(kernels: Kernels, reference: Kernels, head: int, half: int) -> None:
    ours = numbers(6, 33, 5 * head)
    theirs, table = ours.copy(), numbers(7, 50, 2, half)
    positions = np.random.default_rng(8).integers(0, 50, 33).astype(np.int32)
    kernels.rope(ours, table, positions, heads=4, head=head)
    reference.rope(theirs, table, positions, heads=4, head=head)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_rope_of_a_part_in_pairs(kernels: Kernels, reference: Kernels) -> None:
    ours = numbers(12, 33, 3 * 24)
    theirs, before, table = ours.copy(), ours.copy(), numbers(13, 50, 2, 5)
    options: dict[str, Any] = {"heads": 2, "head": 24, "first": 14, "paired": True}
    positions = np.arange(33, dtype=np.int32)
    kernels.rope(ours, table, positions, **options)
    reference.rope(theirs, table, positions, **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    same = np.ones(72, bool)
    same[14:24] = same[38:48] = False
    np.testing.assert_array_equal(ours[:, same], before[:, same])
    first, second, (c, s) = before[7, 14], before[7, 15], table[7, :, 0]
    np.testing.assert_allclose(ours[7, 14:16], [first * c - second * s, second * c + first * s])


def test_softcap(kernels: Kernels, reference: Kernels) -> None:
    ours = np.concatenate([numbers(10, 9, 1001) * s for s in (1e-6, 0.3, 10, 1e4)])
    theirs = ours.copy()
    kernels.softcap(ours, 20.0)
    reference.softcap(theirs, 20.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_poison_stays_visible(kernels: Kernels) -> None:
    x = numbers(11, 4, 70)
    x[2, 69] = np.nan
    gain = np.ones(70, np.float32)
    y = kernels.rms_norm(x, gain, 1e-6)
    assert np.isnan(y).any(axis=1).tolist() == [False, False, True, False]


def test_rows_do_not_depend_on_their_batch(kernels: Kernels, alone: Kernels) -> None:
    x, gain = numbers(12, 300, 500), numbers(13, 500)
    whole = kernels.rms_norm(x, gain, 1e-6)
    np.testing.assert_array_equal(alone.rms_norm(x, gain, 1e-6), whole)
    np.testing.assert_array_equal(kernels.rms_norm(x[7:8], gain, 1e-6), whole[7:8])


def test_wrong_arguments(kernels: Kernels) -> None:
    x, gain = numbers(0, 3, 40), np.ones(40, np.float32)
    with pytest.raises(ValueError, match="gain must have 40"):
        kernels.rms_norm(x, gain[:39], 1e-6)
    with pytest.raises(ValueError, match="add must have 3"):
        kernels.rms_norm(x, gain, 1e-6, add=x[:2])
    with pytest.raises(ValueError, match="x must be float32"):
        kernels.rms_norm(x.astype(np.float16), gain, 1e-6)
    with pytest.raises(ValueError, match="first and heads"):
        kernels.head_norm(x, gain[:10], 1e-6, first=2, heads=3)
    table = np.ones((4, 2, 5), np.float32)
    for positions in ([0, 1, 4], [0, -1, 2]):
        with pytest.raises(ValueError, match="positions"):
            kernels.rope(x, table, np.array(positions, np.int32), heads=4, head=10)
    positions = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="heads"):
        kernels.rope(x, table, positions, heads=5, head=10)
    with pytest.raises(ValueError, match="wider"):
        kernels.rope(x, table, positions, heads=4, head=8)
    with pytest.raises(ValueError, match="cap"):
        kernels.softcap(x, 0.0)
