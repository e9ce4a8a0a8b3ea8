"""The server's side of a Worker: start it, watch it, restart it, replay what was in flight.

A Worker is alive while it makes progress, not while it exists. When it exits, falls silent or
stands still with work in hand, it is killed and started again, and every flight is added again
with the tokens that had already arrived, so that its stream continues where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mainspring.config import HOME, ModelConfig
from mainspring.errors import (
    InternalError,
    MainspringError,
    NumericalError,
    Unavailable,
    WorkerLost,
)
from mainspring.runtimes.flight import Flight, Placed
from mainspring.runtimes.link import Link
from mainspring.runtimes.protocol import (
    Adapted,
    Add,
    Beat,
    Cancel,
    DropAdapter,
    Failed,
    Load,
    Loading,
    Output,
    Ready,
    Rejected,
    Shutdown,
    Step,
    Vocabulary,
    error_from,
)
from mainspring.types import EngineStats

__all__ = ["Flight", "Placed", "Supervisor"]

log = logging.getLogger("mainspring.worker")

WORKER = (sys.executable, "-m", "mainspring.runtimes.worker")
CRASHES, CRASH_SECONDS = 5, 60.0
"""So many crashes within this time, no request ending well in between, are a crash loop: what is in
flight is given up."""
POISON = 3
"""crashes that one request may be part of"""
SUSPECT, SUSPECT_SECONDS = 3, 60.0
"""so many requests in a row end for want of numbers and the model is suspect: until one succeeds,
or for so long, after which the next that fails makes it suspect again"""
BACKOFF, BACKOFF_LIMIT = 0.25, 15.0
LOAD_SILENCE = 30.0
"""seconds without a heartbeat while loading; packing a large matrix can hold the interpreter"""
WATCH_SECONDS = 0.25
PATIENCE = 0.9
"""A Worker is given up after this share of `stall_seconds`, to be noticed within them."""
EXIT_SECONDS = 2.0
"""for a Worker that is leaving by itself; then it is killed"""


class Supervisor:
    """Keeps one Worker alive. All methods belong to the event loop's thread."""

    def __init__(
        self,
        name: str,
        path: Path,
        config: ModelConfig,
        *,
        stall_seconds: float,
        home: str = HOME,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.name = name
        self.stall_seconds = stall_seconds
        self.restarts = 0
        self.stats = EngineStats()
        self.loaded: Ready | None = None
        self.flights: dict[str, Flight] = {}
        self.spawned = asyncio.Event()
        """there has been a process, so that it loads while this one does other things"""
        self.vocabulary: Vocabulary | None = None
        """set before the first flight with a grammar"""
        self._taught: Link | None = None
        """who has it"""
        self._adapters: dict[str, Placed] = {}
        self._load = Load(str(path.resolve()), config, home)
        self._command = tuple(command)
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Ready] | None = None
        self._reason = "not started"
        self._lost = False
        self._closed: MainspringError | None = None
        self._stop = asyncio.Event()
        self._numbers = 0
        self._crashes: list[float] = []
        """when, those since a request last ended well"""
        self._numerical = 0
        """requests in a row that ended with NaN or infinite logits, the last of them at:"""
        self._numerical_time = 0.0

    @property
    def pid(self) -> int | None:
        """The Worker's process id, while there is one."""
        return self._link.pid if self._link else None

    def unhealthy(self) -> str | None:
        """None when the Worker is up and computes numbers; else why it is not."""
        if self._reason:
            return self._reason
        recent = time.monotonic() - self._numerical_time < SUSPECT_SECONDS
        if self._numerical >= SUSPECT and recent:
            return (
                f"suspect: the last {self._numerical} requests ended with NaN or infinite logits; "
                "check the checkpoint's files, or load it with another --quantize"
            )
        return None

    @property
    def lost(self) -> bool:
        """Restarts have not helped lately: nothing new is taken in."""
        return self._lost

    async def start(self) -> Ready:
        """Start the Worker and wait until its model is loaded. Raises what loading raised."""
        self._started = asyncio.get_running_loop().create_future()
        self._reason = "loading"
        self._task = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")
        self._task.add_done_callback(self._supervised)
        try:
            return await self._started
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the Worker; what is in flight fails with Unavailable."""
        self._stop.set()
        self._close("stopped", Unavailable(f"model {self.name} is being unloaded"))
        if self._link:
            if self._link.ready:
                self._link.send(Shutdown())
            await self._link.end(EXIT_SECONDS if self._link.ready else 0.0)
        if self._task:
            await asyncio.wait([self._task])

    def _close(self, reason: str, error: MainspringError) -> None:
        """There will be no Worker any more."""
        self._reason = reason
        self._closed = error
        self._fail_all(error)
        for placed in self._adapters.values():
            if not placed.known.done():
                placed.known.set_exception(error)
        if self._started and not self._started.done():
            self._started.set_exception(error)

    async def adapt(self, path: Path) -> Placed:
        """Have the adapter in directory `path` loaded. Raises what loading raised."""
        if self._closed is not None:
            raise self._closed
        self._numbers += 1
        placed = Placed(str(self._numbers), path)
        self._adapters[placed.id] = placed
        if self._link and self._link.ready:
            self._link.send(placed.message())
        try:
            await asyncio.shield(placed.known)
        except BaseException:
            self.drop(placed)
            raise
        return placed

    def drop(self, placed: Placed) -> None:
        """Let the Worker forget the adapter once no flight uses it."""
        if self._adapters.pop(placed.id, None) and self._link and self._link.ready:
            self._link.send(DropAdapter(placed.id))

    def submit(self, flight: Flight) -> None:
        """Hand a flight to the Worker, now or as soon as it is up again.

        Raises Unavailable or InternalError when there will be none.
        """
        if self._closed is not None:
            raise self._closed
        self._numbers += 1
        flight.id = str(self._numbers)
        if not self.flights and self._link:
            self._link.advanced = time.monotonic()
        self.flights[flight.id] = flight
        self._send(flight)

    def cancel(self, flight: Flight) -> None:
        """Forget the flight; the Worker frees it within a step. Idempotent."""
        if self.flights.pop(flight.id, None) is None:
            return
        if flight.generated:
            self._numerical = 0  # as far as anybody looked, it went well
        if self._link and flight.sent:
            self._link.send(Cancel(flight.id))

    def _send(self, flight: Flight) -> None:
        if self._link and self._link.ready:
            generated = tuple(flight.generated)
            if flight.grammar and self._taught is not self._link:
                assert self.vocabulary is not None
                self._link.send(self.vocabulary)
                self._taught = self._link
            self._link.send(
                Add(
                    flight.id,
                    flight.prompt,
                    flight.sampling,
                    flight.salt,
                    generated,
                    flight.grammar,
                    flight.adapter.id if flight.adapter else "",
                )
            )
            flight.sent = True

    def _supervised(self, task: asyncio.Task[None]) -> None:
        """Supervision itself must not end unseen."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("supervision of %s failed", self.name, exc_info=error)
        failure = InternalError("the worker's supervision failed", detail=repr(error))
        self._close("supervision failed", failure)

    # Life of a Worker -----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Worker after Worker, until stopped or until the model cannot be loaded at all."""
        while not self._stop.is_set():
            try:
                link = self._link = await Link.spawn(self._command, self._take)
            except OSError as error:
                failure, why = None, f"cannot be started: {error.strerror}"
            else:
                link.send(self._load)
                self.spawned.set()
                stalled = "" if self._stop.is_set() else await self._watch(link)
                ended = await link.end(EXIT_SECONDS if link.closed.done() else 0.0)
                failure, why = link.failure, stalled or ended
            self._link = None
            if self._stop.is_set() or not self._crashed(failure, why):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._pause())

    async def _watch(self, link: Link) -> str:
        """Wait for the Worker's end. Returns why it has to be killed first, or an empty text."""
        checked = time.monotonic()
        patience = PATIENCE * self.stall_seconds
        while not link.closed.done():
            await asyncio.wait([link.closed], timeout=WATCH_SECONDS)
            now = time.monotonic()
            if now - checked > 4 * WATCH_SECONDS:
                link.excuse()  # this process was not running either, so silence proves nothing
            checked = now
            silence = patience if link.ready else max(LOAD_SILENCE, patience)
            if now - link.heard > silence:
                return f"no heartbeat for {silence:g} s"
            working = link.ready and (link.busy or self.flights)
            if working and now - link.advanced > patience:
                return f"no progress for {patience:g} s"
        return ""

    def _crashed(self, failure: Failed | None, why: str) -> bool:
        """Account for a lost Worker. False: the model cannot be loaded, so there is no next."""
        assert self._started is not None
        now = time.monotonic()
        self._crashes = [t for t in self._crashes if now - t < CRASH_SECONDS] + [now]
        self._reason = failure.message if failure else f"restarting its worker: {why}"
        if failure and not self._started.done():
            self._started.set_exception(error_from(failure.code, failure.message, failure.param))
            return False
        self.restarts += 1
        log.error("worker of %s lost: %s; restart %d", self.name, self._reason, self.restarts)
        for placed in self._adapters.values():
            if not placed.known.done():
                text = "the worker was lost while an adapter was being loaded; try again"
                placed.known.set_exception(WorkerLost(text))
        for flight in [f for f in self.flights.values() if f.sent]:
            flight.crashes += 1
            if flight.crashes >= POISON:
                self._end(flight, WorkerLost(f"the worker crashed {POISON} times on this request"))
        if not self._started.done() and self.restarts >= CRASHES:
            text = f"the worker of {self.name} crashed {CRASHES} times while loading: {why}"
            self._started.set_exception(WorkerLost(text))
            return False
        if len(self._crashes) >= CRASHES:
            self._lost = True
            text = f"the worker of {self.name} crashed {CRASHES} times and finished nothing between"
            self._fail_all(WorkerLost(text))
        return True

    def _pause(self) -> float:
        """Seconds before the next start: none after the first crash, then doubling."""
        recent = len(self._crashes)
        return 0.0 if recent <= 1 else min(BACKOFF_LIMIT, BACKOFF * 2 ** (recent - 2))

    # Messages -------------------------------------------------------------------------------------

    def _take(self, link: Link, message: Any) -> None:
        if isinstance(message, Step):
            self.stats = message.stats
            for output in message.outputs:
                self._output(output)
        elif isinstance(message, Beat):
            self.stats = message.stats or self.stats
        elif isinstance(message, Rejected):
            if flight := self.flights.get(message.id):
                self._end(flight, error_from(message.code, message.message, message.param))
        elif isinstance(message, Adapted):
            self._adapted(message)
        elif isinstance(message, Loading):
            share = 100 * message.done // max(1, message.total)
            self._reason = f"loading ({share} %)"
        elif isinstance(message, Ready):
            self._up(message)

    def _adapted(self, message: Adapted) -> None:
        placed = self._adapters.get(message.id)
        if message.code:
            log.error("an adapter of %s is not loaded: %s", self.name, message.message)
        if placed is None or placed.known.done():
            return  # after a restart: its flights are told by the Worker
        if message.code:
            error = error_from(message.code, message.message, message.param)
            placed.known.set_exception(error)
        else:
            placed.known.set_result(message.digest)

    def _output(self, output: Output) -> None:
        flight = self.flights.get(output.id)
        if flight is None:
            return  # cancelled while this was on its way
        flight.generated += output.tokens
        if output.error is not None:
            if output.error[0] == NumericalError.code and flight.adapter is None:
                self._numerical += 1
                self._numerical_time = time.monotonic()
            self._end(flight, error_from(*output.error))
            return
        if output.finish is not None:
            self._numerical = 0
            self._crashes.clear()
            del self.flights[flight.id]
        flight.take(output)

    def _up(self, message: Ready) -> None:
        """The model is loaded: add again what was in flight, oldest first."""
        assert self._started is not None
        if self._closed is not None:
            return
        self.loaded = message
        if message.prepared:
            log.info("read the prepared file of %s", self.name)
        if message.warning:
            log.warning("model %s: %s", self.name, message.warning)
        self._reason = ""
        self._lost = False
        self._numerical = 0
        self._replay()
        if not self._started.done():
            self._started.set_result(message)

    def _replay(self) -> None:
        """Give the Worker what one before it had: adapters first, then flights, oldest first."""
        assert self._link is not None
        used = {f.adapter.id: f.adapter for f in self.flights.values() if f.adapter}
        for placed in (self._adapters | used).values():
            self._link.send(placed.message())
        for flight in self.flights.values():
            if flight.sent:
                flight.replays.append(time.monotonic())
            self._send(flight)
        for id in used.keys() - self._adapters.keys():
            self._link.send(DropAdapter(id))

    def _end(self, flight: Flight, error: MainspringError) -> None:
        del self.flights[flight.id]
        flight.take(error)

    def _fail_all(self, error: MainspringError) -> None:
        for flight in list(self.flights.values()):
            self._end(flight, error)
