"""From a checkpoint and its settings to an Engine, with the memory checked first."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from mainspring.config import HOME, ModelConfig
from mainspring.engine.architectures import Architecture, ModelShape
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.prepared import Unusable, prepared_path
from mainspring.engine.weights import (
    CheckpointInfo,
    inspect_checkpoint,
    load_model,
    load_prepared,
)
from mainspring.kernels import BLOCK, Format, Kernels, load_kernels
from mainspring.runtimes.adapters import Adapters
from mainspring.runtimes.disk import disk_place
from mainspring.runtimes.drafting import find_draft
from mainspring.runtimes.memory import free_memory, kv_format, not_given, plan_memory

__all__ = ["Loaded", "format_of", "load"]

Progress = Callable[[int, int], None]


class Loaded(NamedTuple):
    """A model ready to generate."""

    engine: Engine
    adapters: Adapters
    shape: ModelShape
    context: int
    """tokens, prompt and output: the shape's, or what the KV cache holds if that is less"""
    weight_bytes: int
    kv_bytes: int
    """both with a draft model's"""
    prepared: bool
    """its prepared file was read"""
    warning: str
    """why that was not done though there is one, and what to do"""


def load(
    path: Path,
    config: ModelConfig,
    home: Path = Path(HOME),
    *,
    progress: Progress | None = None,
) -> Loaded:
    """Load the checkpoint at `path` as `config` says.

    Evicted blocks may be kept on disk in a folder of `home`, where a draft model's name is looked
    up too.

    Raises InsufficientMemory, before anything is read where that can be known, ModelError for what
    is wrong with the checkpoint, BadRequest for a setting this machine cannot follow.
    """
    home = home.expanduser()
    info = inspect_checkpoint(path)
    format = format_of(config, info)
    if drafting := find_draft(path, info, config, home):
        info = info.beside(drafting.info)
    plan = plan_memory(info, config, format, free_memory())
    kernels = load_kernels(config.isa, config.threads)
    settings = EngineConfig(
        blocks=plan.blocks,
        max_running=config.max_running,
        # The server bounds the queue by requests; in the Engine each choice of one counts.
        max_queue=config.max_running + config.max_queue,
        step_seconds=config.step_ms / 1000,
        prefix_cache=config.prefix_cache,
        prefix_memory=config.prefix_memory,
        prefix_disk=disk_place(path, config, home, kernels.name),
        speculation=config.speculation,
        dtype=kv_format(config, format),
    )
    try:
        draft, unused = None, ""
        if drafting:
            least = min(config.context or info.context, drafting.info.context)
            shorter = msgspec.structs.replace(config, context=least)
            draft, _, unused = _model(drafting.path, kernels, shorter, format, progress)
        model, prepared, warning = _model(path, kernels, config, format, progress)
        engine = Engine(model, kernels, settings, draft=draft)
    except MemoryError as error:
        raise not_given(info, config, format, plan) from error
    context = min(model.shape.context, plan.blocks * BLOCK)
    weight_bytes = model.shape.weight_bytes + (draft.shape.weight_bytes if draft else 0)
    warning = "; ".join(filter(None, (warning, unused)))
    adapters = Adapters(model, kernels, config, plan.kv_bytes)
    return Loaded(
        engine, adapters, model.shape, context, weight_bytes, plan.kv_bytes, prepared, warning
    )


def format_of(config: ModelConfig, info: CheckpointInfo) -> Format:
    """The format of the weights in memory."""
    return info.format if config.quantize == "none" else cast(Format, config.quantize)


def _model(
    path: Path, kernels: Kernels, config: ModelConfig, format: Format, progress: Progress | None
) -> tuple[Architecture, bool, str]:
    """The model, whether its prepared file was read, and a warning if that could not be."""
    warning = ""
    if config.prepared:
        try:
            found = load_prepared(
                path, kernels, format=format, context=config.context, progress=progress
            )
            if found is not None:
                return found, True, ""
        except Unusable as error:
            warning = (
                f"{prepared_path(path, format)} is not used, because {error}; `mainspring prepare "
                f"{shlex.quote(str(path))} --quantize {config.quantize}` makes it again"
            )
        if warning:
            gc.collect()  # what was read goes now: twice a model may be more than the memory
    model = load_model(path, kernels, format=format, context=config.context, progress=progress)
    return model, False, warning
