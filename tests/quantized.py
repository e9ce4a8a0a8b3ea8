"""Tiny checkpoints in the layouts of AutoAWQ, GPTQ, compressed-tensors and fp8, written plainly.

Each writer turns a matrix into its tensors and says what numbers they stand for, by loops and
integers of Python's size that share nothing with the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mainspring.kernels import bf16_bits, bf16_values
from tests.tiny import tiny_checkpoint, tiny_config, tiny_tensors

Stored = dict[str, tuple[str, np.ndarray]]
"""name -> (safetensors dtype, numbers)"""
SIZES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384, "num_hidden_layers": 1}

DYNAMIC = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
"""activations, in compressed-tensors"""


@dataclass(frozen=True)
class Layout:
    config: dict[str, Any]
    write: Callable[[np.ndarray], tuple[Stored, np.ndarray]]
    """matrix [n, k] -> (its tensors, the numbers they stand for)"""
    kept: str | None
    """the format that holds them exactly"""


def save(path: Path, tensors: Stored) -> None:
    """A safetensors file of any types."""
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name, (dtype, values) in tensors.items():
        parts.append(np.ascontiguousarray(values).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def quantized_checkpoint(directory: Path, layout: Layout, **changes: Any) -> Path:
    """A tiny llama whose layers are quantized, and beside it `dense`: the same in float32."""
    config = tiny_config(**SIZES, **changes)
    stored: Stored = {}
    dense: Stored = {}
    for name, matrix in tiny_tensors(config).items():
        if ".layers." in name and name.endswith("proj.weight"):
            parts, values = layout.write(matrix)
            path = name.removesuffix(".weight")
            stored |= {f"{path}.{part}": tensor for part, tensor in parts.items()}
            dense[name] = "F32", values.astype(np.float32)
        else:
            stored[name] = dense[name] = "F32", matrix
    for place, tensors, more in (
        (directory, stored, {"quantization_config": layout.config}),
        (directory / "dense", dense, {}),
    ):
        tiny_checkpoint(place, **SIZES, **changes, **more)
        save(place / "model.safetensors", tensors)
    return directory


# Quantizing --------------------------------------------------------------------------------------


def quantize(
    matrix: np.ndarray, bits: int, group: int, symmetric: bool, places: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers 0 .. 2^bits - 1 [n, k], float16 scales and zero points [n, groups]."""
    n, k = matrix.shape
    group = group if group > 0 else k
    places = np.arange(k) // group if places is None else places
    groups = -(-k // group)
    top = 2**bits - 1
    scales, zeros = np.zeros((n, groups), np.float16), np.zeros((n, groups), int)
    for g in range(groups):
        part = matrix[:, places == g]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, g] = (high - low) / top
        zeros[:, g] = 2 ** (bits - 1) if symmetric else np.rint(-low / scales[:, g])
    integers = np.rint(matrix / scales[:, places].astype(float)) + zeros[:, places]
    return np.clip(integers, 0, top).astype(int), scales, zeros


def dense(
    integers: np.ndarray, scales: np.ndarray, zeros: np.ndarray, places: np.ndarray
) -> np.ndarray:
    return (integers - zeros[:, places]) * scales.astype(float)[:, places]


