"""How much memory is free, and what a model will need of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from mainspring.config import ModelConfig
from mainspring.engine.disk import QUEUE
from mainspring.engine.tier import MOST
from mainspring.errors import InsufficientMemory
from mainspring.kernels import BLOCK, KvFormat, blocks_of

__all__ = ["MemoryPlan", "free_memory", "kv_format", "kv_token_bytes", "not_given", "plan_memory"]

MIB = 1 << 20
GIB = 1 << 30
WORKSPACE = 48 * MIB
"""the Worker itself and its activations"""
DISK_BUFFERS = MOST + QUEUE
"""what is on its way from and to the disk"""
CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048)
"""worth proposing instead of a longer one"""
KV_SHARE = 0.5
"""of the memory that the weights leave; the rest of the machine has other work too"""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be allocated."""

    blocks: int
    """of BLOCK tokens"""
    kv_bytes: int


def plan_memory(info: Any, config: ModelConfig, format: str, free: int) -> MemoryPlan:
    """The KV pool of a model, or InsufficientMemory with a setting that would fit.

    `info` is the Engine's CheckpointInfo, `free` bytes. The pool is `config.kv_memory`, or room
    for `max_running` sequences of the whole context, at most KV_SHARE of what the weights leave
    and at least one such sequence.
    """
    context = config.context or info.context
    block = BLOCK * kv_token_bytes(info, config, format)
    one = blocks_of(context)
    if config.kv_memory:
        blocks = config.kv_memory // block
        if blocks < 1:
            raise InsufficientMemory(
                f"kv_memory is {config.kv_memory} bytes; one block of {BLOCK} tokens needs {block}",
                param="kv_memory",
            )
    else:
        left = free - info.weight_bytes[format] - _besides(config)
        blocks = max(one, min(config.max_running * one, int(KV_SHARE * left) // block))
    plan = MemoryPlan(blocks, blocks * block)
    need = info.weight_bytes[format] + plan.kv_bytes + _besides(config)
    if need > free:
        raise InsufficientMemory(
            f"needs {_size(need)}, {_size(free)} free: {_suggestion(info, config, format, free)}"
        )
    return plan


def not_given(info: Any, config: ModelConfig, format: str, plan: MemoryPlan) -> InsufficientMemory:
    """The error for a plan that was refused by the system, with a setting that takes less."""
    need = info.weight_bytes[format] + plan.kv_bytes + _besides(config)
    fixed = msgspec.structs.replace(config, kv_memory=plan.kv_bytes)
    return InsufficientMemory(
        f"needs {_size(need)}, which the system did not give, though it seemed free (is the "
        f"process's memory limited?): {_suggestion(info, fixed, format, need - 1)}"
    )


def kv_format(config: ModelConfig, format: str) -> KvFormat:
    """Of the KV cache beside weights in `format`."""
    if config.kv_format == "auto":
        return "float32" if format == "float32" else "bf16"
    return cast(KvFormat, config.kv_format)


def _besides(config: ModelConfig) -> int:
    """Bytes that are neither weights nor KV cache."""
    return WORKSPACE + config.prefix_memory + (DISK_BUFFERS if config.prefix_disk else 0)


def kv_token_bytes(info: Any, config: ModelConfig, format: str) -> int:
    """Bytes of KV cache for each token, of all layers."""
    return int(info.kv_bytes[kv_format(config, format)])


def _suggestion(info: Any, config: ModelConfig, format: str, free: int) -> str:
    """The smallest change of settings that fits into `free` bytes, as flags."""
    weights = info.weight_bytes
    formats = [format, *(f for f in ("int8", "int4") if weights[f] < weights[format])]
    asked = config.context or info.context
    contexts = [asked, *(c for c in CONTEXTS if c < asked)]
    for context in contexts[:1] if config.kv_memory else contexts:
        for name in formats:
            kv = config.kv_memory or blocks_of(context) * BLOCK * kv_token_bytes(info, config, name)
            if weights[name] + kv + _besides(config) <= free:
                length = [] if context == asked else [f"--context {context}"]
                return "try " + " ".join(_quantize(name, format) + length)
    for name in formats if config.kv_memory else ():
        left = free - weights[name] - _besides(config)
        if left >= 2 * BLOCK * kv_token_bytes(info, config, name):
            return "try " + " ".join([*_quantize(name, format), f"--kv-memory {left // 2}"])
    return "no setting makes it fit; take a smaller model or free memory"


def _quantize(name: str, format: str) -> list[str]:
    return [] if name == format else [f"--quantize {name}"]


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / MIB:.1f} MiB"


def free_memory(root: Path = Path("/")) -> int:
    """Bytes this process may still take: what the machine has, within its control group's limit.

    `root` holds `proc` and `sys`; on a system without them, half of what is unknown is not
    guessed: the answer is then very large and nothing is refused.
    """
    available = _meminfo(root / "proc/meminfo")
    limits = [free for group in _groups(root) if (free := _group_free(group)) is not None]
    return max(0, min([available, *limits]))


def _meminfo(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 1 << 62
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _groups(root: Path) -> list[Path]:
    """The memory control group of this process and those above it, version 1 or 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        parts = group.strip("/").split("/")
        if "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
        elif number == "0" and not controllers:
            top = root / "sys/fs/cgroup"
            if not (top / "cgroup.controllers").exists():
                continue
        else:
            continue
        return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _group_free(group: Path) -> int | None:
    """Limit minus what cannot be reclaimed; None without a limit."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (group / limit_name).read_text().strip()
            used = int((group / used_name).read_text())
            stat = (group / "memory.stat").read_text()
        except OSError:
            continue
        if limit == "max":
            return None
        cached = [
            int(v) for k, v in (line.split() for line in stat.splitlines()) if k == "inactive_file"
        ]
        return int(limit) - used + sum(cached)
    return None
