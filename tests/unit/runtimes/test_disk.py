"""Which file holds a model's evicted blocks, and what becomes of those of other settings."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mainspring.config import ModelConfig
from mainspring.engine.disk import DiskPlace
from mainspring.runtimes.disk import delete_blocks, disk_place
from tests.tiny import tiny_checkpoint

LIMIT = 10_000


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def place_of(path: Path, kernels: str = "avx2", **settings: Any) -> DiskPlace:
    config = ModelConfig(**{"prefix_disk": LIMIT, **settings})
    place = disk_place(path, config, path.parent / "home", kernels)
    assert place is not None
    return place


def fill(place: DiskPlace, size: int, age: float = 0.0) -> Path:
    place.path.parent.mkdir(parents=True, exist_ok=True)
    place.path.write_bytes(bytes(size))
    os.utime(place.path, (0, time.time() - age))
    return place.path


def test_the_same_files_and_settings_find_the_same_place(checkpoint: Path) -> None:
    assert place_of(checkpoint) == place_of(checkpoint)


def test_whatever_changes_a_blocks_bits_changes_the_key(checkpoint: Path) -> None:
    keys = {
        place_of(checkpoint).key,
        place_of(checkpoint, "avx512").key,
        place_of(checkpoint, quantize="int4").key,
        place_of(checkpoint, kv_format="int8").key,
        place_of(checkpoint, context=128).key,
    }
    weights = checkpoint / "model.safetensors"
    data = weights.read_bytes()
    dates = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    time.sleep(0.02)  # the clock of the file system ticks
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(weights, ns=dates)
    keys.add(place_of(checkpoint).key)
    (checkpoint / "copy").write_bytes(data)
    (checkpoint / "copy").replace(weights)
    keys.add(place_of(checkpoint).key)
    assert len(keys) == 7


def test_the_checkpoint_is_not_read(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 1 << 40)  # a hole of a terabyte
    began = time.monotonic()
    place_of(checkpoint)
    assert time.monotonic() - began < 5


def test_other_settings_keep_half_and_the_oldest_go_first(checkpoint: Path) -> None:
    old = fill(place_of(checkpoint, quantize="int4"), 3000, age=200)
    new = fill(place_of(checkpoint, context=128), 3000, age=100)
    place = place_of(checkpoint)
    assert (old.exists(), new.exists(), place.limit) == (False, True, LIMIT - 3000)
    # What is here already comes first.
    fill(place, 8000)
    assert place_of(checkpoint).limit == LIMIT
    assert not new.exists()


def test_what_was_used_last_is_the_youngest(checkpoint: Path) -> None:
    first = fill(place_of(checkpoint, quantize="int4"), 3000, age=200)
    second = fill(place_of(checkpoint, context=128), 3000, age=100)
    place_of(checkpoint, quantize="int4", prefix_disk=2 * LIMIT)
    place_of(checkpoint)
    assert (first.exists(), second.exists()) == (True, False)


def test_other_models_and_files_in_use_stay(checkpoint: Path, tmp_path: Path) -> None:
    other = fill(place_of(tiny_checkpoint(tmp_path / "other")), LIMIT)
    used = fill(place_of(checkpoint, quantize="int4"), LIMIT)
    with used.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place_of(checkpoint)
        assert used.exists()
    assert place_of(checkpoint).limit == LIMIT
    assert (used.exists(), other.exists()) == (False, True)


def test_without_a_tier_nothing_stays(checkpoint: Path) -> None:
    file = fill(place_of(checkpoint), 100)
    assert disk_place(checkpoint, ModelConfig(), checkpoint.parent / "home", "avx2") is None
    assert not file.exists()


def test_all_of_a_model_can_be_deleted(checkpoint: Path) -> None:
    files = [fill(place_of(checkpoint, context=context), 100) for context in (0, 128)]
    home = checkpoint.parent / "home"
    assert delete_blocks(checkpoint, home) == 200
    assert not any(file.exists() for file in files)
    assert delete_blocks(checkpoint, home) == 0
