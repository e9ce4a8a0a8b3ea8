"""The tiny checkpoints: their weights follow from names, shapes and a seed, so none are stored."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mainspring.kernels import bf16_bits, bf16_values
from tests.parity.rows import Row

__all__ = ["GREEDY", "LOGIT_PROMPT", "prompts", "tensor", "write_checkpoint"]

GREEDY = 64
LOGIT_PROMPT = 100
"""tokens of the prompt whose logits are compared; longer than any window in the table"""


def tensor(name: str, shape: tuple[int, ...], row: Row) -> np.ndarray:
    """The weights called `name`: normal numbers seeded by the name.

    Matrices keep the size of what passes through them, the embedding is small beside what the
    layers add, so that greedy text does not repeat its last token, and the head is large, so that
    logits spread. Gains are near 1 (gemma stores gain - 1).
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), row.seed])
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        values = 0.1 * values + (0 if row.family.startswith("gemma") else 1)
    elif len(shape) == 1:
        values = 0.1 * values
    else:
        values = values / np.sqrt(shape[-1])
        if "lm_head" in name:
            values = 4 * values
        elif "embed_tokens" in name and row.family.startswith(("gemma", "granite")):
            values = 0.1 * values  # it is multiplied, by sqrt(hidden) or by a field
        elif "embed_tokens" not in name:
            values = 1.5 * values
    values = values.astype(np.float32)
    if row.stored == "F16":
        return values.astype(np.float16)
    return bf16_values(bf16_bits(values)) if row.stored == "BF16" else values


def write_checkpoint(directory: Path, row: Row, layout: dict[str, list[int]]) -> Path:
    """A checkpoint directory with the tensors of `layout` (name -> shape)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(row.config))
    tensors = {name: tensor(name, tuple(shape), row) for name, shape in layout.items()}
    if row.stored == "MXFP4":
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            blocks, scales = _mxfp4(tensors.pop(name).swapaxes(1, 2))
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    file = directory / "model.safetensors"
    if row.stored == "BF16":
        _save_bf16(file, tensors)
    else:
        save_file(tensors, file, metadata={"format": "pt"})
    return directory


def _mxfp4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., k] to the nearest numbers of MXFP4: blocks [..., k / 32, 16], scales [..., k / 32]."""
    groups = values.reshape(*values.shape[:-1], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(axis=-1))).astype(int) - 2
    sizes = np.abs(groups) / 2.0 ** exponents[..., None]
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = np.abs(sizes[..., None] - grid).argmin(axis=-1) + 8 * (groups < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.astype(np.uint8), (exponents + 127).astype(np.uint8)


def _save_bf16(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """numpy has no bfloat16, so the file is put together here."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, values in tensors.items():
        parts.append(bf16_bits(values).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def prompts(row: Row) -> list[list[int]]:
    """20 prompts of growing length, and last the one whose logits are compared."""
    rng = np.random.default_rng(20)
    config = row.config.get("text_config", row.config)
    top = config["vocab_size"] - 8
    lengths = [row.shortest + 2 * i for i in range(20)] + [LOGIT_PROMPT]
    return [rng.integers(0, top, length).tolist() for length in lengths]
