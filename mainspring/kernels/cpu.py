"""The Kernels in C++ (`native/`), and what they say about this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

from mainspring.errors import BadRequest
from mainspring.kernels import Kernels, _native

__all__ = ["Machine", "Speed", "load_cpu_kernels", "machine", "measure"]


@dataclass(frozen=True)
class Machine:
    isas: tuple[str, ...]
    """instruction sets that this CPU can run, best first"""
    cores: int
    """cores that this process may use"""


@dataclass(frozen=True)
class Speed:
    read: float
    """bytes a second that all threads together read from memory"""
    int8: float
    """int8 operations a second of all threads"""


def machine() -> Machine:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(tuple(_native.usable()), cores)


def load_cpu_kernels(isa: str = "auto", threads: int = 0) -> Kernels:
    """See `mainspring.kernels.load_kernels`."""
    here = machine()
    if isa != "auto" and isa not in here.isas:
        raise BadRequest(
            f"isa {isa!r} is not available here; this CPU has {', '.join(here.isas)}", param="isa"
        )
    if not 0 <= threads <= 512:
        raise BadRequest(f"threads must be 0 to 512, not {threads}", param="threads")
    name = here.isas[0] if isa == "auto" else isa
    return cast(Kernels, _native.load(name, threads or here.cores))


def measure(kernels: Kernels) -> Speed:
    """How fast these kernels read and compute, measured in about 0.1 s."""
    read, int8 = cast(_native.Kernels, kernels).probe()
    return Speed(read, int8)
