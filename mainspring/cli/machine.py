"""What this machine is: processor, usable cores, memory; no measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from msgspec import Struct

from mainspring.runtimes.memory import free_memory

__all__ = ["Machine", "describe_machine"]

INTERESTING = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Flags that matter to the kernels, as /proc/cpuinfo writes them."""


class Machine(Struct, frozen=True, kw_only=True):
    processor: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores: int
    """that this process may use: affinity, and the quota of its control group"""
    cores_present: int
    memory_bytes: int
    """of the machine; 0: unknown"""
    free_bytes: int
    """what a model may take now, within the control group's limit"""


def describe_machine(root: Path = Path("/")) -> Machine:
    """Read from /proc and /sys under `root`; elsewhere what Python knows."""
    fields = cpu_fields(root)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        instruction_sets=tuple(flag for flag in INTERESTING if flag in flags),
        cores=usable_cores(root),
        cores_present=os.cpu_count() or 1,
        memory_bytes=total_memory(),
        free_bytes=free_memory(root),
    )


def cpu_fields(root: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def usable_cores(root: Path = Path("/")) -> int:
    """Cores by affinity, cut to the control group's quota (rounded up)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quotas = [quota for group in cpu_groups(root) if (quota := quota_of(group)) > 0]
    return max(1, min([cores, *(int(-(-quota // 1)) for quota in quotas)]))


def cpu_groups(root: Path) -> list[Path]:
    """Directories of the cpu control groups above this process, version 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        parts = group.strip("/").split("/")
        found += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found


def quota_of(group: Path) -> float:
    """Cores that the group may use; 0 without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return 0.0 if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((group / "cpu.cfs_quota_us").read_text())
        return max(0.0, quota_us / int((group / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return 0.0


def total_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
