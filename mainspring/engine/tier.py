"""Where the pool's evicted blocks go: memory first, then a disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from mainspring.engine.disk import PATIENCE, DiskPlace, Read, open_disk
from mainspring.kernels import BLOCK, Array, Cache
from mainspring.types import TierStats

__all__ = ["MOST", "Tier"]

MOST = 64 << 20
"""bytes that a sequence gets back at most, which bounds a step's time and the memory of reading"""
COPY_RATE, READ_RATE = 2e9, 4e8
"""bytes a second, a guess until some were measured"""
WEIGHT = 0.2
"""of a new measurement in the average"""
FADE = 0.99
"""A refusal makes a speed seem so much better: it is found out again from time to time."""


class Speed:
    """Seconds that a block takes, from those that were moved."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def observe(self, seconds: float, blocks: int) -> None:
        self.seconds += WEIGHT * (seconds / blocks - self.seconds)

    def beats(self, seconds: float) -> bool:
        """Whether a block takes less than `seconds`."""
        if self.seconds < seconds:
            return True
        self.seconds *= FADE
        return False


class Tier:
    """Evicted blocks by their digest, bit for bit, for one `cache`.

    At most `memory` bytes of them stay in memory, the least recently used going on to the
    disk at `place`.
    A pool evicts a chain's tail before its head, and so does this.

    `clock` gives seconds; `seconds` are those that the caller's thread spent here.
    """

    def __init__(
        self, cache: Cache, memory: int, place: DiskPlace | None, clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._disk = open_disk(place, cache.block_bytes) if place else None
        self._clock = clock
        self._bytes = cache.block_bytes
        self._most = memory // self._bytes
        self._blocks: OrderedDict[bytes, Array] = OrderedDict()
        self._asked: list[bytes] = []
        self._read: Read | None = None
        self._began = 0.0
        self._arrived: dict[bytes, Array] = {}
        self._copies = Speed(self._bytes / COPY_RATE)
        self._reads = Speed(self._bytes / READ_RATE)
        self.seconds = 0.0
        self._evicted = self._memory_hits = self._disk_hits = 0

    def stats(self) -> TierStats:
        return TierStats(
            evicted_blocks=self._evicted,
            memory_bytes=len(self._blocks) * self._bytes,
            memory_tokens=self._memory_hits * BLOCK,
            disk_bytes=self._disk.nbytes if self._disk else 0,
            disk_tokens=self._disk_hits * BLOCK,
        )

    def take_seconds(self) -> float:
        """Seconds that the caller's thread spent here since it last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Let go of the disk."""
        if self._disk:
            self._disk.close()

    def keep(self, block: int, digest: bytes) -> None:
        """Copy a block that the pool evicts."""
        self._evicted += 1
        if digest in self._blocks:
            self._blocks.move_to_end(digest)
            return
        if not self._most:
            if self._disk is None or not self._disk.used:
                return
            if digest in self._disk:
                self._disk.touch(digest)
                return
        began = self._clock()
        data = np.empty(self._bytes, np.uint8)
        self._cache.read_block(block, data)
        self._blocks[digest] = data
        if len(self._blocks) > self._most:
            oldest, data = self._blocks.popitem(last=False)
            if self._disk:
                self._disk.put(oldest, data)
        seconds = self._clock() - began
        self._copies.observe(seconds, 1)
        self.seconds += seconds

    def find(self, digests: Items[bytes], cost: Callable[[int], float]) -> list[bytes]:
        """How far `digests` can be brought back for less than computing them takes.

        `cost` gives the seconds that computing the block at an index of `digests` takes.
        """
        found: list[bytes] = []
        if digests and self._disk:
            self._disk.collect()
        for digest in digests[: MOST // self._bytes]:
            if digest in self._blocks or digest in self._arrived:
                speed = self._copies
            elif self._disk and digest in self._disk:
                speed = self._reads
            else:
                break
            if not speed.beats(cost(len(found))):
                break
            found.append(digest)
        return found

    def fetch(self, found: list[bytes], *, wait: bool) -> list[Array] | None:
        """The blocks of what `find` gave, as far as they are whole.

        None while those on disk are being read: ask again. With `wait`, there is no other work.
        """
        self._arrived = {d: self._arrived[d] for d in found if d in self._arrived}
        while self._begin(found):
            assert self._read is not None
            late = self._clock() - self._began > PATIENCE
            if not (self._read.done() or wait or late):
                return None
            self._settle(self._read, 0.0 if late else PATIENCE)
        return self._gather(found)

    def restore(self, blocks: Items[int], data: Items[Array]) -> None:
        """Write what `fetch` gave to these blocks of the cache."""
        if not blocks:
            return
        began = self._clock()
        for block, bits in zip(blocks, data, strict=True):
            self._cache.write_block(block, bits)
        seconds = self._clock() - began
        self._copies.observe(seconds, len(blocks))
        self.seconds += seconds
        self._arrived.clear()

    def _begin(self, found: list[bytes]) -> bool:
        """Let what is on disk alone be read; False when nothing is, nor is being read."""
        if self._read is None and self._disk:
            here = self._blocks.keys() | self._arrived.keys()
            self._asked = [d for d in found if d not in here and d in self._disk]
            if self._asked:
                self._began = self._clock()
                self._read = self._disk.read(self._asked)
        return self._read is not None

    def _settle(self, read: Read, patience: float) -> None:
        assert self._disk is not None
        began = self._clock()
        arrived, seconds = self._disk.settle(self._asked, read, patience)
        self._arrived |= arrived
        self._reads.observe(seconds, len(self._asked))
        self._read = None
        self.seconds += self._clock() - began

    def _gather(self, found: list[bytes]) -> list[Array]:
        data: list[Array] = []
        for digest in found:
            bits = self._blocks.get(digest)
            if bits is None and (bits := self._arrived.get(digest)) is None:
                break
            data.append(bits)
        self._touch(found[: len(data)])
        return data

    def _touch(self, used: list[bytes]) -> None:
        """The chain's head is the youngest; what came back is counted."""
        for digest in reversed(used):
            if digest in self._blocks:
                self._blocks.move_to_end(digest)
                self._memory_hits += 1
            else:
                self._disk_hits += 1
                if self._disk and digest in self._disk:
                    self._disk.touch(digest)
