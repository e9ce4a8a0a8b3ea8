"""Digests of files: sha256 for what we keep, git's own for what a hub lists."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from mainspring.errors import ModelError

__all__ = ["combined", "git_blob_start", "read_limited", "sha256_of"]


def sha256_of(path: Path) -> str:
    """The file's sha256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined(digests: Mapping[str, str]) -> str:
    """One sha256 for a set of files: over `digest  name` lines in order of name."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def git_blob_start(size: int) -> bytes:
    """What git hashes before a file's bytes to name it (sha1)."""
    return b"blob %d\0" % size


def read_limited(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Raises OSError, and ModelError for anything that is not a regular file of that size: a FIFO
    or a device is never read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path.name} is not a regular file")
        if status.st_size > limit:
            raise ModelError(f"{path.name} has {status.st_size} bytes; at most {limit} are read")
        return file.read(limit + 1)
