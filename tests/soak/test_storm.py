"""Workers killed at random moments: loading, idle, between requests, in the middle of streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from mainspring.runtimes import supervisor
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Request, Sampling
from tests.faults.streams import Told, request, runtime, same, tell
from tests.tiny import tiny_checkpoint

ROUND_SECONDS = 1.2
"""of a round's kills; requests end in less, so some kills find a Worker idle or loading"""
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


async def storm(path: Path, seed: int, kills: int) -> int:
    """Rounds of requests under kills, each answer compared with an undisturbed one."""
    rng = random.Random(seed)
    killed = 0
    async with runtime(path) as calm, runtime(path, stall_seconds=2.0) as served:
        while killed < kills:
            requests = mixed(rng)
            moments = sorted(rng.uniform(0, ROUND_SECONDS) for _ in range(rng.randrange(1, 3)))
            killing = asyncio.create_task(kill(served, moments, rng))
            disturbed = await asyncio.gather(*(_later(served, one, rng) for one in requests))
            killed += await killing
            for one, ours in zip(requests, disturbed, strict=True):
                same(ours, await tell(calm.run(one)))
        stats = served.stats
        assert not served._supervisor.flights and served._admission.taken == 0
        assert served.restarts <= killed
        assert stats().running == stats().waiting == 0
    return killed


async def _later(served: LLMRuntime, one: Request, rng: random.Random) -> Told:
    await asyncio.sleep(rng.uniform(0, ROUND_SECONDS / 2))
    return await tell(served.run(one))


async def kill(served: LLMRuntime, moments: list[float], rng: random.Random) -> int:
    """Kill the Worker at these seconds from now; how often there was one."""
    loop, killed = asyncio.get_running_loop(), 0
    began = loop.time()
    for moment in moments:
        await asyncio.sleep(max(0.0, began + moment - loop.time()))
        with contextlib.suppress(ProcessLookupError):  # dead already, and not yet missed
            if served.worker is not None:
                os.kill(served.worker, rng.choice(DEATHS))
                killed += 1
    return killed


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 5), pytest.param(2, 100, marks=pytest.mark.slow, id="long")]
)
@pytest.mark.timeout(900)
def test_no_kill_changes_an_answer(
    checkpoint: Path, seed: int, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many crashes would be taken for a Worker that is of no use.
    monkeypatch.setattr(supervisor, "CRASH_SECONDS", 0.0)
    assert asyncio.run(storm(checkpoint, seed, kills)) >= kills
