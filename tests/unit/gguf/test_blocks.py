"""Blocks of every type are the numbers that gguf-py makes of them, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainspring.engine.gguf.codes import KEPT, unpacked
from mainspring.engine.gguf.header import BLOCKS
from mainspring.errors import ModelError
from mainspring.kernels import dequantize

RECORDED = Path(__file__).with_name("recorded.npz")
"""random blocks and what gguf-py 0.19 makes of them: subnormal, infinite and NaN scales too"""
NAMES = [name for name in BLOCKS if name not in ("F32", "F16", "BF16")]


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """NaN is NaN, whatever its other bits."""
    equal = ours.view(np.uint32) == theirs.view(np.uint32)
    return bool((equal | (np.isnan(ours) & np.isnan(theirs))).all())


@pytest.mark.parametrize("name", NAMES)
def test_recorded(name: str) -> None:
    with np.load(RECORDED) as recorded:
        blocks, values = recorded[name], recorded[f"{name}_values"]
    assert blocks.shape[1] == BLOCKS[name][1]
    assert values.size == len(blocks) * BLOCKS[name][0]
    out = np.empty(values.size, np.float32)
    dequantize(name, blocks.reshape(-1), out)
    assert same_bits(out, values)


@pytest.mark.parametrize("name", KEPT)
def test_codes_are_the_same_numbers(name: str) -> None:
    with np.load(RECORDED) as recorded:
        blocks, values = recorded[name], recorded[f"{name}_values"].reshape(len(recorded[name]), -1)
    usable = np.isfinite(values).all(axis=1)
    held = unpacked(name, blocks[usable], BLOCKS[name][0], "m")
    numbers = held.codes.reshape(*held.scales.shape, 32) * held.scales[..., None]
    if held.mins is not None:
        numbers = numbers + held.mins[..., None]
    np.testing.assert_array_equal(numbers.reshape(usable.sum(), -1), values[usable])


def test_infinite_scales_are_refused() -> None:
    block = np.full((1, 34), 255, np.uint8)
    with pytest.raises(ModelError, match="m has a scale that is no finite number"):
        unpacked("Q8_0", block, 32, "m")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_live(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    rng, (count, size) = np.random.default_rng(7), BLOCKS[name]
    blocks = rng.integers(0, 256, (20_000, size), np.uint8)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1)
    out = np.empty(20_000 * count, np.float32)
    dequantize(name, blocks.reshape(-1), out)
    assert same_bits(out, values)


@pytest.mark.parametrize(
    ("name", "data", "out"), [("Q9", 34, 32), ("Q8_0", 33, 32), ("Q8_0", 34, 31), ("Q4_K", 144, 0)]
)
def test_sizes_are_checked(name: str, data: int, out: int) -> None:
    with pytest.raises(ValueError, match=r"block format|whole blocks|entries"):
        dequantize(name, np.zeros(data, np.uint8), np.zeros(out, np.float32))
