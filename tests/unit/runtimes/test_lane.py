"""Work that may take for ever, in a thread that nobody can kill."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mainspring.runtimes.lane import Lane, Stuck
from tests.faults.streams import until


def test_jobs_run_in_order_and_raise_where_they_came_from() -> None:
    async def main() -> None:
        lane, order = Lane("t"), list[int]()
        results = await asyncio.gather(
            *(lane.run(lambda i=i: order.append(i) or i, 5) for i in range(9))
        )
        assert results == order == list(range(9))
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0, 5)
        lane.close()

    asyncio.run(main())


def test_a_late_job_fails_itself_and_those_behind_it_until_it_ends() -> None:
    async def main() -> None:
        lane, gate = Lane("t"), threading.Event()
        late = asyncio.create_task(lane.run(gate.wait, 0.1))
        behind = asyncio.create_task(lane.run(lambda: 1, 5))
        for task in (late, behind):
            with pytest.raises(Stuck):
                await task
        assert lane.stuck
        gate.set()
        await until(lambda: not lane.stuck)
        assert await lane.run(lambda: 2, 5) == 2
        lane.close()

    asyncio.run(main())


def test_a_standstill_of_the_process_makes_no_job_late() -> None:
    async def main() -> None:
        lane, gate = Lane("t"), threading.Event()
        job = asyncio.create_task(lane.run(gate.wait, 1.0))
        await asyncio.sleep(0.1)
        time.sleep(1.5)  # noqa: ASYNC251 - as a stopped process does
        await asyncio.sleep(0.1)
        assert not lane.stuck and not job.done()
        gate.set()
        assert await job
        lane.close()

    asyncio.run(main())


def test_a_job_that_nobody_waits_for_is_not_begun() -> None:
    async def main() -> None:
        lane, gate, begun = Lane("t"), threading.Event(), list[int]()
        first = asyncio.create_task(lane.run(gate.wait, 5))
        second = asyncio.create_task(lane.run(lambda: begun.append(1), 5))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        gate.set()
        assert await first
        await lane.run(lambda: None, 5)
        assert not begun
        lane.close()

    asyncio.run(main())
