"""The inside of a process that does what a foreign text asks for, frame by frame, within limits.

Nothing but the standard library is imported, so that such a process is small and starts fast.
Frames are a 4-byte big-endian length and JSON, in both directions.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["HEADER", "MIB", "serve"]

MIB = 1 << 20
HEADER = struct.Struct(">I")
STARTING_SECONDS = 10

Answer = Callable[[bytes], dict[str, str]]


def serve(
    end: socket.socket, start: Answer, answer: Answer, *, memory: Callable[[int], int], seconds: int
) -> None:
    """Answer the first frame with `start`, the others with `answer`, until the other end closes.

    A frame of so many bytes may take `memory(bytes)` of address space more than the process had
    (the others: than it had after the first), and `seconds` of processor time, the first
    STARTING_SECONDS. What takes more gets a MemoryError, or ends the process.
    """
    _renounce()
    base, most, work = _address_space(), STARTING_SECONDS, start
    frames = end.makefile("rb")
    while header := frames.read(HEADER.size):
        (size,) = HEADER.unpack(header)
        _allow(base + memory(size), most)
        body = json.dumps(work(frames.read(size))).encode()
        end.sendall(HEADER.pack(len(body)) + body)
        if work is start:
            base, most, work = _address_space(), seconds, answer


def _allow(memory: int, seconds: int) -> None:
    """Limits for the next frame: address space, and processor time from now."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _renounce() -> None:
    """No files, no privileges, no life after the owner's."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        prctl: Any = ctypes.CDLL(None).prctl
        prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def _address_space() -> int:
    """Bytes in use; where unknown, so many that no limit is felt."""
    if sys.platform != "linux":
        return 1 << 40
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
