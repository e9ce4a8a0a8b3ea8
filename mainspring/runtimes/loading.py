"""From a checkpoint and its settings to an Engine, with the memory checked first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from mainspring.config import ModelConfig
from mainspring.engine.architectures import ModelShape
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import inspect_checkpoint, load_model
from mainspring.kernels import BLOCK, Format, load_kernels
from mainspring.runtimes.memory import free_memory, plan_memory

__all__ = ["Loaded", "load"]


class Loaded(NamedTuple):
    """A model ready to generate."""

    engine: Engine
    shape: ModelShape
    context: int
    """tokens, prompt and output: the shape's, or what the KV cache holds if that is less"""
    kv_bytes: int


def load(
    path: Path, config: ModelConfig, *, progress: Callable[[int, int], None] | None = None
) -> Loaded:
    """Load the checkpoint in directory `path` as `config` says.

    Raises InsufficientMemory before anything is read, ModelError for what is wrong with the
    checkpoint, BadRequest for a setting this machine cannot follow.
    """
    format = cast(Format, "bf16" if config.quantize == "none" else config.quantize)
    plan = plan_memory(inspect_checkpoint(path), config, format, free_memory())
    kernels = load_kernels(config.isa, config.threads)
    model = load_model(path, kernels, format=format, context=config.context, progress=progress)
    settings = EngineConfig(
        blocks=plan.blocks,
        max_running=config.max_running,
        # The server bounds the queue by requests; in the Engine each choice of one counts.
        max_queue=config.max_running + config.max_queue,
        step_seconds=config.step_ms / 1000,
        prefix_cache=config.prefix_cache,
        dtype="float32" if format == "float32" else "bf16",
    )
    context = min(model.shape.context, plan.blocks * BLOCK)
    return Loaded(Engine(model, kernels, settings), model.shape, context, plan.kv_bytes)
