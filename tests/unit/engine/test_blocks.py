from __future__ import annotations

import random

import pytest

from mainspring.engine.blocks import BlockPool, Content, block_digest, root_digest
from mainspring.kernels import BLOCK


def contents(tokens: list[int], salt: bytes = b"") -> list[Content]:
    """Of all blocks, the last one maybe not full."""
    found: list[Content] = []
    parent = root_digest(salt)
    for start in range(0, len(tokens), BLOCK):
        held = tokens[start : start + BLOCK]
        found.append(Content(block_digest(parent, held), parent, held))
        parent = found[-1].digest
    return found


def digests(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    return [content.digest for content in contents(tokens, salt)]


def publish_all(pool: BlockPool, tokens: list[int]) -> list[int]:
    chain = contents(tokens)
    blocks = pool.allocate(len(chain))
    for block, content in zip(blocks, chain, strict=True):
        pool.publish(block, content)
    return blocks


def test_a_digest_says_the_whole_prefix_and_the_salt() -> None:
    tokens = list(range(2 * BLOCK))
    changed = [7, *tokens[1:]]
    assert digests(tokens)[1] != digests(changed)[1]
    assert digests(tokens)[0] != digests(tokens, b"tenant")[0]
    assert digests(tokens, b"tenant") == digests(tokens, b"tenant")


def test_released_blocks_are_found_again_until_they_are_needed() -> None:
    pool = BlockPool(4)
    tokens = list(range(3 * BLOCK))
    blocks = publish_all(pool, tokens)
    assert (pool.used, pool.cached, pool.available) == (3, 0, 1)
    pool.release(blocks)
    assert (pool.used, pool.cached, pool.available) == (0, 3, 4)
    assert pool.match(digests(tokens)) == blocks
    # The free block goes first, then the tail of the chain: its head can still be reached.
    taken = pool.allocate(2)
    assert taken[1] == blocks[2]
    assert pool.match(digests(tokens)) == blocks[:2]
    pool.check([taken])


def test_eviction_takes_the_least_recently_used_chain() -> None:
    pool = BlockPool(4)
    old, new = list(range(2 * BLOCK)), list(range(100, 100 + 2 * BLOCK))
    first = publish_all(pool, old)
    second = publish_all(pool, new)
    pool.release(first)
    pool.release(second)
    hits = pool.match(digests(old))  # used again, so it is now the younger one
    pool.share(hits)
    pool.release(hits)
    pool.allocate(2)
    assert pool.match(digests(new)) == []
    assert pool.match(digests(old)) == first


def test_shared_blocks_stay_until_the_last_holder_leaves() -> None:
    pool = BlockPool(2)
    tokens = list(range(BLOCK))
    blocks = publish_all(pool, tokens)
    assert pool.idle(blocks) == 0
    pool.share(blocks)
    pool.check([blocks, blocks])
    pool.release(blocks)
    assert pool.used == 1
    pool.release(blocks)
    assert pool.used == 0 and pool.idle(blocks) == 1
    pool.check()


def test_of_two_equal_blocks_the_first_is_found() -> None:
    pool = BlockPool(2)
    tokens = list(range(BLOCK))
    first, second = publish_all(pool, tokens), publish_all(pool, tokens)
    assert pool.match(digests(tokens)) == first
    pool.release(first + second)
    assert (pool.cached, pool.available) == (1, 2)
    pool.check()


def test_the_beginning_of_a_block_is_found_under_its_parent() -> None:
    pool = BlockPool(4)
    tokens = list(range(BLOCK + 9))
    blocks = publish_all(pool, tokens)
    parent, wanted = digests(tokens)[0], tokens[BLOCK:]
    assert pool.begun(parent, wanted) == (blocks[1], 9)
    assert pool.begun(parent, [*wanted, 7]) == (blocks[1], 9)
    assert pool.begun(parent, wanted[:4]) == (blocks[1], 4)
    assert pool.begun(parent, [*wanted[:3], 7]) == (blocks[1], 3)
    assert pool.begun(parent, [7])[1] == 0
    assert pool.begun(root_digest(b"tenant"), tokens[:4])[1] == 0
    pool.release(blocks)
    assert pool.cached == 2
    pool.allocate(3)  # the begun block goes first
    assert pool.begun(parent, wanted)[1] == 0
    assert pool.begun(root_digest(b""), tokens)[1] == BLOCK
    pool.check([[block] for block in range(4) if block != blocks[0]])


def test_only_full_blocks_are_kept_elsewhere() -> None:
    kept: list[int] = []
    pool = BlockPool(3, lambda block, digest: kept.append(block))
    blocks = publish_all(pool, list(range(BLOCK + 9)))
    pool.release(blocks)
    pool.allocate(3)
    assert kept == [blocks[0]]


def test_check_sees_a_leak_and_a_wrong_holder_count() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.check([blocks])
    with pytest.raises(AssertionError, match="counts 1 holders, 0 tables"):
        pool.check()
    with pytest.raises(AssertionError, match="counts 1 holders, 2 tables"):
        pool.check([blocks, blocks])
    pool._free.pop()
    with pytest.raises(AssertionError, match="are not the pool's 4"):
        pool.check([blocks])


def test_random_operations_keep_the_books() -> None:
    rng = random.Random(7)
    pool = BlockPool(24)
    held: list[list[int]] = []
    for _ in range(3000):
        if held and (rng.random() < 0.5 or pool.available < 6):
            pool.release(held.pop(rng.randrange(len(held))))
        else:
            start = rng.randrange(4)
            tokens = [start] * (BLOCK * rng.randint(1, 6))
            chain = contents(tokens)
            hits = pool.match(digests(tokens))
            pool.share(hits)
            fresh = pool.allocate(len(chain) - len(hits))
            blocks = hits + fresh
            for block, content in zip(blocks, chain, strict=True):
                pool.publish(block, content)
            held.append(blocks)
        pool.check(held)
    for blocks in held:
        pool.release(blocks)
    pool.check()


class Counting(dict[bytes, int]):
    gets = 0

    def get(self, key: bytes, default: int | None = None) -> int | None:  # type: ignore[override]
        self.gets += 1
        return super().get(key, default)


@pytest.mark.parametrize("others", [0, 2000])
def test_a_hit_costs_one_look_up_a_block(others: int) -> None:
    pool = BlockPool(2100)
    tokens = list(range(50 * BLOCK))
    publish_all(pool, tokens)
    publish_all(pool, list(range(10**6, 10**6 + others * BLOCK)))
    pool._found = counting = Counting(pool._found)
    assert len(pool.match(digests([*tokens, *range(5 * BLOCK)]))) == 50
    assert counting.gets == 51
