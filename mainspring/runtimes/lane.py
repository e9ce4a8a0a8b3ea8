"""A thread for work whose time a checkpoint's files decide."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

__all__ = ["Lane", "Stuck"]

LOOK_SECONDS = 0.25
"""between looks at whether a job is late"""

T = TypeVar("T")


class Stuck(Exception):
    """A job of the lane, this one or one before it, has taken longer than it may."""


class Job(NamedTuple):
    work: Callable[[], Any]
    seconds: float
    future: Future[Any]


class Lane:
    """Does jobs one after the other, each within a time of its own.

    A thread cannot be killed. While a job is late the lane is stuck and all jobs in it fail; when
    the job ends after all, the lane goes on. The thread is a daemon: a process with a stuck lane
    exits like any other. Time in which the whole process stood still (a stopped container, an
    overloaded machine) is nobody's fault and does not count.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._due = math.inf
        self._still = 0.0
        """seconds of standstills; only those who wait for a job write it"""
        self._looked = 0.0
        """when the running job was last looked at, or began"""
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def stuck(self) -> bool:
        return self._time() > self._due

    def _time(self) -> float:
        return time.monotonic() - self._still

    def _look(self) -> bool:
        """Whether the lane is stuck. Whoever comes much later than planned has stood still."""
        now = time.monotonic()
        self._still += max(0.0, now - self._looked - 2 * LOOK_SECONDS)
        self._looked = now
        return self.stuck

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns or raises, or Stuck if it takes more than `seconds` once begun."""
        job = Job(work, seconds, Future())
        self._jobs.put(job)
        future: asyncio.Future[T] = asyncio.wrap_future(job.future)
        try:
            while not future.done():
                await asyncio.wait([future], timeout=LOOK_SECONDS)
                if self._look() and not future.done():
                    raise Stuck
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """End the thread after the jobs that are in the lane."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            self._looked = time.monotonic()
            self._due = self._time() + job.seconds
            try:
                result = job.work()
            except BaseException as error:  # noqa: BLE001 - it is raised where the job came from
                self._due = math.inf
                job.future.set_exception(error)
            else:
                self._due = math.inf
                job.future.set_result(result)
            del job
