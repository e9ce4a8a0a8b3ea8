"""What the admission makes of load over minutes, in front of a simulated model."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mainspring.config import ModelConfig
from mainspring.errors import Overloaded
from mainspring.runtimes.admission import Admission, Stay
from mainspring.types import EngineStats, Request
from tests.faults.streams import request

COSTS = EngineStats(
    prefill_seconds_per_token=0.00014, decode_seconds_per_token=0.00014, step_seconds=0.004
)
PROMPT = OUTPUT = 64
CAPACITY = 41.0
"""requests a second that the model below ends at most"""


@dataclass
class Visit:
    """A request that was let in."""

    stay: Stay
    sent: float
    ended: Callable[[], None] | None
    left: int = OUTPUT


@dataclass
class Told:
    """What the clients saw."""

    firsts: list[float] = field(default_factory=list)
    """seconds to first token of each that was let in, those of the last one last"""
    ends: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """when"""
    broken: int = 0
    """promises"""


class Model:
    """Computes requests in steps as the scheduler does, in simulated time.

    A step decodes every sequence and begins as many prompts as fit in its time, at least one.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.now = 1000.0
        self.told = Told()
        self._config = config
        self._admission = Admission("tiny", config, lambda: COSTS, lambda: self.now)
        random.seed(5)  # the times of promises are drawn from it too
        self._waiting: deque[Visit] = deque()
        self._running: list[Visit] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._busy = False

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (time, self._numbers, do))

    def ask(self, returns: float = 0.0, ended: Callable[[], None] | None = None) -> None:
        """A newcomer, who comes back when refused with this probability."""
        self._numbers += 1
        self._enter(request(f"question {self._numbers}"), returns, ended, promised=False)

    def poisson(self, rate: float, seconds: float, returns: float = 0.0) -> None:
        """Ask at random moments from now on."""
        time = self.now
        while (time := time + random.expovariate(rate)) < self.now + seconds:
            self.at(time, lambda: self.ask(returns))

    def run(self, until: float) -> Told:
        """Live until then; what came of it."""
        self.told = Told()
        while self._events and self._events[0][0] < until:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = until
        return self.told

    def _enter(
        self, asked: Request, returns: float, ended: Callable[[], None] | None, *, promised: bool
    ) -> None:
        try:
            stay = self._admission.enter(asked, 1)
        except Overloaded as error:
            self.told.refused.append(self.now)
            self.told.broken += promised
            if random.random() < returns:
                back = self.now + error.retry_after
                self.at(back, lambda: self._enter(asked, returns, ended, promised=True))
            return
        stay.know(PROMPT)
        self._waiting.append(Visit(stay, self.now, ended))
        if not self._busy:
            self._step()

    def _step(self) -> None:
        seconds = COSTS.step_seconds + len(self._running) * COSTS.decode_seconds_per_token
        prompt = PROMPT * COSTS.prefill_seconds_per_token
        begun: list[Visit] = []
        while self._waiting and len(self._running) + len(begun) < self._config.max_running:
            if begun and seconds + prompt > self._config.step_ms / 1000:
                break
            begun.append(self._waiting.popleft())
            seconds += prompt
        self._busy = bool(begun or self._running)
        if self._busy:
            self.at(self.now + seconds, lambda: self._computed(begun))

    def _computed(self, begun: list[Visit]) -> None:
        for visit in begun:
            visit.stay.begun()
            self.told.firsts.append(self.now - visit.sent)
        self._running += begun
        for visit in self._running:
            visit.left -= 1
        over = [visit for visit in self._running if not visit.left]
        self._running = [visit for visit in self._running if visit.left]
        for visit in over:
            visit.stay.leave()
            self._admission.learn(1, PROMPT, 0, OUTPUT)
            self.told.ends.append(self.now)
            if visit.ended:
                visit.ended()
        self._step()


def late(told: Told) -> float:
    """The 99th percentile of the time to first token."""
    return sorted(told.firsts)[int(0.99 * len(told.firsts))]


@pytest.mark.parametrize("returns", [0.05, 1.0])
def test_overload_keeps_the_pace_of_normal_load(returns: float) -> None:
    """Ten times the capacity for two minutes: the promise of docs/serve.md, by default settings."""
    model = Model(ModelConfig())
    model.poisson(0.8 * CAPACITY, 60)
    normal = model.run(model.now + 60)
    assert not normal.refused
    begin = model.now
    model.poisson(10 * CAPACITY, 120, returns)
    told = model.run(begin + 120)
    assert len(told.ends) >= 0.9 * CAPACITY * 120
    assert late(told) <= 2 * late(normal)
    assert told.broken == 0
    begin = model.now
    model.poisson(0.5 * CAPACITY, 10)
    model.run(begin + 2)
    after = model.run(begin + 10)
    assert not after.refused
    if returns < 1:  # then those who were refused are more than half of the capacity for hours
        assert late(after) <= 2 * late(normal)


@pytest.mark.parametrize("clients", [1, 20, 33])
def test_a_users_parallel_requests_wait_for_each_other(clients: int) -> None:
    """At once, and again as each ends, beyond the places too: nobody is refused."""
    model = Model(ModelConfig(max_running=16))
    for _ in range(clients):
        model.at(model.now, lambda: again(model))
    told = model.run(model.now + 60)
    assert not told.refused and len(told.ends) > 60


def again(model: Model) -> None:
    model.ask(ended=lambda: again(model))


def test_a_burst_beyond_the_queue_is_refused_once() -> None:
    """All of 100 that come at once and come back are answered, none refused a second time."""
    model = Model(ModelConfig())
    for _ in range(100):
        model.at(model.now, lambda: model.ask(1.0))
    told = model.run(model.now + 60)
    assert len(told.ends) == 100
    assert 0 < len(told.refused) < 70 and told.broken == 0
    model.at(model.now, model.ask)
    assert not model.run(model.now + 10).refused


def test_long_waits_are_allowed_in_a_burst_only() -> None:
    """Under steady overload a newcomer waits for about one prompt, however long that is."""
    model = Model(ModelConfig(max_running=4, queue_seconds=60.0))
    model.poisson(100, 30)
    first = model.run(model.now + 15)
    steady = model.run(model.now + 15)
    assert late(first) > 1.0
    assert late(steady) < 0.5
