"""Which file holds a model's evicted blocks: never that of other weights, kernels or settings."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path

from mainspring import __version__
from mainspring.config import ModelConfig
from mainspring.engine.disk import DiskPlace
from mainspring.kernels import BLOCK, _native

__all__ = ["FOLDER", "disk_place"]

log = logging.getLogger(__name__)

FOLDER = "prefix"
"""in the home"""


def disk_place(path: Path, config: ModelConfig, home: Path, kernels: str) -> DiskPlace | None:
    """Where the model in directory `path` may keep blocks; None when it may not.

    What it left there with other weights or settings, or before `prefix_disk` was 0, is deleted,
    unless another process has it open. Reads the whole checkpoint, at about 1 GB/s.
    """
    folder = home / FOLDER
    model = blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()
    if not config.prefix_disk:
        _sweep(folder, model, keep=None)
        return None
    key = _key(path, config, kernels)
    file = folder / f"{model}-{key.hex()[:16]}.blocks"
    _sweep(folder, model, keep=file)
    return DiskPlace(file, config.prefix_disk, key)


def _key(path: Path, config: ModelConfig, kernels: str) -> bytes:
    """A digest of all that decides over a block's bits."""
    settings = (config.quantize, config.kv_format, config.context)
    key = blake2b(repr((__version__, BLOCK, kernels, *settings)).encode())
    for file in [
        Path(str(_native.__file__)),
        path / "config.json",
        *sorted(path.glob("*.safetensors")),
    ]:
        with file.open("rb") as stream:
            key.update(file_digest(stream, blake2b).digest())
    return key.digest()


def _sweep(folder: Path, model: str, keep: Path | None) -> None:
    for file in folder.glob(f"{model}-*.blocks"):
        if file == keep:
            continue
        with suppress(OSError):  # in use, or not ours
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
                log.info("deleted %s: of other weights or settings", file)
            finally:
                os.close(descriptor)
