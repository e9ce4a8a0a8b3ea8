"""Who is let in, by the predicted wait, and when the others are to come back."""

from __future__ import annotations

import hashlib
import random
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil, inf

import msgspec

from mainspring.config import ModelConfig
from mainspring.errors import BadRequest, Overloaded
from mainspring.types import EngineStats, Request

__all__ = ["Admission", "Promises", "Stay"]

LEARN = 0.1
"""Weight of the newest answer in what is typical."""
OUTPUT_GUESS = 128.0
"""output tokens of a choice, before any has ended"""
RETRY_LEAST, RETRY_LIMIT = 1.0, 3600.0
EARLY, LATE = 0.05, 5.0
"""Seconds around its time in which a promise is kept; Retry-After is in whole seconds."""
SHARES = 0.15, 0.3
"""of the model's capacity that promises may take, so that who comes back finds it hardly busier
than newcomers do; the second where the first would not do within RETRY_LIMIT"""
PROMISES = 100_000
KEPT_LEAST, KEPT_AMONG = 0.01, 500
SHORT = 1 / 3
"""A wait of so many full steps is no queue: it is what a newcomer meets at normal load."""
BURST = 8
"""One in so many of `max_queue` is for requests that come at once."""
SPARE = 16
"""One in so many places is left for who comes back, in overload."""
CALM_SECONDS, CALM_SHARE = 1.0, 0.3
"""so long without a refusal, or lately so few of the newcomers refused, and overload is over"""


