"""Workers killed at random moments: loading, idle, between requests, in the middle of streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from mainspring.runtimes import supervisor
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Request, Sampling
from tests.faults.streams import Told, request, runtime, same, tell, until
from tests.tiny import tiny_checkpoint

ROUND_SECONDS = 1.2
"""of a round's kills; requests end in less, so some kills find a Worker idle or loading"""
SERVING_SECONDS = NOTICED_SECONDS = 5.0
DEATHS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("storm"))


def mixed(rng: random.Random) -> list[Request]:
    """Some requests whose prompts share a beginning."""
    beginning = "the keeper of the lighthouse " * 3
    return [
        request(
            beginning + "by the sea"[: rng.randrange(10)],
            sampling=Sampling(
                temperature=rng.choice((0.0, 0.8)),
                max_tokens=rng.randrange(1, 120),
                ignore_eos=True,
                logprobs=rng.choice((None, 1)),
            ),
            seed=rng.randrange(1000),
            n=rng.choice((1, 1, 2)),
            tenant=rng.choice(("", "a")),
        )
        for _ in range(rng.randrange(1, 6))
    ]


async def storm(path: Path, seed: int, kills: int) -> list[float]:
    """Rounds of requests under kills, each answer compared with an undisturbed one.

    Returns the seconds from each kill until the Worker served again.
    """
    rng = random.Random(seed)
    pauses: list[float] = []
    async with runtime(path) as calm, runtime(path, stall_seconds=2.0) as served:
        while len(pauses) < kills:
            requests = mixed(rng)
            moments = sorted(rng.uniform(0, ROUND_SECONDS) for _ in range(rng.randrange(1, 3)))
            killing = asyncio.create_task(kill(served, moments, rng))
            disturbed = await asyncio.gather(*(_later(served, one, rng) for one in requests))
            pauses += await killing
            for one, ours in zip(requests, disturbed, strict=True):
                same(ours, await tell(calm.run(one)))
        stats = served.stats
        assert not served._supervisor.flights and served._admission.taken == 0
        assert served.restarts <= len(pauses)
        assert stats().running == stats().waiting == 0
    return pauses


async def _later(served: LLMRuntime, one: Request, rng: random.Random) -> Told:
    await asyncio.sleep(rng.uniform(0, ROUND_SECONDS / 2))
    return await tell(served.run(one))


async def kill(served: LLMRuntime, moments: list[float], rng: random.Random) -> list[float]:
    """Kill the Worker at these seconds from now; how long each time until one serves again."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    back: list[asyncio.Task[float]] = []
    for moment in moments:
        await asyncio.sleep(max(0.0, began + moment - loop.time()))
        if (victim := served.worker) is not None:
            with contextlib.suppress(ProcessLookupError):  # dead already, and not yet missed
                os.kill(victim, rng.choice(DEATHS))
                back.append(asyncio.create_task(serving_again(served, victim)))
    return await asyncio.gather(*back)


async def serving_again(served: LLMRuntime, victim: int) -> float:
    """Seconds until another Worker than the `victim` is ready."""
    began = time.monotonic()
    await until(lambda: served.worker not in {None, victim} and served.unhealthy() is None)
    return time.monotonic() - began


async def stops(path: Path, count: int) -> list[float]:
    """Seconds until a Worker that was stopped in the middle of a stream is missed, by default."""
    noticed = []
    async with runtime(path) as served:
        asked = request(sampling=Sampling(temperature=0, max_tokens=300, ignore_eos=True))
        calm = await tell(served.run(asked))
        for number in range(count):
            ours = asyncio.create_task(tell(served.run(asked)))
            await until(lambda: served.stats().running == 1)
            assert served.worker
            os.kill(served.worker, signal.SIGSTOP)
            began = time.monotonic()
            await until(lambda last=number: served.restarts > last)
            noticed.append(time.monotonic() - began)
            same(await ours, calm)
    return noticed


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 5), pytest.param(2, 300, marks=pytest.mark.slow, id="long")]
)
@pytest.mark.timeout(1200)
def test_no_kill_changes_an_answer(
    checkpoint: Path, seed: int, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many crashes would be taken for a Worker that is of no use.
    monkeypatch.setattr(supervisor, "CRASH_SECONDS", 0.0)
    pauses = asyncio.run(storm(checkpoint, seed, kills))
    print(f"{len(pauses)} kills; serving again within {max(pauses):.2f} s")
    assert max(pauses) < SERVING_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_worker_is_noticed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CRASH_SECONDS", 0.0)
    noticed = asyncio.run(stops(checkpoint, 20))
    print(f"{len(noticed)} stops; noticed within {max(noticed):.2f} s")
    assert max(noticed) < NOTICED_SECONDS