def words(integers: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Pack along the last axis into int32, lowest bits first; `order[i]` goes to place i."""
    per = 32 // bits
    order = order or tuple(range(per))
    rows, columns = integers.shape
    padded = np.zeros((rows, -(-columns // per) * per), np.int64)
    padded[:, :columns] = integers
    out = np.zeros((rows, padded.shape[1] // per), np.int64)
    for i, column in enumerate(order):
        out += padded[:, column::per] * (1 << (bits * i))
    return out.astype(np.uint32).view(np.int32)


# Layouts -----------------------------------------------------------------------------------------


def awq(group: int) -> Layout:
    def write(matrix: np.ndarray) -> tuple[Stored, np.ndarray]:
        k = matrix.shape[1]
        integers, scales, zeros = quantize(matrix, 4, group, False)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        parts: Stored = {
            "qweight": ("I32", words(integers.T, 4, order)),
            "qzeros": ("I32", words(zeros.T, 4, order)),
            "scales": ("F16", scales.T),
        }
        return parts, dense(integers, scales, zeros, np.arange(k) // (group if group > 0 else k))

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Layout({**config, "version": "gemm"}, write, "q4")


def gptq(
    bits: int, group: int, symmetric: bool, kept: str | None, *, v2: bool = False, act: bool = False
) -> Layout:
    def write(matrix: np.ndarray) -> tuple[Stored, np.ndarray]:
        n, k = matrix.shape
        size = group if group > 0 else k
        places = np.arange(k) // size
        if act:
            places = places[np.random.default_rng(k).permutation(k)]
        integers, scales, zeros = quantize(matrix, bits, group, symmetric, places)
        stored = zeros if v2 else (zeros - 1) % 2**bits
        parts: Stored = {
            "qweight": ("I32", words(integers, bits).T),
            "qzeros": ("I32", words(stored.T, bits)),
            "scales": ("F16", scales.T),
            "g_idx": ("I32", places.astype(np.int32)),
            "bias": ("F16", np.zeros(n, np.float16)),
        }
        return parts, dense(integers, scales, zeros, places)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act}
    config |= {"sym": symmetric, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    return Layout(config, write, kept)


def compressed(
    bits: int, group: int, symmetric: bool, kept: str | None, *, packed: bool = True
) -> Layout:
    """pack-quantized, or int-quantized with one scale for each row."""

    def write(matrix: np.ndarray) -> tuple[Stored, np.ndarray]:
        n, k = matrix.shape
        integers, scales, zeros = quantize(matrix, bits, group, symmetric)
        rounded = bf16_values(bf16_bits(scales.astype(np.float32)))
        parts: Stored = {"weight_scale": ("BF16", bf16_bits(rounded))}
        middle = 2 ** (bits - 1)
        if packed:
            parts["weight_packed"] = "I32", words(integers, bits)
            parts["weight_shape"] = "I64", np.array([n, k])
        else:
            parts["weight"] = "I8", (integers - middle).astype(np.int8)
        if not symmetric:
            point = words(zeros.T, bits).T if packed else (zeros - middle).astype(np.int8)
            parts["weight_zero_point"] = ("I32" if packed else "I8"), point
        return parts, dense(integers, rounded, zeros, np.arange(k) // (group if group > 0 else k))

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": None}
    weights |= {"strategy": "group", "group_size": group} if group > 0 else {"strategy": "channel"}
    scheme: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if not packed:
        scheme["input_activations"] = {**DYNAMIC, "type": "int"}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if packed else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    return Layout(config, write, kept)


def e4m3(code: int) -> float:
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def fp8(scale: str, block: tuple[int, int] | None = None, *, method: str = "fp8") -> Layout:
    """`scale`: the name of its tensor. With `block`, one scale for each; else one for each row."""
    numbers = np.array([e4m3(code) for code in range(127)])

    def write(matrix: np.ndarray) -> tuple[Stored, np.ndarray]:
        n, k = matrix.shape
        tall, wide = block or (1, k)
        scales = np.zeros((-(-n // tall), -(-k // wide)), np.float32)
        codes, values = np.zeros((n, k), np.uint8), np.zeros((n, k))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide)
                scales[i, j] = np.abs(matrix[at]).max() / 448
                size = np.abs(matrix[at]) / scales[i, j]
                nearest = np.digitize(size, (numbers[1:] + numbers[:-1]) / 2)
                codes[at] = nearest | (matrix[at] < 0) << 7
                values[at] = np.sign(matrix[at]) * numbers[nearest] * scales[i, j]
        return {"weight": ("F8_E4M3", codes), scale: ("F32", scales)}, values

    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if block:
        config["weight_block_size"] = list(block)
    if method == "compressed-tensors":
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        activations = {**DYNAMIC, "type": "float"}
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        config = {
            "quant_method": method,
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head"],
        }
    return Layout(config, write, None)


LAYOUTS = {
    "awq-128": awq(128),
    "awq-64": awq(64),
    "awq-row": awq(-1),
    "gptq-4-128": gptq(4, 128, True, "int4"),
    "gptq-4-32": gptq(4, 32, True, "q4"),
    "gptq-4-row": gptq(4, -1, True, "int4", act=True),
    "gptq-4-128-zeros": gptq(4, 128, False, "q4"),
    "gptq-4-128-zeros-v2": gptq(4, 128, False, "q4", v2=True),
    "gptq-8-128": gptq(8, 128, True, "int8"),
    "gptq-8-32": gptq(8, 32, True, "q8"),
    "gptq-8-128-zeros": gptq(8, 128, False, None),
    "gptq-4-128-reordered": gptq(4, 128, True, None, act=True),
    "compressed-4-128": compressed(4, 128, True, "int4"),
    "compressed-4-32-zeros": compressed(4, 32, False, "q4"),
    "compressed-8-32": compressed(8, 32, True, "q8"),
    "compressed-8-row": compressed(8, -1, True, "int8"),
    "compressed-int8-row": compressed(8, -1, True, "int8", packed=False),
    "compressed-int8-row-zeros": compressed(8, -1, False, None, packed=False),
    "fp8-blocks": fp8("weight_scale_inv", (128, 128)),
    "compressed-fp8-row": fp8("weight_scale", method="compressed-tensors"),
}
