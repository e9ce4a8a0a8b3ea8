"""Evicted blocks in a file, which a later Engine of the same model reads again."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mainspring.kernels import Array

__all__ = ["PATIENCE", "QUEUE", "Disk", "DiskPlace", "Read", "open_disk"]

log = logging.getLogger(__name__)

DIGEST = 32
HEADER = 2 * DIGEST
"""bytes before a block's: its digest, and the checksum of both"""
QUEUE = 64 << 20
"""bytes waiting to be written at most; a block more is dropped"""
PATIENCE = 1.0
"""seconds; a disk that takes longer to answer is not used any more"""

Read = Future[tuple[dict[bytes, Array], float]]


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Where blocks may be kept."""

    path: Path
    limit: int
    """bytes of the file at most"""
    key: bytes
    """Up to 64 bytes that differ wherever the bits of a block may: weights, kernels, settings."""


class Disk:
    """Blocks of `block_bytes` by their digest, the least recently used overwritten first.

    Two threads write and read; what is where is known to the caller's alone. A block that comes
    back has passed its checksum, BLAKE2b-256 under the place's key over digest and bytes: one
    that was torn, changed, overwritten meanwhile or made by another model is not given. When the
    disk is full, fails or does not answer, `used` becomes false and nothing is kept any more.
    """

    def __init__(self, place: DiskPlace, block_bytes: int) -> None:
        """Raises OSError when the file cannot be opened, or is another process's."""
        self.used = True
        self._key = place.key
        self._slot_bytes = HEADER + block_bytes
        self._most = place.limit // self._slot_bytes
        self._fd = _open(place.path)
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free: list[int] = []
        self._next = 0
        """slots from here on were never written"""
        self._writes: OrderedDict[bytes, tuple[int, Future[None]]] = OrderedDict()
        self._readers = ThreadPoolExecutor(1, "prefix-read")
        self._writers = ThreadPoolExecutor(1, "prefix-write")
        try:
            self._scan()
        except OSError:
            self.close()
            raise

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slots

    @property
    def nbytes(self) -> int:
        return len(self._slots) * self._slot_bytes

    def close(self) -> None:
        """Finish what is queued and let go of the file."""
        self.used = False
        self._readers.shutdown()
        self._writers.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def touch(self, digest: bytes) -> None:
        """It was used just now."""
        self._slots.move_to_end(digest)

    def put(self, digest: bytes, data: Array) -> None:
        """Write a block soon; it can be read once it is written. `data` must not change."""
        self.collect()
        if digest in self._slots:
            self.touch(digest)
        elif (
            self.used
            and digest not in self._writes
            and (len(self._writes) + 1) * self._slot_bytes <= QUEUE
            and (slot := self._take()) is not None
        ):
            self._writes[digest] = slot, self._writers.submit(self._write, slot, digest, data)

    def read(self, digests: Iterable[bytes]) -> Read:
        """Those of these blocks that are whole, and the seconds that reading them took."""
        slots = [(digest, self._slots[digest]) for digest in digests]
        return self._readers.submit(self._read, slots)

    def settle(
        self, asked: Iterable[bytes], read: Read, patience: float
    ) -> tuple[dict[bytes, Array], float]:
        """Wait for a read of these digests, and forget those that did not come back."""
        try:
            found, seconds = read.result(patience)
        except (OSError, TimeoutError) as error:
            self._give_up(error)
            found, seconds = {}, PATIENCE
        for digest in asked:
            if digest not in found and (slot := self._slots.pop(digest, None)) is not None:
                self._free.append(slot)
        return found, seconds

    def _take(self) -> int | None:
        """A slot to write to; none while all are being written."""
        if self._free:
            return self._free.pop()
        if self._next < self._most:
            self._next += 1
            return self._next - 1
        return self._slots.popitem(last=False)[1] if self._slots else None

    def collect(self) -> None:
        """Let finished writes be found; one thread writes, so they finish in order."""
        while self._writes:
            digest, (slot, write) = next(iter(self._writes.items()))
            if not write.done():
                return
            del self._writes[digest]
            if error := write.exception():
                self._give_up(error)
            else:
                self._slots[digest] = slot

    def _give_up(self, error: BaseException) -> None:
        if self.used:
            log.warning("no more prompts are kept on disk: %s", str(error) or "it does not answer")
        self.used = False
        self._slots.clear()

    def _scan(self) -> None:
        """Find what an earlier Engine left; the checksums are looked at on reading."""
        whole = min(os.fstat(self._fd).st_size // self._slot_bytes, self._most)
        os.ftruncate(self._fd, whole * self._slot_bytes)
        for slot in range(whole):
            digest = os.pread(self._fd, DIGEST, slot * self._slot_bytes)
            if digest in self._slots:
                self._free.append(slot)
            else:
                self._slots[digest] = slot
        self._next = whole

    # In the other threads -------------------------------------------------------------------------

    def _write(self, slot: int, digest: bytes, data: Array) -> None:
        parts: list[bytes | memoryview] = [digest, self._checksum(digest, data), data.data]
        count = os.pwritev(self._fd, parts, slot * self._slot_bytes)
        if count != self._slot_bytes:
            raise OSError(f"only {count} of {self._slot_bytes} bytes could be written")

    def _read(self, slots: list[tuple[bytes, int]]) -> tuple[dict[bytes, Array], float]:
        began = time.perf_counter()
        found: dict[bytes, Array] = {}
        for digest, slot in slots:
            head, data = bytearray(HEADER), np.empty(self._slot_bytes - HEADER, np.uint8)
            os.preadv(self._fd, [head, data.data], slot * self._slot_bytes)
            if bytes(head) == digest + self._checksum(digest, data):
                found[digest] = data
        return found, time.perf_counter() - began

    def _checksum(self, digest: bytes, data: Array) -> bytes:
        checksum = blake2b(digest, digest_size=DIGEST, key=self._key)
        checksum.update(data.data)
        return checksum.digest()


def open_disk(place: DiskPlace, block_bytes: int) -> Disk | None:
    """The Disk, or None with a line in the log: an Engine can do without."""
    began = time.monotonic()
    try:
        disk = Disk(place, block_bytes)
    except OSError as error:
        log.warning("prompts are not kept on disk: %s: %s", place.path, error.strerror)
        return None
    log.debug("found %d bytes in %.3f s: %s", disk.nbytes, time.monotonic() - began, place.path)
    return disk


def _open(path: Path) -> int:
    """The file, ours alone to read and for this process alone to use."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(file, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with suppress(OSError):
            os.close(file)
        raise
    return file
