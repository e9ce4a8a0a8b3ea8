"""Which file holds a model's evicted blocks: never that of other weights, kernels or settings."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from mainspring import __version__
from mainspring.config import ModelConfig
from mainspring.engine.checkpoint import Stamp
from mainspring.engine.disk import DiskPlace
from mainspring.kernels import BLOCK, _native

__all__ = ["FOLDER", "delete_blocks", "disk_place"]

log = logging.getLogger(__name__)

FOLDER = "prefix"
"""in the home"""


def disk_place(path: Path, config: ModelConfig, home: Path, kernels: str) -> DiskPlace | None:
    """Where the model at `path` may keep blocks; None when it may not.

    What it left there with other weights or settings stays as far as it fits into half of
    `prefix_disk`, the least recently used being deleted first, and is taken off what this start
    may keep. With `prefix_disk` 0 all is deleted. A file that another process has open stays.
    """
    if not config.prefix_disk:
        _sweep(_files(path, home), 0)
        return None
    key = _key(path, config, kernels)
    file = home / FOLDER / f"{_model(path)}-{key.hex()[:16]}.blocks"
    held = 0
    with suppress(FileNotFoundError):
        held = file.stat().st_size
        os.utime(file)  # used now
    others = [other for other in _files(path, home) if other != file]
    room = max(0, min(config.prefix_disk // 2, config.prefix_disk - held))
    return DiskPlace(file, config.prefix_disk - _sweep(others, room), key)


def delete_blocks(path: Path, home: Path) -> int:
    """Delete all that the model at `path` kept; its bytes.

    A process that has it open goes on with it, and the space is free when that ends.
    """
    freed = 0
    for file in _files(path, home):
        with suppress(FileNotFoundError):
            freed += file.stat().st_size
            file.unlink()
    return freed


def _files(path: Path, home: Path) -> list[Path]:
    return list((home / FOLDER).glob(f"{_model(path)}-*.blocks"))


def _model(path: Path) -> str:
    return blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()


def _key(path: Path, config: ModelConfig, kernels: str) -> bytes:
    """A digest of all that decides over a block's bits; files count by their stamps."""
    settings = (config.quantize, config.kv_format, config.context)
    weights = [path] if path.is_file() else [path / "config.json", *path.glob("*.safetensors")]
    files = [Path(_native.__file__), *sorted(weights)]
    stamps = [(file.name, Stamp.of(file.stat())) for file in files]
    return blake2b(repr((__version__, BLOCK, kernels, settings, stamps)).encode()).digest()


def _sweep(files: list[Path], room: int) -> int:
    """Delete of `files` what `room` bytes do not hold, the least recently used first.

    Returns the bytes that stay.
    """
    kept = 0
    found = []
    for file in files:
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    for _, size, file in sorted(found, reverse=True):
        with _unused(file) as unused:
            if not unused:
                continue
            if kept + size <= room:
                kept += size
            else:
                file.unlink()
                log.info("deleted %s: of other weights or settings", file)
    return kept


@contextmanager
def _unused(file: Path) -> Iterator[bool]:
    """Whether no other process has the file open; none can meanwhile."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # gone, or not ours
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unused = True
    except OSError:
        unused = False
    try:
        yield unused
    finally:
        os.close(descriptor)
