"""Checkpoints that others have quantized: the same numbers as they say they hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.checkpoint import SafetensorsCheckpoint
from mainspring.engine.codes import HoldsCodes
from mainspring.engine.source import packed
from mainspring.engine.weights import (
    inspect_checkpoint,
    load_model,
    load_prepared,
    open_checkpoint,
    prepare_model,
    rounding_error,
)
from mainspring.errors import ModelError
from mainspring.kernels import load_kernels
from tests.parity.loop import Loop
from tests.quantized import LAYOUTS, Stored, quantized_checkpoint, save

KERNELS = load_kernels(threads=2)
Copy = Callable[[str], Path]
PROMPT = list(range(1, 80))


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one of the layouts. Not to be changed."""
    name = request.param
    return quantized_checkpoint(tmp_path_factory.mktemp("quantized") / name, LAYOUTS[name])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    home = tmp_path_factory.mktemp("originals")
    return cache(lambda name: quantized_checkpoint(home / name, LAYOUTS[name]))


@pytest.fixture
def copy(originals: Copy, tmp_path: Path) -> Copy:
    """A checkpoint in the layout of that name, to be changed."""
    return lambda name: shutil.copytree(originals(name), tmp_path / name)


def tensors_of(path: Path) -> Stored:
    """What the file holds."""
    types = {"I32": "i4", "F16": "f2", "F32": "f4", "BF16": "u2", "I8": "i1", "F8_E4M3": "u1"}
    found: Stored = {}
    with closing(SafetensorsCheckpoint(path)) as files:
        for name, tensor in files.tensors.items():
            found[name] = tensor.dtype, np.empty(tensor.shape, types[tensor.dtype])
            files.read(name, found[name][1])
    return found


def logits(path: Path, format: Any) -> np.ndarray:
    model = load_model(path, KERNELS, format=format)
    return Loop(model, KERNELS, 1).feed([PROMPT], all_logits=True)


def test_numbers_are_what_the_layout_says(made: Path) -> None:
    """Read as floats, and held by a Weight: exactly the numbers, but for rounding to float32."""
    layout, dense = LAYOUTS[made.name], tensors_of(made / "dense")
    with closing(open_checkpoint(made)) as checkpoint:
        assert isinstance(checkpoint, HoldsCodes)
        for name, (_, expected) in dense.items():
            assert checkpoint.tensors[name].shape == expected.shape
            found = np.empty(expected.shape, "f4")
            checkpoint.read(name, found)
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)
            kept = layout.kept if ".layers." in name and "proj" in name else None
            assert checkpoint.kept(name) == kept
            if kept is not None:
                matrix = checkpoint.codes(name)
                weight = packed(KERNELS, matrix, None, "float32")
                assert weight.format == kept
                held = KERNELS.embedding(np.arange(weight.n, dtype=np.int32), weight)
                np.testing.assert_allclose(held, expected, rtol=1e-6, atol=1e-9)


def test_a_model_computes_what_its_numbers_do(made: Path) -> None:
    """Activations of int8 beside those of float32: a percent or so."""
    ours, expected = logits(made, "float32"), logits(made / "dense", "float32")
    miss = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    limit = 1e-5 if LAYOUTS[made.name].kept is None else 0.03
    assert miss < limit


@pytest.mark.parametrize("name", ["awq-128", "gptq-8-32", "gptq-4-128"])
def test_prepared_has_the_same_bits(name: str, copy: Copy) -> None:
    path = copy(name)
    prepare_model(path, KERNELS, format="bf16")
    ours, theirs = (by(path, KERNELS, format="bf16") for by in (load_prepared, load_model))
    assert ours is not None
    assert ours.shape == theirs.shape
    a, b = (Loop(m, KERNELS, 1).feed([PROMPT], all_logits=True) for m in (ours, theirs))
    assert a.tobytes() == b.tobytes()


def test_memory_is_foretold(made: Path) -> None:
    info = inspect_checkpoint(made)
    for format in ("bf16", "int8"):
        model = load_model(made, KERNELS, format=format)
        assert model.shape.format == (LAYOUTS[made.name].kept or format)
        # What is packed is padded to whole panels.
        assert (
            info.weight_bytes[format] <= model.shape.weight_bytes <= 1.3 * info.weight_bytes[format]
        )


def test_types_of_a_fused_weight_may_differ(copy: Copy) -> None:
    """q is quantized and k is not: all three are rounded."""
    path = copy("awq-128")
    k = "self_attn.k_proj."
    tensors = {name: tensor for name, tensor in tensors_of(path).items() if k not in name}
    tensors |= {name: t for name, t in tensors_of(path / "dense").items() if k in name}
    save(path / "model.safetensors", tensors)
    ours, expected = logits(path, "float32"), logits(path / "dense", "float32")
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 0.03