class Admission:
    """Counts what is in the runtime and predicts how long a newcomer waits. For one thread.

    A request takes a place for each choice: `max_running` places are computed together, at most
    `max_queue` more wait. A newcomer is let in or told a time, and let in at that time whatever
    the wait is.

    A queue that a burst left drains; one that newcomers keep up makes all wait and none faster. So
    beyond what was here when the wait was last short there is room for a burst, and for as many
    again as its requests end, while the predicted wait is at most `queue_seconds`. The first
    refusal is overload: until it is over, newcomers are let in only where the wait is short. (Good
    queue and bad queue: Nichols, Jacobson 2012, "Controlling queue delay". They drop what waited;
    here nobody let in is dropped, so the door must see it coming.)
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        stats: Callable[[], EngineStats],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.taken = 0
        """places"""
        self.pending = 0.0
        """prompt tokens to be computed before a newcomer's"""
        self.output = OUTPUT_GUESS
        """tokens of a typical choice"""
        self.prompt = 0.0
        """tokens of a typical choice that are not in the prefix cache, and their share:"""
        self.fresh = 1.0
        self._name = name
        self._running = config.max_running
        self._most = config.max_running + config.max_queue
        self._seconds = config.queue_seconds
        self._step = config.step_ms / 1000
        self._short = min(SHORT * self._step, self._seconds)
        """seconds of wait that are no queue"""
        self._burst = ceil(config.max_queue / BURST)
        self._level = 0
        """places for newcomers until the wait is short again"""
        self._refused = -inf
        """when the last was, and the share of all who lately were"""
        self._share = 0.0
        self._stats = stats
        self._clock = clock
        self._promises = Promises()

    def enter(self, request: Request, places: int) -> Stay:
        """Let a request in until its Stay ends. Raises BadRequest or Overloaded."""
        if places > self._most:
            raise BadRequest(
                f"the request has {places} choices; this server takes {self._most} at a time",
                param="n",
            )
        now, key = self._clock(), fingerprint(request)
        promised = self._promises.keep(key, now)
        wait = self.wait(places)
        full = self.taken + places > self._most
        refused = full or not (promised or self._welcome(places, wait, now))
        self._share += LEARN * (refused - self._share)
        if refused:
            if not self._overload(now):
                self._share = 1.0  # this one begins it
            self._refused = now
            slot = places * self.turnover(self.prompt)
            raise Overloaded(
                f"model {self._name} is busy: more requests come than it answers; {self.taken} are "
                f"here and one more would wait about {wait:.2g} s; come back when Retry-After says "
                "and it is let in",
                retry_after=self._promises.make(key, now, wait - self._short, slot),
            )
        return Stay(self, places)

    def _welcome(self, places: int, wait: float, now: float) -> bool:
        """Whether a newcomer may come in, though it waits so long."""
        if self.taken and self._overload(now):
            return self.wait(places + self._running // SPARE) <= self._short
        if wait <= self._short or not self.taken:
            self._level = self.taken + places + self._burst
        return not self.taken or (wait <= self._seconds and self.taken + places <= self._level)

    def _overload(self, now: float) -> bool:
        """Whether newcomers are still being refused, and not just a few of them."""
        return now - self._refused < CALM_SECONDS and self._share > CALM_SHARE

    def wait(self, places: int) -> float:
        """Predicted seconds until a newcomer's prompt is begun.

        The prompts before it share the steps with what decodes (see engine/scheduler's Budget);
        beyond `max_running` it waits for others to end, which they do evenly.
        """
        stats = self._stats()
        rows = min(self.taken, self._running)
        step = stats.step_seconds + rows * stats.decode_seconds_per_token
        stretch = 1 + step / max(self._step - step, step)
        prefill = self.pending * stats.prefill_seconds_per_token * stretch
        return prefill + max(0, self.taken + places - self._running) * self.turnover()

    def turnover(self, prompt: float = 0.0) -> float:
        """Seconds from one place's end to the next's, all of them busy with such prompts."""
        stats = self._stats()
        token = stats.decode_seconds_per_token + stats.step_seconds / self._running
        return self.output * token + prompt * stats.prefill_seconds_per_token

    def learn(self, places: int, prompt: int, cached: int, output: int) -> None:
        """An answer has ended: tokens of its prompts, of its output."""
        self.output += LEARN * (output / places - self.output)
        self.prompt += LEARN * ((prompt - cached) / places - self.prompt)
        self.fresh += LEARN * ((prompt - cached) / max(1, prompt) - self.fresh)


class Stay:
    """A request in the runtime. It may be told more than once that it has begun or left."""

    def __init__(self, admission: Admission, places: int) -> None:
        self._admission = admission
        self._places = places
        self._pending = 0.0
        admission.taken += places
        self._await(admission.prompt * places)

    def know(self, prompt: int) -> None:
        """Its prompts have so many tokens."""
        self._await(prompt * self._admission.fresh)

    def begun(self) -> None:
        """Its first output is here."""
        if self._pending:
            self._await(0.0)

    def leave(self) -> None:
        self._await(0.0)
        self._admission.taken -= self._places
        self._places = 0

    def _await(self, tokens: float) -> None:
        self._admission.pending += tokens - self._pending
        self._pending = tokens
        if not self._admission.taken:
            self._admission.pending = 0.0  # what rounding has left


class Promises:
    """The times that refused requests were told to come back at: a calendar of the model's time.

    Not all clients come back, so more is promised than there is, by the share that lately came.
    A request is known by its content, so a client need only send it again.
    """

    def __init__(self) -> None:
        self._times: dict[bytes, list[float]] = {}
        self._all: list[tuple[float, bytes]] = []
        """a heap; those that were kept are still here"""
        self._promised: defaultdict[int, float] = defaultdict(float)
        """second of the clock -> seconds of the model's time"""
        self._full = dict.fromkeys(SHARES, (0, 0.0))
        """for each share: no room in the seconds before this one, of so many seconds in each"""
        self._kept, self._counted = 1.0, 1
        """share of promises whose client came, among so many"""

    def make(self, key: bytes, now: float, wait: float, slot: float) -> float:
        """Seconds until the request's time: at least `wait`, where `slot` seconds are free."""
        first = int(now + max(wait, RETRY_LEAST)) + 1
        for share in SHARES:
            second, room = self._free(share, first, now + RETRY_LIMIT)
            if second < now + RETRY_LIMIT:
                break
        time = second + random.random()  # a crowd does not come at once
        while slot > 0:
            taken = min(slot, max(room - self._promised[second], 0.0))
            self._promised[second] += taken
            slot, second = slot - taken, second + 1
        if len(self._all) < PROMISES:
            insort(self._times.setdefault(key, []), time)
            heappush(self._all, (time, key))
        if len(self._promised) > 2 * RETRY_LIMIT:
            ahead = {s: taken for s, taken in self._promised.items() if s >= now}
            self._promised = defaultdict(float, ahead)
        return time - now

    def _free(self, share: float, first: int, last: float) -> tuple[int, float]:
        """A second from `first` to `last` with room, and the room of a second."""
        room = share / max(self._kept, KEPT_LEAST)
        full, former = self._full[share]
        second = max(first, 0 if room > former else full)
        while self._promised[second] >= room and second < last:
            second += 1
        self._full[share] = second, room
        return second, room

    def keep(self, key: bytes, now: float) -> bool:
        """Whether a request of this content was told to come about now; then it is off the list."""
        while self._all and self._all[0][0] < now - LATE:
            time, missed = heappop(self._all)
            if self._times.get(missed, [now])[0] <= time:
                self._drop(missed, 0.0)
        if self._times.get(key, [inf])[0] > now + EARLY:
            return False
        self._drop(key, 1.0)
        return True

    def _drop(self, key: bytes, came: float) -> None:
        times = self._times[key]
        del times[0]
        if not times:
            del self._times[key]
        self._counted = min(self._counted + 1, KEPT_AMONG)
        self._kept += (came - self._kept) / self._counted


def fingerprint(request: Request) -> bytes:
    """The same for a request that is sent again."""
    content = (
        request.tenant,
        request.messages,
        request.prompts,
        request.sampling,
        request.n,
        request.seed,
    )
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()
