"""Thousands of requests leave nothing behind, and the detector sees what would be."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring.runtimes.answer import Answer
from mainspring.runtimes.llm import LLMRuntime
from tests.faults.streams import runtime, settings
from tests.soak.leaks import Sample, growth, sample, traffic
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROUNDS = 8
SHORT, LONG = 64 << 10, 256
"""bytes a request; in a short run allocators and the KV pool still settle, by up to 21 KiB"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("leaks"))


def measure(
    checkpoint: Path, requests: int, spoil: Callable[[LLMRuntime], Any] | None = None
) -> list[Sample]:
    """Samples after each round of requests, the first after as many that warm up."""

    async def main() -> list[Sample]:
        rng = random.Random(5)
        # A small pool is soon full of cached blocks, and then holds no more than before.
        config = settings(kv_memory=2 << 20, max_queue=8)
        async with runtime(checkpoint, config) as served:
            await traffic(served, rng, requests)
            samples = [await sample(served, 0)]
            if spoil is not None:
                spoil(served)
            for _ in range(ROUNDS):
                await traffic(served, rng, requests // ROUNDS)
                done = samples[-1].requests + requests // ROUNDS
                samples.append(await sample(served, done))
            assert served.restarts == 0
            return samples

    return asyncio.run(main())


def leaking(samples: list[Sample], bytes_a_request: float) -> list[str]:
    """The names of what grows."""
    first, last = samples[0], samples[-1]
    sizes = {name: growth(samples, name) for name in ("server", "worker")}
    print({name: f"{size:.0f} B/request" for name, size in sizes.items()}, first, last)
    grown = [name for name, size in sizes.items() if size > bytes_a_request]
    counts = ("files", "tasks", "threads")
    return grown + [name for name in counts if getattr(last, name) > getattr(first, name)]


def test_requests_leave_nothing_behind(checkpoint: Path) -> None:
    assert leaking(measure(checkpoint, 240), SHORT) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_requests_leave_nothing_behind(checkpoint: Path) -> None:
    assert leaking(measure(checkpoint, 3000), LONG) == []


def test_what_requests_leave_behind_is_seen(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps 256 KiB, an open file and a task of each answer."""
    kept: list[Any] = []
    close = Answer.close

    def forgetful(answer: Answer) -> None:
        close(answer)
        kept.append((os.urandom(256 << 10), os.open("/dev/null", os.O_RDONLY)))
        kept.append(asyncio.create_task(asyncio.sleep(3600)))

    def spoil(served: LLMRuntime) -> None:
        monkeypatch.setattr(Answer, "close", forgetful)

    try:
        found = leaking(measure(checkpoint, 240, spoil), SHORT)
        assert {"server", "files", "tasks"} <= set(found)
    finally:
        for one in kept:
            if isinstance(one, tuple):
                os.close(one[1])