def test_what_is_served_is_said(made: Path) -> None:
    said, kept = inspect_checkpoint(made).quantization, LAYOUTS[made.name].kept
    errors = rounding_error(made)
    if kept is not None:
        assert said.endswith(f"kept exactly as {kept}")
        assert errors == {}
    else:
        assert said.endswith("rounded to the format asked for")
        assert 0 == errors["float32"] < errors["bf16"] < 0.003 < errors["int8"] < 0.02
    assert inspect_checkpoint(made / "dense").quantization == ""


# Lies ---------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    edit(config["quantization_config"])
    (path / "config.json").write_text(json.dumps(config))


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("awq-128", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'; known: awq"),
    ("awq-128", {"quant_method": None}, "quant_method is missing"),
    ("awq-128", {"bits": 3}, "bits is 3; 4 and 8 are supported"),
    ("awq-128", {"bits": 8}, "bits is 8; AWQ has 4"),
    ("awq-128", {"bits": "4"}, "bits must be an integer"),
    ("awq-128", {"group_size": 0}, "group_size is 0"),
    ("awq-128", {"group_size": -2}, "group_size is -2"),
    ("awq-128", {"group_size": 64}, "scales has shape [2, 256], config.json makes it [4, 256]"),
    ("awq-128", {"version": "gemv"}, "version is gemv; only the layout gemm"),
    ("gptq-4-128", {"bits": 8}, "scales has shape [2, 256], config.json makes it [1, 256]"),
    ("gptq-4-128", {"desc_act": 1}, "desc_act must be true or false"),
    ("gptq-4-128-reordered", {"desc_act": False}, "g_idx is not in order"),
    ("gptq-4-128-zeros", {"sym": True}, "qzeros are not all 8"),
    ("gptq-4-128", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    ("gptq-4-128", {"quant_method": "awq"}, "scales has shape"),
    ("compressed-4-128", {"config_groups": {}}, "config_groups must hold 1 to 64"),
    ("compressed-4-128", {"config_groups": {"a": {}}}, "a must hold `weights`"),
    ("compressed-4-128", {"config_groups": {"a": {"weights": {"num_bits": 2}}}}, "num_bits is 2"),
    ("fp8-blocks", {"fmt": "e5m2"}, "fmt is 'e5m2'; known: e4m3"),
    ("fp8-blocks", {"weight_block_size": [64, 64]}, "weight_scale_inv has shape [2, 2]"),
    ("fp8-blocks", {"weight_block_size": [0, 128]}, "is 0"),
    ("fp8-blocks", {"quant_method": "gptq", "bits": 4}, "is F8_E4M3, which gptq has not"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CONFIGS)
def test_absurd_fields_are_refused_by_name(
    name: str, changes: dict[str, Any], message: str, copy: Copy
) -> None:
    path = copy(name)
    change(path, lambda config: config.update(changes))
    with pytest.raises(ModelError) as refused:
        load_model(path, KERNELS, format="bf16")
    assert message in refused.value.message


def test_a_config_that_is_no_object(copy: Copy) -> None:
    path = copy("awq-128")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": [1]}))
    with pytest.raises(ModelError, match="must be an object"):
        inspect_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "part", "stored", "message"),
    [
        ("awq-128", "qzeros", None, "qzeros is missing"),
        ("awq-128", "scales", ("I32", np.zeros((2, 256), "i4")), "scales is I32; it must be F32"),
        ("awq-128", "scales", ("F16", np.full((2, 256), np.nan, "f2")), "scales hold NaN"),
        ("awq-128", "qweight", ("I32", np.zeros(8192, "i4")), "must have two dimensions"),
        ("awq-128", "qweight", ("I32", np.zeros((128, 32), "i4")), "config.json makes it [1, 256]"),
        ("awq-128", "weight", ("F32", np.zeros((256, 256), "f4")), "in the checkpoint twice"),
        ("awq-128", "weight", ("I8", np.zeros((256, 256), "i1")), "in the checkpoint twice"),
        ("awq-128", "bias", ("F16", np.ones(256, "f2")), "has no use for"),
        ("gptq-4-128-reordered", "g_idx", ("I32", np.full(256, 2, "i4")), "there are 2"),
        ("gptq-4-128-reordered", "g_idx", ("I32", np.full(256, -1, "i4")), "there are 2"),
        ("compressed-int8-row", "weight_scale", None, "weight_scale is missing"),
        ("fp8-blocks", "weight", ("F8_E4M3", np.full((256, 256), 127, "u1")), "holds NaN"),
        ("fp8-blocks", "weight_scale_inv", None, "weight_scale is missing"),
    ],
)
def test_lying_tensors(
    name: str, part: str, stored: tuple[str, np.ndarray] | None, message: str, copy: Copy
) -> None:
    path = copy(name)
    tensors = tensors_of(path)
    at = f"model.layers.0.self_attn.o_proj.{part}"
    if stored is None:
        del tensors[at]
    else:
        tensors[at] = stored
    save(path / "model.safetensors", tensors)
    with pytest.raises(ModelError) as refused:
        load_model(path, KERNELS, format="bf16")
    assert message in refused.value.message
