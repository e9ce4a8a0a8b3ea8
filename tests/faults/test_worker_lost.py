"""The Worker dies, stands still or is poisoned while streams are running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from mainspring.errors import MainspringError, Unavailable, WorkerLost
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Sampling
from tests.faults.streams import (
    kill_after,
    request,
    runtime,
    same,
    settings,
    tell,
    tell_all,
    until,
)

Run = Callable[[Coroutine[Any, Any, None]], None]
GREEDY = Sampling(temperature=0, max_tokens=60, logprobs=2, ignore_eos=True)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_tokens=60, logprobs=2, ignore_eos=True)
PENALISED = Sampling(
    temperature=0.7, presence_penalty=0.5, repetition_penalty=1.2, max_tokens=60, ignore_eos=True
)


def mixed() -> list:
    return [
        request("a lighthouse", sampling=GREEDY),
        request("the sea", sampling=SAMPLED, n=2),
        request("a storm", sampling=PENALISED),
        request("quiet", sampling=SAMPLED, stop=("q", "\u00d6x"), seed=11),
        request("scored", sampling=Sampling(temperature=0, max_tokens=60, prompt_logprobs=1)),
    ]


@pytest.mark.parametrize(("seed", "run"), [(1, asyncio.run), (2, uvloop.run)])
def test_a_killed_worker_loses_and_doubles_no_token(checkpoint: Path, seed: int, run: Run) -> None:
    """On either event loop."""

    async def main() -> None:
        rng = random.Random(seed)
        async with runtime(checkpoint) as served:
            undisturbed = await tell_all(served, mixed())
            moments = [rng.randrange(1, 40), rng.randrange(60, 180)]
            disturbed = await tell_all(served, mixed(), kill_after(served, moments))
            assert served.restarts == 2
            for ours, theirs in zip(disturbed, undisturbed, strict=True):
                same(ours, theirs)

    run(main())


def test_the_timeline_tells_of_the_replay(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint) as served:
            asked = request(sampling=GREEDY, timeline=True)
            told = await tell(served.run(asked), kill_after(served, [9]))
            assert told.last
            (timeline,) = told.last.timelines
            names = [event.name for event in timeline.events]
            assert names.count("replayed") == 1 and names.count("admitted") == 2
            assert names[0] == "arrival" and names[-1] == "finished"
            assert len(timeline.tokens) == 60
            times = [token.time for token in timeline.tokens]
            assert times == sorted(times)
            assert told.last.timings and told.last.timings.total > 0

    asyncio.run(main())


def test_a_worker_that_stands_still_is_replaced(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint, stall_seconds=1.0) as served:
            calm = await tell(served.run(request(sampling=GREEDY)))
            began = time.monotonic()
            stop = kill_after(served, [5], signal.SIGSTOP)
            told = await tell(served.run(request(sampling=GREEDY)), stop)
            same(told, calm)
            assert served.restarts == 1
            assert time.monotonic() - began < 1.0 + 2.5

    asyncio.run(main())


def test_an_idle_worker_that_stands_still_is_noticed(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint, stall_seconds=0.8) as served:
            assert served.worker and served.unhealthy() is None
            os.kill(served.worker, signal.SIGSTOP)
            await until(lambda: served.restarts == 1)
            # A request that comes while the Worker is being started again waits for it.
            assert served.unhealthy()
            told = await tell(served.run(request()))
            assert told.usage and told.usage.output == 40 and served.unhealthy() is None

    asyncio.run(main())


def test_a_request_that_crashes_the_worker_thrice_is_given_up(checkpoint: Path) -> None:
    """The server lives on and answers others."""

    async def main() -> None:
        async with runtime(checkpoint) as served:
            # Long enough to be in flight at each of three kills, right after the Worker is up.
            long = msgspec.structs.replace(GREEDY, max_tokens=450)
            poison = asyncio.ensure_future(tell(served.run(request(sampling=long))))
            await until(lambda: served.stats().running == 1)
            for crash in range(3):
                await until(lambda: served.worker and served.unhealthy() is None)
                assert served.worker
                os.kill(served.worker, signal.SIGKILL)
                await until(lambda count=crash: served.restarts > count)
            with pytest.raises(WorkerLost, match="3 times on this request"):
                await poison
            assert served.restarts == 3
            await until(lambda: served.unhealthy() is None)
            told = await tell(served.run(request()))
            assert told.usage and told.usage.output

    asyncio.run(main())


def test_after_many_crashes_requests_fail_and_health_says_so(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint) as served:
            for crash in range(5):
                await until(lambda: served.worker and served.unhealthy() is None)
                assert served.worker
                os.kill(served.worker, signal.SIGKILL)
                await until(lambda count=crash: served.restarts > count)
            assert "restart" in (served.unhealthy() or "")
            with pytest.raises(Unavailable):
                await tell(served.run(request()))
            await until(lambda: served.unhealthy() is None)
            await tell(served.run(request()))

    asyncio.run(main())


def test_a_worker_that_answers_between_its_crashes_is_in_no_crash_loop(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint) as served:
            asked = request(sampling=GREEDY)
            calm = await tell(served.run(asked))
            for crash in range(6):
                same(await tell(served.run(asked), kill_after(served, [5])), calm)
                assert served.restarts == crash + 1
                assert served._supervisor._pause() == 0.0

    asyncio.run(main())


def test_a_worker_killed_while_loading_is_started_again(checkpoint: Path) -> None:
    async def main() -> None:
        served = LLMRuntime("tiny", checkpoint, settings())
        starting = asyncio.create_task(served.start())
        await until(lambda: served.worker)
        assert served.worker
        os.kill(served.worker, signal.SIGKILL)
        await starting
        try:
            assert served.restarts == 1
            await tell(served.run(request()))
        finally:
            await served.stop()

    asyncio.run(main())


def test_a_worker_that_never_loads_fails_the_start(checkpoint: Path) -> None:
    async def main() -> None:
        served = LLMRuntime("tiny", checkpoint, settings())

        async def kill() -> None:
            while True:
                if served.worker:
                    with contextlib.suppress(ProcessLookupError):  # it died a moment ago
                        os.kill(served.worker, signal.SIGKILL)
                await asyncio.sleep(0.01)

        killing = asyncio.create_task(kill())
        with pytest.raises(WorkerLost, match="5 times"):
            await served.start()
        killing.cancel()
        assert served.worker is None

    asyncio.run(main())


def test_the_worker_ends_when_the_server_is_killed(checkpoint: Path) -> None:
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import asyncio
                from pathlib import Path
                from tests.faults.streams import runtime

                async def main():
                    async with runtime(Path({str(checkpoint)!r})) as served:
                        print(served.worker, served._template.pid, flush=True)
                        await asyncio.sleep(60)

                asyncio.run(main())
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2
    server.kill()
    server.wait()
    server.stdout.close()

    async def gone() -> None:
        await until(lambda: not any(map(alive, pids)), 3.0)

    asyncio.run(gone())


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_stopping_fails_what_is_in_flight_with_a_reason(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint) as served:
            chunks = served.run(request(sampling=GREEDY))
            await anext(chunks)
            await served.stop()
            with pytest.raises(MainspringError, match="unloaded"):
                async for _ in chunks:
                    pass
            with pytest.raises(Unavailable):
                await tell(served.run(request()))

    asyncio.run(main())


def test_draining_lets_requests_end(checkpoint: Path) -> None:
    """Also when the whole process group was told to stop."""

    async def main() -> None:
        async with runtime(checkpoint) as served:
            assert served.worker
            os.kill(served.worker, signal.SIGTERM)
            begun = asyncio.Event()
            answer = served.run(request(sampling=GREEDY))
            running = asyncio.create_task(tell(answer, begun.set))
            await begun.wait()
            await served.stop(drain=10.0)
            told = await running
            assert told.usage and told.usage.output == 60 and served.restarts == 0

    asyncio.run(main())


async def test_a_replay_reads_the_disk_tier(checkpoint: Path, tmp_path: Path) -> None:
    """The new Worker finds what the killed one had evicted, and the text stays the same."""
    ask = [request(tuple(range(seed, seed + 100)), sampling=GREEDY) for seed in range(3)]
    async with runtime(checkpoint) as served:
        calm = await tell(served.run(ask[0]))
        block = served.info.kv_bytes // served.stats().blocks
    tight = settings(kv_memory=6 * block, prefix_disk=1 << 24)
    async with runtime(checkpoint, tight, home=str(tmp_path)) as served:
        for one in ask:
            await tell(served.run(one))
        shaken = await tell(served.run(ask[0]), kill_after(served, [5]))
        same(shaken, calm)
        assert served.restarts == 1
        await until(lambda: served.stats().tier.disk_tokens > 0)
    (file,) = (tmp_path / "prefix").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with runtime(checkpoint, settings(), home=str(tmp_path)):
        assert not list((tmp_path / "prefix").iterdir())
