"""The KV cache's blocks: who holds which, and which can be read again."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from hashlib import blake2b
from itertools import chain

from mainspring.kernels import BLOCK

__all__ = ["BlockPool", "block_digests"]


def block_digests(salt: bytes, tokens: Items[int], known: list[bytes]) -> None:
    """Extend `known` by the digests of the full blocks of `tokens` that it lacks.

    A block's digest is BLAKE2b-256 over its parent's digest and its own token ids (int32); the
    first block's parent is the digest of `salt`. So equal digests mean equal whole prefixes under
    the same salt, and nobody can make a collision or recognise another salt's prefix.
    """
    full = len(tokens) // BLOCK
    if len(known) >= full:
        return
    parent = known[-1] if known else blake2b(salt, digest_size=32).digest()
    for start in range(len(known) * BLOCK, full * BLOCK, BLOCK):
        data = array("i", tokens[start : start + BLOCK]).tobytes()
        parent = blake2b(parent + data, digest_size=32).digest()
        known.append(parent)


class BlockPool:
    """`size` blocks of BLOCK tokens. Each is free, used (held by sequences) or cached.

    A cached block is held by nobody and keeps its contents until it is needed: the least recently
    used goes first, and of blocks released together the tail of the chain, so that what stays can
    still be reached. `keep` is shown each cached block and its digest right before it goes. All
    operations cost O(blocks touched).
    """

    def __init__(self, size: int, keep: Callable[[int, bytes], None] | None = None) -> None:
        self.size = size
        self._keep = keep
        self._free = list(range(size - 1, -1, -1))
        self._holders = [0] * size
        self._digests: list[bytes | None] = [None] * size
        self._found: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.size - self.available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one holder each; `count` is at most `available`."""
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            digest = self._digests[block]
            assert digest is not None
            if self._keep is not None:
                self._keep(block, digest)
            del self._found[digest]
            self._digests[block] = None
        self._holders[block] = 1
        return block

    def match(self, digests: Iterable[bytes]) -> list[int]:
        """Blocks that hold the longest known prefix of `digests`; nobody's hold changes."""
        blocks = []
        for digest in digests:
            if (block := self._found.get(digest)) is None:
                break
            blocks.append(block)
        return blocks

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are held by nobody, so that sharing them takes from `available`."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more holder of each of these matched blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def publish(self, block: int, digest: bytes) -> None:
        """Let others find a held block, now that its contents are computed.

        Of two blocks with the same contents the first published stays the one that is found.
        """
        if self._digests[block] is None and digest not in self._found:
            self._digests[block] = digest
            self._found[digest] = block

    def release(self, blocks: Items[int]) -> None:
        """Stop holding these blocks, a whole sequence's or its tail, in order of position."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._digests[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def check(self, tables: Iterable[Items[int]] = ()) -> None:
        """Raise AssertionError unless free + used + cached == all and holders match `tables`.

        `tables` are the block lists of every sequence that holds blocks. O(size).
        """
        held = [0] * self.size
        for block in chain.from_iterable(tables):
            held[block] += 1
        used = self.size - self._holders.count(0)
        total = len(self._free) + used + len(self._cached)
        if total != self.size:
            raise AssertionError(
                f"{len(self._free)} free + {used} used + {len(self._cached)} cached blocks "
                f"are not the pool's {self.size}"
            )
        if held != self._holders:
            block = next(b for b in range(self.size) if held[b] != self._holders[b])
            raise AssertionError(
                f"block {block} counts {self._holders[block]} holders, {held[block]} tables name it"
            )
        unheld = {*self._free, *self._cached}
        if len(unheld) != total - used or any(map(self._holders.__getitem__, unheld)):
            raise AssertionError("a block is free or cached twice, or while it is used")
        if any(self._digests[block] != digest for digest, block in self._found.items()):
            raise AssertionError("the prefix index names a block with other contents")
