"""Experts in MXFP4: every number as it is, and every wrong file named."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mainspring.engine.checkpoint import SafetensorsCheckpoint
from mainspring.engine.mxfp4 import Mxfp4Checkpoint
from mainspring.engine.weights import (
    inspect_checkpoint,
    load_model,
    load_prepared,
    prepare_model,
)
from mainspring.errors import ModelError
from mainspring.kernels import bf16_values, load_kernels
from tests.parity.checkpoint import write_checkpoint
from tests.parity.loop import Loop
from tests.parity.rows import ROWS

RECORDED = Path(__file__).parents[2] / "parity" / "recorded" / "gpt_oss_mxfp4.npz"
EXPERTS = "model.layers.0.mlp.experts."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with np.load(RECORDED) as recorded:
        layout = json.loads(str(recorded["layout"]))
    return write_checkpoint(tmp_path / "m", ROWS["gpt_oss_mxfp4"], layout)


def change(path: Path, name: str, **tensors: Any) -> None:
    """Replace parts of a product."""
    file = path / "model.safetensors"
    stored = load_file(file)
    save_file({**stored, **{f"{EXPERTS}{name}_{e}": v for e, v in tensors.items()}}, file)


def test_each_of_the_sixteen_numbers(path: Path) -> None:
    """Rows of one expert, the gate's first, with exponents from the smallest to 2^119."""
    blocks = np.full((4, 128, 2, 16), 0x10, np.uint8)
    blocks[1, 4, 1] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2
    scales = np.full((4, 128, 2), 127, np.uint8)
    scales[1, 4] = 0, 246
    change(path, "gate_up_proj", blocks=blocks, scales=scales)
    bits = np.empty((128, 64), np.uint16)
    with closing(Mxfp4Checkpoint(SafetensorsCheckpoint(path))) as checkpoint:
        checkpoint.read(EXPERTS + "1.gate_up_proj.weight", bits)
    row = bf16_values(bits)[2].astype(float)
    np.testing.assert_array_equal(row[:32], [0, 2.0**-128] * 16)
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    np.testing.assert_array_equal(row[32:], np.tile([*numbers, *-numbers], 2) * 2.0**119)


@pytest.mark.parametrize(
    ("match", "parts"),
    [
        ("_blocks must be", {"blocks": np.zeros((4, 128, 32), np.uint8)}),
        ("_blocks must be", {"blocks": np.zeros((4, 128, 4, 8), np.uint8)}),
        ("it must be U8", {"blocks": np.zeros((4, 128, 2, 16), np.int8)}),
        ("_scales must be", {"scales": np.zeros((4, 128, 3), np.uint8)}),
        ("_bias must be", {"bias": np.zeros((3, 128), np.float32)}),
        ("missing from", {"blocks": np.zeros((0, 128, 2, 16), np.uint8),
                          "scales": np.zeros((0, 128, 2), np.uint8),
                          "bias": np.zeros((0, 128), np.float32)}),
        ("shape", {"blocks": np.zeros((4, 128, 3, 16), np.uint8),
                   "scales": np.zeros((4, 128, 3), np.uint8)}),
        ("gate and up", {"blocks": np.zeros((4, 127, 2, 16), np.uint8),
                         "scales": np.zeros((4, 127, 2), np.uint8),
                         "bias": np.zeros((4, 127), np.float32)}),
    ],
)  # fmt: skip
def test_wrong_parts_are_named(path: Path, match: str, parts: dict[str, Any]) -> None:
    change(path, "gate_up_proj", **parts)
    with pytest.raises(ModelError, match=match):
        inspect_checkpoint(path)


def test_numbers_that_are_not_finite_are_refused(path: Path) -> None:
    change(path, "down_proj", scales=np.full((4, 64, 2), 255, np.uint8))
    with pytest.raises(ModelError, match="down_proj_scales holds numbers that are not finite"):
        load_model(path, load_kernels("auto", 1), format="bf16")


def test_a_prepared_model_is_the_same(path: Path) -> None:
    kernels = load_kernels("auto", 1)
    prepare_model(path, kernels, format="bf16")
    prepared = load_prepared(path, kernels, format="bf16")
    assert prepared is not None
    loaded = load_model(path, kernels, format="bf16")
    assert prepared.shape == loaded.shape
    logits = [Loop(model, kernels, 1).feed([[1, 2, 3]]) for model in (prepared, loaded)]
    np.testing.assert_array_equal(logits[0], logits[1])
