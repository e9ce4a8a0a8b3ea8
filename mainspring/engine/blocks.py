"""The KV cache's blocks: who holds which, and which can be read again."""

from __future__ import annotations

import operator
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from hashlib import blake2b
from itertools import chain, takewhile
from typing import NamedTuple

from mainspring.kernels import BLOCK

__all__ = ["BlockPool", "Content", "block_digest", "root_digest"]


def root_digest(salt: bytes) -> bytes:
    """What stands for the parent of a sequence's first block."""
    return blake2b(salt, digest_size=32).digest()


def block_digest(parent: bytes, tokens: Items[int]) -> bytes:
    """BLAKE2b-256 over the digest of the block before and a block's own token ids (int32).

    So equal digests mean equal whole prefixes under the same salt, and nobody can make a collision
    or recognise another salt's prefix.
    """
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=32).digest()


class Content(NamedTuple):
    """What a block holds."""

    digest: bytes
    parent: bytes
    """digest of the block before"""
    tokens: Items[int]
    """BLOCK of them, or fewer at a sequence's end"""


class BlockPool:
    """`size` blocks of BLOCK tokens. Each is free, used (held by sequences) or cached.

    A cached block is held by nobody and keeps its contents until it is needed: the least recently
    used goes first, and of blocks released together the tail of the chain, so that what stays can
    still be reached. `keep` is shown each full cached block and its digest right before it goes.
    All operations cost O(blocks touched).
    """

    def __init__(self, size: int, keep: Callable[[int, bytes], None] | None = None) -> None:
        self.size = size
        self._keep = keep
        self._free = list(range(size - 1, -1, -1))
        self._holders = [0] * size
        self._contents: list[Content | None] = [None] * size
        self._found: dict[bytes, int] = {}
        self._after: dict[bytes, int] = {}
        """of the blocks with the same parent the one published last"""
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
            content = self._contents[block]
            assert content is not None
            if self._keep is not None and len(content.tokens) == BLOCK:
                self._keep(block, content.digest)
            del self._found[content.digest]
            if self._after.get(content.parent) == block:
                del self._after[content.parent]
            self._contents[block] = None
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

    def begun(self, parent: bytes, tokens: Items[int]) -> tuple[int, int]:
        """A block after the one of digest `parent`, and with how many of `tokens` it begins.

        0 of them when there is none. The block's contents are to be copied at once: nobody's hold
        changes.
        """
        if (block := self._after.get(parent)) is None or (content := self._contents[block]) is None:
            return 0, 0
        same = map(operator.eq, content.tokens, tokens)
        return block, sum(1 for _ in takewhile(bool, same))

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are held by nobody, so that sharing them takes from `available`."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more holder of each of these matched blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def publish(self, block: int, content: Content) -> None:
        """Let others find a held block, now that its contents are computed.

        Of two blocks with the same contents the first published stays the one that is found.
        """
        if self._contents[block] is None and content.digest not in self._found:
            self._contents[block] = content
            self._found[content.digest] = block
            self._after[content.parent] = block

    def release(self, blocks: Items[int]) -> None:
        """Stop holding these blocks, a whole sequence's or its tail, in order of position."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._contents[block] is None:
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
        named = [(digest, block, 0) for digest, block in self._found.items()]
        named += [(parent, block, 1) for parent, block in self._after.items()]
        for digest, block, field in named:
            content = self._contents[block]
            if content is None or content[field] != digest:
                raise AssertionError("the prefix index names a block with other contents")
