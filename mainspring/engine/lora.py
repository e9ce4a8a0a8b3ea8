"""From a directory as the PEFT library writes it to an Adapter of a loaded model, distrusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mainspring.engine.adapter import Adapter, Slot
from mainspring.engine.architectures import Architecture, find_family
from mainspring.engine.checkpoint import SafetensorsCheckpoint
from mainspring.engine.fields import Fields
from mainspring.engine.source import CheckpointTensors
from mainspring.errors import InsufficientMemory, ModelError
from mainspring.kernels import Array, Kernels, LowRank, bf16_bits

__all__ = ["load_adapter"]

RANK_LIMIT = 512
PREFIX = "base_model.model."
TENSOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
REFUSED = {
    "use_dora": "DoRA scales the base model's own columns",
    "lora_bias": "biases are not added",
    "modules_to_save": "it holds whole layers, not only what is added to some",
    "trainable_token_indices": "it holds rows of the embedding",
    "layer_replication": "it repeats layers of the base model",
    "target_parameters": "it changes tensors that are no linear layers",
    "use_qalora": "its inputs are pooled",
    "fan_in_fan_out": "its matrices are stored the other way round",
    "alora_invocation_tokens": "it begins in the middle of a prompt",
    "arrow_config": "it chooses among other adapters",
}
"""Fields of adapter_config.json that must be absent, false or empty, and why."""
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""values of init_lora_weights that leave the base model as it is"""


