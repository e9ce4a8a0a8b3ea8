"""From a checkpoint directory to a loaded model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mainspring.engine.architectures import Architecture, Family, ModelShape, find_family
from mainspring.engine.checkpoint import Checkpoint
from mainspring.engine.fields import Fields
from mainspring.engine.quantize import FORMATS, Role, format_of, packed_bytes
from mainspring.engine.sizes import Sizes
from mainspring.engine.source import CheckpointTensors, RandomTensors, Source
from mainspring.errors import InsufficientMemory, ModelError
from mainspring.kernels import Array, Format, Kernels, Weight

__all__ = ["Checkpoint", "CheckpointInfo", "inspect_checkpoint", "load_model", "random_model"]

NOT_WEIGHTS = ("rotary_emb.inv_freq", ".masked_bias", ".rotary_pos_emb.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint will be once loaded, known from its headers alone."""

    shape: ModelShape
    """with `format` and `weight_bytes` of bf16"""
    dtype: str
    """of most of the weights in the files: F32, F16 or BF16"""
    file_bytes: int
    weight_bytes: Mapping[Format, int]
    kv_bytes: Mapping[str, int]
    """bytes of KV cache for each token, by cache dtype: float32, bf16"""

    @property
    def family(self) -> str:
        return self.shape.family

    @property
    def parameters(self) -> int:
        return self.shape.parameters

    @property
    def context(self) -> int:
        return self.shape.context

    @property
    def vocabulary(self) -> int:
        return self.shape.vocabulary


