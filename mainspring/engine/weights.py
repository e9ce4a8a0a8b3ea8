"""From a checkpoint to a loaded model, and to a prepared one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from mainspring.engine.architectures import Architecture, Family, ModelShape, find_family
from mainspring.engine.checkpoint import Checkpoint, SafetensorsCheckpoint
from mainspring.engine.fields import Fields
from mainspring.engine.gguf.checkpoint import GgufCheckpoint
from mainspring.engine.mxfp4 import Mxfp4Checkpoint
from mainspring.engine.plan import Plan
from mainspring.engine.prepared import (
    PreparedFile,
    PreparedSource,
    Table,
    Unusable,
    WritingSource,
    disk_full,
    prepared_path,
    replacing,
    write_table,
)
from mainspring.engine.quantize import FORMATS
from mainspring.engine.quantized.checkpoint import QuantizedCheckpoint
from mainspring.engine.sizes import Sizes
from mainspring.engine.source import CheckpointTensors, RandomTensors, Source
from mainspring.errors import BadRequest, InsufficientMemory, ModelError
from mainspring.kernels import (
    Format,
    Kernels,
    KvFormat,
    LastingKernels,
    kv_token_bytes,
    load_kernels,
)

__all__ = [
    "CheckpointInfo",
    "inspect_checkpoint",
    "inspect_config",
    "load_model",
    "load_prepared",
    "open_checkpoint",
    "prepare_model",
    "random_model",
    "rounding_error",
]

TICK = 20_000_000
"""ns; file systems tell times no finer than the kernel's clock ticks"""

