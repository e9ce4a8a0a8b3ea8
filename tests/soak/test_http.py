"""A server under mixed HTTP requests keeps nothing of them: 200,000 in the long form."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import pytest

from tests.soak.leaks import Sample, growth
from tests.soak.mixed import serving, traffic
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SHORT, LONG = 64 << 10, 1e6 / 100_000
"""bytes a request; in a short run allocators and the KV pool still settle"""


def measure(folder: Path, requests: int, rounds: int, *, leak: bool = False) -> list[Sample]:
    """Samples after each round, the first after one that warms up."""
    rng = random.Random(11)
    with (folder / "log").open("w") as log, serving(tiny_checkpoint(folder), log) as served:
        size = requests // rounds
        asyncio.run(traffic(served, rng, size))
        samples = [served.sample(0)]
        if leak:
            served.tell("leak")
        for number in range(rounds):
            began = time.monotonic()
            statuses = asyncio.run(traffic(served, rng, size))
            rate = size / (time.monotonic() - began)
            samples.append(served.sample((number + 1) * size))
            print(samples[-1], statuses, f"{rate:.0f} requests/s", flush=True)
            assert {200, 400, 404, 0} >= set(statuses) and statuses[200] > size / 2
    assert (folder / "log").read_text() == ""
    return samples


def grown(samples: list[Sample], bytes_a_request: float) -> set[str]:
    """The names of what grows."""
    sizes = {name: growth(samples, name) for name in ("server", "worker")}
    print({name: f"{size:.1f} B/request" for name, size in sizes.items()})
    counts = ("files", "tasks", "threads")
    more = {name for name in counts if getattr(samples[-1], name) > getattr(samples[0], name)}
    return more | {name for name, size in sizes.items() if size > bytes_a_request}


def test_requests_leave_nothing_behind(tmp_path: Path) -> None:
    assert grown(measure(tmp_path, 400, 2), SHORT) == set()


def test_what_requests_leave_behind_is_seen(tmp_path: Path) -> None:
    assert {"server", "files", "tasks"} <= grown(measure(tmp_path, 200, 2, leak=True), SHORT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    assert grown(measure(tmp_path, 200_000, 20), LONG) == set()