def load_model(
    path: Path,
    kernels: Kernels,
    *,
    format: Format,
    context: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Architecture:
    """Load the checkpoint in directory `path`, packed for `kernels` in `format`.

    `context` 0 serves as many positions as the checkpoint was made for; more is refused.
    `progress(done, total)` is called with bytes as tensors are read. The whole checkpoint is
    checked against its config.json before the first tensor is read. Raises ModelError naming the
    file, field or tensor and what is wrong with it, UnknownArchitecture for a family not known.
    """
    checkpoint = Checkpoint(path)
    family, fields = _family(checkpoint.config)
    tensors = CheckpointTensors(checkpoint, family.rename, progress)
    plan = _plan(family, fields, tensors, checkpoint.generation, context)
    tensors.total = sum(checkpoint.tensors[tensors.files[name]].nbytes for name in plan.used)
    source = Source(
        fields, plan.sizes, tensors, kernels, format=format, context=context, eos=plan.eos
    )
    return family.build(source)


def inspect_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check a checkpoint's headers; no tensor is read. Raises as `load_model`."""
    checkpoint = Checkpoint(path)
    family, fields = _family(checkpoint.config)
    tensors = CheckpointTensors(checkpoint, family.rename)
    plan = _plan(family, fields, tensors, checkpoint.generation, 0)
    stored: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.nbytes
    shape = plan.shape()
    per_token = 2 * shape.layers * shape.kv_heads * shape.head
    return CheckpointInfo(
        shape=shape,
        dtype=max(stored, key=lambda dtype: stored[dtype]),
        file_bytes=sum(stored.values()),
        weight_bytes={format: plan.bytes_in(format) for format in FORMATS},
        kv_bytes={"float32": 4 * per_token, "bf16": 2 * per_token},
    )


def random_model(
    config: dict[str, Any], kernels: Kernels, format: Format, seed: int = 0
) -> Architecture:
    """The model that `config` (a config.json) describes, with random weights and no files.

    For measuring: the numbers mean nothing. Raises ModelError for a config that makes no sense and
    InsufficientMemory for one that is larger than this machine.
    """
    family, fields = _family(config)
    plan = _plan(family, fields, None, {}, 0)
    need, have = plan.bytes_in(format), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        raise InsufficientMemory(
            f"the weights need {need / 2**30:.1f} GiB in {format}; "
            f"this machine has {have / 2**30:.1f} GiB"
        )
    tensors = RandomTensors(seed)
    return family.build(Source(fields, plan.sizes, tensors, kernels, format=format, eos=plan.eos))


def _family(config: dict[str, Any]) -> tuple[Family, Fields]:
    """The family that config.json names, and the fields of its text model."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelError("config.json: model_type is missing; it names the architecture")
    family = find_family(name)
    custom = config.get("auto_map")
    if custom is not None:
        named = custom.get("AutoModelForCausalLM") if isinstance(custom, dict) else None
        if not isinstance(named, str) or named.rpartition(".")[2] not in family.classes:
            raise ModelError(
                "config.json: auto_map asks for the checkpoint's own code, which is never run; "
                "take a checkpoint of a known architecture without it",
                param="auto_map",
            )
    if config.get("quantization_config") is not None:
        raise ModelError(
            "config.json: quantization_config: the files are already quantized; take the original "
            "checkpoint and quantize at load (int8, int4)",
            param="quantization_config",
        )
    nested = Fields(config).table(family.nested) if family.nested else None
    values = config if nested is None else {**_shared(config), **nested.values}
    return family, Fields(values, family.defaults)


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the outer config that speak for a nested text model too."""
    names = ("eos_token_id", "tie_word_embeddings")
    return {name: config[name] for name in names if config.get(name) is not None}


def _plan(
    family: Family,
    fields: Fields,
    tensors: CheckpointTensors | None,
    generation: dict[str, Any],
    context: int,
) -> Plan:
    """Build the model without weights, and so learn and check everything it will ask for."""
    sizes = Sizes.of(fields, family.name)
    last = sizes.vocabulary - 1
    ends = Fields(generation, where="generation_config.json").integers("eos_token_id", high=last)
    eos = tuple(dict.fromkeys((*fields.integers("eos_token_id", high=last), *ends)))
    plan = Plan(fields, sizes, tensors, context, eos)
    plan.shape_built = family.build(plan).shape
    plan.refuse_problems()
    return plan


class Plan(Source):
    """A Source without numbers: weights have a size only, and what is wrong is collected.

    Without `tensors` every tensor that is asked for exists.
    """

    shape_built: ModelShape

    def __init__(
        self,
        fields: Fields,
        sizes: Sizes,
        tensors: CheckpointTensors | None,
        context: int,
        eos: tuple[int, ...],
    ) -> None:
        absent = RandomTensors(0) if tensors is None else tensors
        # No kernel is ever called: a plan is built, not run.
        kernels = cast(Kernels, None)
        super().__init__(fields, sizes, absent, kernels, format="bf16", context=context, eos=eos)
        self.stored = tensors
        self.used: dict[str, tuple[int, ...]] = {}
        self.matrices: list[tuple[int, int, Role]] = []

    def _read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        self.used.update(zip(names, shapes, strict=True))
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        empty = np.broadcast_to(np.float32(0), shape)  # no memory behind it
        self.parameters += empty.size
        return empty

    def _pack(self, matrix: Array, bias: Array | None, role: Role) -> Weight:
        n, k = matrix.shape
        self.matrices.append((n, k, role))
        weight = PlannedWeight(n, k, format_of(role, self.format))
        self.weight_bytes += weight.nbytes
        return weight

    def shape(self) -> ModelShape:
        return self.shape_built

    def bytes_in(self, format: Format) -> int:
        """Bytes of all weights if the model is loaded in `format`."""
        planned = sum(PlannedWeight(n, k, self.format).nbytes for n, k, _ in self.matrices)
        return (
            self.weight_bytes
            - planned
            + sum(packed_bytes(n, k, format_of(role, format)) for n, k, role in self.matrices)
        )

    def refuse_problems(self) -> None:
        """Raise ModelError if the files lack a tensor, hold it in another shape, or hold more."""
        if self.stored is None:
            return
        tensors, tied = self.stored, self.sizes.tied
        missing = [name for name in self.used if name not in tensors]
        if missing:
            raise ModelError(f"tensors missing from the checkpoint: {_listed(missing)}")
        for name, shape in self.used.items():
            if (found := tensors.shape(name)) != shape:
                raise ModelError(
                    f"{name} has shape {list(found)}; config.json makes it {list(shape)}"
                )
            tensors.dtype(name)
        extra = [
            name
            for name in tensors.files
            if name not in self.used
            and not name.endswith(NOT_WEIGHTS)
            and not (tied and name == "lm_head.weight")
        ]
        if extra:
            raise ModelError(f"tensors that a {self.sizes.family} has no use for: {_listed(extra)}")


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """The size of a Weight that will be."""

    n: int
    k: int
    format: Format

    @property
    def nbytes(self) -> int:
        return packed_bytes(self.n, self.k, self.format)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