Progress = Callable[[int, int], None]
S = TypeVar("S", bound=Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint will be once loaded, known from its headers alone."""

    shape: ModelShape
    """with `format` and `weight_bytes` of bf16"""
    dtype: str
    """of most of the weights in the files: F32, F16 or BF16; where quantized int4, int8 or fp8, or
    a type of GGUF (Q4_K)"""
    file_bytes: int
    weight_bytes: Mapping[Format, int]
    kv_bytes: Mapping[KvFormat, int]
    """bytes of KV cache for each token, by KV format"""
    quantization: str = ""
    """how the files are quantized and what becomes of that; empty: they are not"""

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

    @property
    def format(self) -> Format:
        """Of the weights if no other is asked for: bf16, or int8 if the files have fewer bits."""
        return "int8" if self.dtype.startswith(("Q", "IQ")) else "bf16"

    def beside(self, other: CheckpointInfo) -> CheckpointInfo:
        """This model with the bytes of another one that is loaded with it."""
        weights = {f: count + other.weight_bytes[f] for f, count in self.weight_bytes.items()}
        kv = {f: count + other.kv_bytes[f] for f, count in self.kv_bytes.items()}
        return replace(self, weight_bytes=weights, kv_bytes=kv)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`: a directory in Hugging Face's layout, or a GGUF file."""
    if path.suffix == ".gguf":
        return GgufCheckpoint(path)
    checkpoint = SafetensorsCheckpoint(path)
    given = checkpoint.config.get("quantization_config")
    if given is None:
        return checkpoint
    if isinstance(given, dict) and given.get("quant_method") == "mxfp4":
        return Mxfp4Checkpoint(checkpoint)
    return QuantizedCheckpoint(checkpoint)


def load_model(
    path: Path,
    kernels: Kernels,
    *,
    format: Format,
    context: int = 0,
    progress: Progress | None = None,
) -> Architecture:
    """Load the checkpoint at `path`, packed for `kernels` in `format`.

    `context` 0 serves as many positions as the checkpoint was made for; more is refused.
    `progress(done, total)` is called with bytes as tensors are read. The whole checkpoint is
    checked against its config.json before the first tensor is read. Raises ModelError naming the
    file, field or tensor and what is wrong with it, UnknownArchitecture for a family not known.
    """
    with closing(Opened(path, context, progress)) as opened:
        return opened.family.build(opened.source(Source, kernels, format))


def load_prepared(
    path: Path,
    kernels: Kernels,
    *,
    format: Format,
    context: int = 0,
    progress: Progress | None = None,
) -> Architecture | None:
    """The same model from its prepared file, with the same tokens; None when there is none.

    Raises as `load_model`, and Unusable when the file is damaged, was made of other files than
    those in the directory, or by kernels that lay out weights differently.
    """
    place = prepared_path(path, format)
    if not isinstance(kernels, LastingKernels) or not os.path.lexists(place):
        return None
    with closing(PreparedFile(place)) as file, closing(Opened(path, context)) as opened:
        table, stamps = file.table, opened.checkpoint.stamps
        if table.layout != kernels.layout or table.format != format:
            raise Unusable("another version of Mainspring made it")
        if changed := [name for name in stamps if table.files.get(name) != stamps[name]]:
            raise Unusable(f"{changed[0]} is not the one that it was made of")
        source = opened.source(PreparedSource, kernels, format)
        return source.load(file, opened.family.build, progress)


def prepare_model(
    path: Path, kernels: Kernels, *, format: Format, progress: Progress | None = None
) -> Path:
    """Write the prepared file of the checkpoint at `path` and return where it is.

    Raises as `load_model`; BadRequest where nothing may be written or the kernels are the
    reference, InsufficientMemory when the disk is too small, Conflict when another process
    writes it too.
    """
    if not isinstance(kernels, LastingKernels):
        raise BadRequest("isa reference cannot use a prepared model: leave it out", param="isa")
    place = prepared_path(path, format)
    with closing(Opened(path, 0, progress)) as opened:
        if opened.plan.bytes_in(format) > shutil.disk_usage(path).free:
            raise disk_full(place)
        stamps = opened.checkpoint.stamps
        _let_pass(max(stamp.changed for stamp in stamps.values()))
        with replacing(place) as file:
            source = opened.source(WritingSource, kernels, format)
            matrices = source.write(file, opened.family.build)
            if open_checkpoint(path).stamps != stamps:
                raise ModelError("the checkpoint was changed while it was read: prepare it again")
            write_table(file, Table(kernels.layout, format, stamps, matrices))
    return place


def _let_pass(moment: int) -> None:
    """Until the system's clock shows another time than `moment` in ns, what changes a file again
    could leave no trace.
    """
    left = moment + TICK - time.time_ns()
    if 0 < left <= TICK:
        time.sleep(left / 1e9)


class Opened:
    """A checkpoint, its family and the plan of the model: all headers are read and checked."""

    def __init__(self, path: Path, context: int, progress: Progress | None = None) -> None:
        self.checkpoint = open_checkpoint(path)
        self.context = context
        self.family, self.fields = _family(self.checkpoint.config)
        self.tensors = CheckpointTensors(self.checkpoint, self.family.rename, progress)
        self.plan = _plan(
            self.family, self.fields, self.tensors, self.checkpoint.generation, context
        )
        stored, files = self.checkpoint.tensors, self.tensors.files
        self.tensors.total = sum(stored[files[name]].nbytes for name in self.plan.used)

    def source(self, kind: type[S], kernels: Kernels, format: Format) -> S:
        """What the family builds from."""
        return kind(
            self.fields, self.plan.sizes, self.tensors, kernels,
            format=format, context=self.context, eos=self.plan.eos,
        )  # fmt: skip

    def close(self) -> None:
        self.checkpoint.close()


def inspect_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check a checkpoint's headers; no tensor is read. Raises as `load_model`."""
    opened = Opened(path, 0)
    stored: dict[str, int] = {}
    for tensor in opened.checkpoint.tensors.values():
        stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.nbytes
    dtype = max(stored, key=lambda name: stored[name])
    info = _info(opened.plan, dtype, sum(stored.values()))
    if isinstance(opened.checkpoint, QuantizedCheckpoint):
        info = replace(info, quantization=str(opened.checkpoint))
    return info


def rounding_error(path: Path) -> dict[Format, float]:
    """What the checkpoint's quantized numbers lose in each format, where none holds them exactly.

    The root mean square of the error relative to that of the numbers, measured on some rows of one
    matrix; empty where nothing is rounded. Raises as `load_model`.
    """
    with closing(open_checkpoint(path)) as checkpoint:
        rows = checkpoint.some_rounded() if isinstance(checkpoint, QuantizedCheckpoint) else None
    if rows is None:
        return {}
    reference, ids = load_kernels("reference"), np.arange(len(rows), dtype=np.int32)
    return {
        format: float(
            np.linalg.norm(reference.embedding(ids, reference.weight(rows, format=format)) - rows)
            / (np.linalg.norm(rows) or 1)
        )
        for format in FORMATS
    }


def inspect_config(config: dict[str, Any]) -> CheckpointInfo:
    """The same of a config.json alone: `file_bytes` is 0 and `dtype` what the config says."""
    family, fields = _family(config)
    plan = _plan(family, fields, None, {}, 0)
    dtype = config.get("dtype") or config.get("torch_dtype") or ""
    return _info(plan, dtype if isinstance(dtype, str) else "", 0)


def _info(plan: Plan, dtype: str, file_bytes: int) -> CheckpointInfo:
    shape = plan.built
    heads = shape.layers * shape.kv_heads
    return CheckpointInfo(
        shape=shape,
        dtype=dtype,
        file_bytes=file_bytes,
        weight_bytes={format: plan.bytes_in(format) for format in FORMATS},
        kv_bytes={name: heads * kv_token_bytes(shape.head, name) for name in get_args(KvFormat)},
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
            "config.json: quantization_config: only the files tell which matrices are quantized; "
            "give the checkpoint's directory",
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
    plan = Plan(fields, sizes, tensors, context=context, eos=eos)
    plan.built = family.build(plan).shape
    plan.refuse_problems()
    return plan