class AdapterFiles(SafetensorsCheckpoint):
    """The directory of an adapter, read as a checkpoint's is."""

    CONFIG = "adapter_config.json"
    WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Scales:
    """What the product of two matrices is multiplied by: alpha / r, or alpha / sqrt(r)."""

    alpha: float
    patterns: Mapping[str, float]
    by_root: bool

    @classmethod
    def of(cls, fields: Fields) -> Scales:
        patterns = {}
        if (table := fields.table("alpha_pattern")) is not None:
            for name in table.values:
                if not re.fullmatch(r"[\w.]+", name):
                    raise fields.refuse("alpha_pattern", "must hold plain names, no patterns")
                patterns[name] = table.number(name)
        alpha = fields.number("lora_alpha", 8.0)
        return cls(alpha, patterns, fields.flag("use_rslora"))

    def of_layer(self, name: str, rank: int) -> float:
        """The first pattern that is the end of the layer's name counts, as in PEFT."""
        ends = (n for n in self.patterns if f".{name}".endswith(f".{n}"))
        alpha = self.patterns[end] if (end := next(ends, None)) is not None else self.alpha
        return float(alpha / (rank**0.5 if self.by_root else rank))


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one layer, in the files and in the model."""

    name: str
    """without its prefix"""
    down: str
    """lora_A's tensor"""
    up: str
    """lora_B's"""
    slot: Slot
    rank: int
    scale: float

    def nbytes(self, width: int) -> int:
        """Of it in memory, with numbers of `width` bytes; see `LowRank` in native/operations.h."""
        wide, stride = -(-self.rank // 16) * 16, -(-self.slot.n // 64) * 64
        return width * (self.slot.k * wide + self.rank * stride)


def load_adapter(
    path: Path,
    model: Architecture,
    kernels: Kernels,
    *,
    limit: int,
    progress: Callable[[], None] = lambda: None,
) -> Adapter:
    """The adapter in directory `path` for `model`, of at most `limit` bytes in memory.

    Everything is checked against the model before the first tensor is read; `progress` is called
    as tensors are. Beside a float32 model the matrices stay float32, else they are bfloat16.
    Raises ModelError naming file, field or tensor, InsufficientMemory with the number.
    """
    with closing(AdapterFiles(path)) as files:
        tensors = CheckpointTensors(files, lambda name: name)
        pairs = _pairs(files, tensors, model)
        width = 4 if model.shape.format == "float32" else 2
        if (need := sum(pair.nbytes(width) for pair in pairs)) > limit:
            raise InsufficientMemory(
                f"the adapter needs {need} bytes, {max(0, limit)} are left for it: unload another, "
                "or raise adapter_memory where the machine has more",
                param="adapter_memory",
            )
        digest = blake2b(digest_size=32)
        parts: dict[int, list[tuple[LowRank, int]]] = {}
        for pair in pairs:
            down, up = _matrices(tensors, pair, width)
            digest.update(repr((pair.name, down.shape, up.shape)).encode())
            digest.update(down.data)
            digest.update(up.data)
            matrix = kernels.low_rank(down, up)
            parts.setdefault(pair.slot.index, []).append((matrix, pair.slot.first))
            progress()
    return Adapter(
        parts={index: tuple(found) for index, found in parts.items()},
        digest=digest.digest(),
        rank=max(pair.rank for pair in pairs),
        nbytes=need,
    )


def _matrices(tensors: CheckpointTensors, pair: Pair, width: int) -> tuple[Array, Array]:
    """down [k, r] and up [r, n], the scale multiplied in."""
    k, n, r = pair.slot.k, pair.slot.n, pair.rank
    down, up = tensors.float32(pair.down, (r, k)), tensors.float32(pair.up, (n, r))
    for name, values in ((pair.down, down), (pair.up, up)):
        if not np.isfinite(values).all():
            raise ModelError(f"{AdapterFiles.WEIGHTS}: {name} holds NaN or infinity")
    with np.errstate(over="ignore"):  # what becomes infinite fails its own requests
        both = np.ascontiguousarray(down.T), np.ascontiguousarray((up * np.float32(pair.scale)).T)
    return both if width == 4 else (bf16_bits(both[0]), bf16_bits(both[1]))


def _pairs(
    files: SafetensorsCheckpoint, tensors: CheckpointTensors, model: Architecture
) -> list[Pair]:
    """Every layer that the adapter changes, in order of name."""
    fields = Fields(files.config, where=AdapterFiles.CONFIG)
    _refuse(fields)
    scales = Scales.of(fields)
    rank = fields.integer("r", 8, high=RANK_LIMIT)
    uniform = not fields.values.get("rank_pattern")
    rename = find_family(model.shape.family).rename
    found: dict[str, dict[str, str]] = {}
    for stored in tensors.files:
        if (match := TENSOR.fullmatch(stored)) is None:
            raise ModelError(
                f"{AdapterFiles.WEIGHTS}: {stored[:200]} is no lora_A or lora_B weight"
            )
        found.setdefault(match[1].removeprefix(PREFIX), {})[match[2]] = stored
    if not found:
        raise ModelError(f"{AdapterFiles.WEIGHTS} holds no tensors")
    pairs = [
        _pair(name, names, tensors, _slot(name, rename, model), scales)
        for name, names in sorted(found.items())
    ]
    for pair in pairs:
        if uniform and pair.rank != rank:
            raise fields.refuse("r", f"is {rank}; {pair.name} has rank {pair.rank}")
    return pairs


def _refuse(fields: Fields) -> None:
    """What is not, or not only, low-rank products beside linear layers."""
    fields.choice("peft_type", None, ("LORA",))
    fields.choice("bias", "none", ("none",))
    for name, reason in REFUSED.items():
        if fields.values.get(name):
            raise fields.refuse(name, f"is set: {reason}; merge the adapter into its base model")
    if fields.values.get("init_lora_weights") not in PLAIN_STARTS:
        raise fields.refuse(
            "init_lora_weights",
            "changed the base model's weights in training: convert the adapter to plain LoRA with "
            "PEFT (path_initial_model_for_weight_conversion)",
        )


def _slot(name: str, rename: Callable[[str], str | None], model: Architecture) -> Slot:
    known = rename(f"{name}.weight")
    slot = model.slots.get(known.removesuffix(".weight")) if known else None
    if slot is None:
        kinds = sorted({slot.rpartition(".")[2] for slot in model.slots})
        raise ModelError(
            f"{AdapterFiles.WEIGHTS}: {name[:200]} cannot be changed by an adapter here; in a "
            f"{model.shape.family} these can: {', '.join(kinds) or 'none'}, not of experts"
        )
    return slot


def _pair(
    name: str, names: dict[str, str], tensors: CheckpointTensors, slot: Slot, scales: Scales
) -> Pair:
    for letter in "AB":
        if letter not in names:
            raise ModelError(f"{AdapterFiles.WEIGHTS}: {name[:200]} has no lora_{letter}")
    a, b = tensors.shape(names["A"]), tensors.shape(names["B"])
    rank = a[0] if len(a) == 2 else 0
    if not 1 <= rank <= RANK_LIMIT or a != (rank, slot.k) or b != (slot.n, rank):
        raise ModelError(
            f"{AdapterFiles.WEIGHTS}: {name[:200]} has lora_A {list(a)} and lora_B {list(b)}; this "
            f"model takes [r, {slot.k}] and [{slot.n}, r] with r from 1 to {RANK_LIMIT}: is it an "
            "adapter of another model?"
        )
    for stored in names.values():
        tensors.dtype(stored)
    return Pair(name, names["A"], names["B"], slot, rank, scales.of_layer(name, rank))
