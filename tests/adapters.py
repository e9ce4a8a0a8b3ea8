"""Tiny LoRA adapters of the tiny checkpoints, and the same merged into the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def adapter_tensors(base: Path, seed: int, rank: int = 4, targets: Any = TARGETS) -> dict[str, Any]:
    """Strong enough to change what a tiny model says."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in targets:
            n, k = weight.shape
            a, b = rng.standard_normal((rank, k)), rng.standard_normal((n, rank))
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = (a / k**0.5).astype(np.float32)
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = (b / rank).astype(np.float32)
    return tensors


def adapter_config(rank: int = 4, **changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(TARGETS),
        "bias": "none",
        "use_dora": False,
        "init_lora_weights": True,
        "base_model_name_or_path": "tiny",
        "task_type": "CAUSAL_LM",
        **changes,
    }


def tiny_adapter(
    path: Path, base: Path, seed: int = 0, rank: int = 4, tensors: Any = None, **changes: Any
) -> Path:
    """Write an adapter for the tiny checkpoint in `base`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(adapter_config(rank, **changes)))
    if tensors is None:
        tensors = adapter_tensors(base, seed, rank)
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def merged(path: Path, base: Path, adapter: Path, scale: float = 2.0) -> Path:
    """The checkpoint with W + scale B A in place of W."""
    weights = load_file(base / "model.safetensors")
    parts = load_file(adapter / "adapter_model.safetensors")
    for name, a in parts.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            change = scale * (parts[f"{layer}.lora_B.weight"].astype(float) @ a.astype(float))
            key = layer.removeprefix(PREFIX) + ".weight"
            weights[key] = (weights[key] + change).astype(np.float32)
    path.mkdir(parents=True)
    for file in base.iterdir():
        if file.suffix == ".json":
            (path / file.name).write_bytes(file.read_bytes())
    save_file(weights, path / "model.safetensors")
    return path


__all__ = ["adapter_config", "adapter_tensors", "merged", "tiny_adapter"]
