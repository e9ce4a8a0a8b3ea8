"""Evicted blocks come back bit for bit, or not at all."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.disk import Disk, DiskPlace
from mainspring.engine.engine import Engine
from mainspring.kernels import BLOCK, Array, load_kernels
from tests.unit.engine.test_invariance import Storm, native
from tests.unit.engine.toy import GREEDY, Toy, prompt, run_one, tokens_of, toy_engine

BYTES = 1000


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def block(number: int) -> Array:
    return np.full(BYTES, number, np.uint8)


def place(path: Path, blocks: int = 4, key: bytes = b"key") -> DiskPlace:
    return DiskPlace(path / "folder" / "x.blocks", blocks * (BYTES + 64), key)


def written(disk: Disk) -> None:
    disk._writers.submit(lambda: None).result()
    disk.collect()


def filled(where: DiskPlace, count: int) -> None:
    disk = Disk(where, BYTES)
    for number in range(count):
        disk.put(digest(number), block(number))
        written(disk)
    disk.close()


def read(disk: Disk, *numbers: int) -> list[int]:
    """Which of these blocks come back."""
    asked = [digest(number) for number in numbers if digest(number) in disk]
    found, _ = disk.settle(asked, disk.read(asked), 5.0)
    for number in numbers:
        if digest(number) in found:
            assert (found[digest(number)] == number).all()
    return [number for number in numbers if digest(number) in found]


# The disk -----------------------------------------------------------------------------------------


def test_blocks_are_found_by_the_next_one_and_by_nobody_else(tmp_path: Path) -> None:
    where = place(tmp_path)
    filled(where, 3)
    assert stat.S_IMODE(where.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(where.path.parent.stat().st_mode) == 0o700
    disk = Disk(where, BYTES)
    with pytest.raises(BlockingIOError):
        Disk(where, BYTES)
    assert read(disk, 0, 1, 2, 3) == [0, 1, 2]
    disk.close()


def test_another_key_reads_nothing(tmp_path: Path) -> None:
    filled(place(tmp_path), 3)
    disk = Disk(place(tmp_path, key=b"other weights"), BYTES)
    assert read(disk, 0, 1, 2) == [] and disk.nbytes == 0
    disk.close()


def test_the_file_stays_within_its_limit_and_the_oldest_go(tmp_path: Path) -> None:
    where = place(tmp_path, blocks=4)
    filled(where, 6)
    assert where.path.stat().st_size <= where.limit
    disk = Disk(where, BYTES)
    assert len([n for n in range(6) if digest(n) in disk]) == 4 and digest(5) in disk
    disk.close()
    disk = Disk(replace(where, limit=where.limit // 2), BYTES)
    assert where.path.stat().st_size <= where.limit // 2
    disk.close()


@pytest.mark.parametrize("place_of", [0, 31, 32, 63, 64, 500, BYTES + 63])
def test_a_flipped_bit_is_a_miss(tmp_path: Path, place_of: int) -> None:
    where = place(tmp_path)
    filled(where, 2)
    data = bytearray(where.path.read_bytes())
    data[place_of] ^= 1
    where.path.write_bytes(data)
    disk = Disk(where, BYTES)
    assert read(disk, 0, 1) == [1]
    assert digest(0) not in disk
    disk.close()


def test_a_torn_file_keeps_what_is_whole(tmp_path: Path) -> None:
    where = place(tmp_path)
    filled(where, 3)
    with where.path.open("r+b") as file:
        file.truncate(2 * (BYTES + 64) + 500)
    disk = Disk(where, BYTES)
    assert read(disk, 0, 1, 2) == [0, 1]
    disk.close()


def test_a_full_disk_is_given_up_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(place(tmp_path), BYTES)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with full.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), disk._fd, inheritable=False)
    disk.put(digest(0), block(0))
    disk._writers.shutdown()
    with caplog.at_level(logging.WARNING):
        disk.put(digest(1), block(1))
    assert "No space left" in caplog.text and not disk.used
    disk.close()


# The Engine ---------------------------------------------------------------------------------------


def fill_pool(engine: Engine) -> None:
    """Other prompts, so that every cached block is evicted."""
    for seed in range(100, 103):
        run_one(engine, prompt(250, seed), GREEDY)


def settled(engine: Engine) -> None:
    disk = engine._tier._disk
    if disk is not None:
        written(disk)


@pytest.mark.parametrize("tiers", ["memory", "disk", "both"])
def test_an_evicted_prompt_comes_back(tmp_path: Path, tiers: str) -> None:
    memory = {"memory": 1 << 20, "disk": 0, "both": 40_000}[tiers]
    disk = None if tiers == "memory" else DiskPlace(tmp_path / "x.blocks", 1 << 20, b"key")
    engine = toy_engine(blocks=10, prefix_memory=memory, prefix_disk=disk)
    tokens = prompt(200)
    first = run_one(engine, tokens, GREEDY)
    fill_pool(engine)
    settled(engine)
    second = run_one(engine, tokens, GREEDY)
    assert tokens_of(second) == tokens_of(first)
    assert second[-1].cached == 192
    stats = engine.stats().tier
    assert stats.memory_tokens + stats.disk_tokens == 192 and stats.evicted_blocks
    assert bool(stats.memory_tokens) == (tiers == "memory") and stats.memory_bytes <= memory
    engine.close()


def test_the_next_engine_reads_what_the_last_one_left(tmp_path: Path) -> None:
    disk = DiskPlace(tmp_path / "x.blocks", 1 << 20, b"key")
    engine = toy_engine(blocks=10, prefix_disk=disk)
    first = run_one(engine, prompt(200), GREEDY)
    fill_pool(engine)
    engine.close()
    engine = toy_engine(blocks=10, prefix_disk=disk)
    second = run_one(engine, prompt(200), GREEDY)
    assert (tokens_of(second), second[-1].cached) == (tokens_of(first), 192)
    engine.close()


def test_what_is_cheaper_to_compute_is_computed(tmp_path: Path) -> None:
    engine = toy_engine(blocks=10, prefix_memory=1 << 20)
    engine._tier._copies.seconds = 1e9
    run_one(engine, prompt(200), GREEDY)
    fill_pool(engine)
    assert run_one(engine, prompt(200), GREEDY)[-1].cached == 0


def test_a_salt_still_separates(tmp_path: Path) -> None:
    engine = toy_engine(blocks=10, prefix_memory=1 << 20)
    run_one(engine, prompt(200), GREEDY, salt=b"a")
    fill_pool(engine)
    assert run_one(engine, prompt(200), GREEDY, salt=b"b")[-1].cached == 0


@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_a_block_is_the_same_bits(name: str, dtype: Any) -> None:
    kernels = load_kernels(name, threads=1)
    cache = kernels.cache(3, 4, 2, 10, dtype)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, cache.block_bytes).astype(np.uint8)
    again = np.empty_like(data)
    cache.write_block(2, data)
    cache.read_block(2, again)
    assert (again == data).all()
    for other in (1, 3):
        cache.read_block(other, again)
        assert not again.any()


@pytest.mark.parametrize("tokens", [1, 5, 6, 31])
@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_a_copied_block_is_as_if_computed(name: str, dtype: Any, tokens: int) -> None:
    """Whatever the source holds after the tokens in common: here NaN."""
    kernels = load_kernels(name, threads=1)
    cache = kernels.cache(2, 3, 2, 10, dtype)
    qkv = np.random.default_rng(1).standard_normal((BLOCK, 8 * 10)).astype(np.float32)
    other = qkv.copy()
    other[tokens:] = np.nan

    def attend(rows: np.ndarray[Any, Any], layer: int, computed: int, block: int) -> Any:
        starts, lengths = np.array([0, len(rows)]), np.array([computed + len(rows)])
        tables = np.array([[block]])
        ints = (a.astype(np.int32) for a in (starts, lengths, tables))
        return kernels.attention(rows, cache, layer, *ints, heads=4, scale=0.3)

    whole = [attend(qkv, layer, 0, 0) for layer in range(2)]
    for layer in range(2):
        attend(other, layer, 0, 1)
    cache.copy_block(1, 2, tokens)
    for layer in range(2):
        for i in range(tokens, BLOCK):
            assert (attend(qkv[i : i + 1], layer, i, 2) == whole[layer][i]).all()


def test_the_kernels_refuse_what_is_no_block() -> None:
    cache = native().cache(1, 2, 1, 8, "bf16")
    data = np.empty(cache.block_bytes, np.uint8)
    for number in (-1, 2):
        with pytest.raises(ValueError, match="one of the cache's"):
            cache.read_block(number, data)
        with pytest.raises(ValueError, match="one of the cache's"):
            cache.write_block(number, data)
        with pytest.raises(ValueError, match="one of the cache's"):
            cache.copy_block(number, 0, 1)
        with pytest.raises(ValueError, match="one of the cache's"):
            cache.copy_block(0, number, 1)
    with pytest.raises(ValueError, match="to itself"):
        cache.copy_block(1, 1, 1)
    for tokens in (0, BLOCK + 1):
        with pytest.raises(ValueError, match="1 to 32"):
            cache.copy_block(0, 1, tokens)
    with pytest.raises(ValueError, match="entries along axis"):
        cache.write_block(0, data[1:])


class TieredStorm(Storm):
    """A Storm whose Engines keep what they evict, each on the disk of the one before."""

    def __init__(self, seed: int, path: Path) -> None:
        self.file = path / f"{seed}.blocks"
        self.engine: Any = None
        self.hits = [0, 0]
        kernels = native()
        super().__init__(kernels, seed, Toy(kernels, context=160, seed=seed))

    def new_engine(self) -> Engine:
        if self.engine is not None:
            self.engine.close()
        plain = super().new_engine()
        rng = self.rng
        config = replace(
            plain._config,
            prefix_cache=True,
            prefix_memory=rng.choice([0, 50_000, 1 << 20]),
            prefix_disk=rng.choice(
                [None, DiskPlace(self.file, rng.choice([1 << 17, 1 << 20]), b"")]
            ),
        )
        return Engine(self.model, self.kernels, config, plain._clock)

    def count(self) -> None:
        super().count()
        tier = self.engine.stats().tier
        self.hits[0] += tier.memory_tokens
        self.hits[1] += tier.disk_tokens


def test_storms(tmp_path: Path) -> None:
    """Eight of them; more where the machine is so busy that reading a disk hardly pays."""
    memory = disk = preemptions = 0
    for seed in range(400, 424):
        weather = TieredStorm(seed, tmp_path)
        weather.rage(200)
        weather.compare()
        weather.engine.close()
        memory, disk = memory + weather.hits[0], disk + weather.hits[1]
        preemptions += weather.preemptions
        if seed >= 407 and disk:
            break
    assert memory and disk and preemptions
