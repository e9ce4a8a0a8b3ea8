"""Who is let in, and whether the times told to the others hold."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

import msgspec
import pytest

from mainspring.config import ModelConfig
from mainspring.errors import BadRequest, Overloaded
from mainspring.runtimes.admission import Admission, Stay
from mainspring.types import EngineStats, Request
from tests.faults.streams import request

COSTS = EngineStats(
    prefill_seconds_per_token=0.001, decode_seconds_per_token=0.001, step_seconds=0.008
)
CONFIG = ModelConfig(max_running=8, max_queue=8, queue_seconds=1.0, step_ms=50)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(config: ModelConfig = CONFIG) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission("tiny", config, lambda: COSTS, clock), clock


def requests() -> Iterator[Request]:
    number = 0
    while True:
        number += 1
        yield request(f"question {number}")


def refusal(admits: Admission, asked: Request, places: int = 1) -> Overloaded:
    with pytest.raises(Overloaded) as raised:
        admits.enter(asked, places)
    return raised.value


def test_the_wait_is_the_prompts_before_in_steps_shared_with_what_decodes() -> None:
    admits, _ = admission()
    assert admits.wait(1) == 0.0
    admits.enter(request(), 1).know(100)
    # A step of 50 ms has 9 ms for the running sequence, so 41 of 50 go to the prompt.
    assert admits.wait(1) == pytest.approx(0.100 * (1 + 9 / 41))


def test_beyond_the_places_the_wait_is_for_others_to_end() -> None:
    admits, _ = admission()
    for asked, _ in zip(requests(), range(8), strict=False):
        admits.enter(asked, 1).begun()
    # 128 output tokens of 2 ms each, eight at a time in steps of 16 ms.
    assert admits.wait(1) == pytest.approx(0.256)
    assert admits.wait(3) == pytest.approx(3 * 0.256)


def test_what_would_wait_too_long_is_refused() -> None:
    admits, _ = admission()
    admits.enter(request("a"), 1).know(900)
    error = refusal(admits, request("b"))
    assert "1.1 s" in error.message and 1.0 <= error.retry_after <= 3.0


def test_an_idle_runtime_takes_what_would_wait_for_itself() -> None:
    admits, _ = admission()
    stay = admits.enter(request(), 16)
    assert admits.wait(1) > 1.0
    stay.leave()
    with pytest.raises(BadRequest, match="17 choices"):
        admits.enter(request(), 17)


def test_the_count_is_the_hard_bound() -> None:
    admits, clock = admission(ModelConfig(max_running=2, max_queue=1, queue_seconds=1e9))
    stays = [admits.enter(request(), 1) for _ in range(3)]
    refusal(admits, request("other"))
    stays[0].leave()
    clock.now += 2.0
    admits.enter(request("other"), 1)


def test_a_stay_that_ends_leaves_nothing() -> None:
    admits, _ = admission()
    stays = [admits.enter(request(), 2) for _ in range(4)]
    for tokens, stay in enumerate(stays):
        stay.know(tokens * 7)
    stays[1].begun()
    for stay in stays:
        stay.leave()
        stay.leave()
    assert admits.taken == 0 and admits.pending == 0.0


def test_what_the_prefix_cache_has_is_learned() -> None:
    admits, _ = admission()
    for _ in range(100):
        admits.learn(2, 1000, 900, 20)
    assert admits.output == pytest.approx(10, rel=0.01)
    assert admits.prompt == pytest.approx(50, rel=0.01)
    admits.enter(request(), 1).know(1000)
    assert admits.pending == pytest.approx(100, rel=0.01)


def test_a_refused_client_that_comes_back_in_time_is_let_in() -> None:
    """Before newcomers, once, and not earlier."""
    admits, clock = admission()
    admits.enter(request("long"), 1).know(5000)
    wait = refusal(admits, request("patient")).retry_after
    clock.now += wait - 0.5
    refusal(admits, request("patient"))
    clock.now += 0.5
    refusal(admits, request("newcomer"))
    admits.enter(request("patient"), 1)
    refusal(admits, request("patient"))


def test_a_promise_is_one_tenants() -> None:
    admits, clock = admission()
    admits.enter(request("long"), 1).know(5000)
    clock.now += refusal(admits, request("same", tenant="a")).retry_after
    refusal(admits, request("same", tenant="b"))
    admits.enter(request("same", tenant="a"), 1)


@pytest.mark.parametrize("patient", [1.0, 0.3, 0.0])
def test_clients_come_back_when_there_is_room(patient: float) -> None:
    """A simulated model that ends four requests a second, under 40 a second for 100 seconds.

    The clients that come back when they were told get in; the model stays busy; and the times
    told do not grow for the sake of clients that never come.
    """
    rng = random.Random(3)
    admits, clock = admission(msgspec.structs.replace(CONFIG, max_queue=32))
    asked = requests()
    events: list[tuple[float, int, bool, Request | Stay]] = [
        (clock.now + number / 40, number, False, next(asked)) for number in range(4000)
    ]
    ended = came = refused = 0
    waits = []
    while events:
        clock.now, number, back, item = heapq.heappop(events)
        if isinstance(item, Stay):
            item.leave()
            ended += clock.now < 1100
            continue
        came += back
        try:
            stay = admits.enter(item, 1)
        except Overloaded as error:
            refused += back
            waits.append(error.retry_after)
            if not back and rng.random() < patient:
                due = clock.now + error.retry_after
                heapq.heappush(events, (due, number, True, item))
            continue
        stay.begun()
        begins = clock.now + max(0, admits.taken - 8) * 0.25
        heapq.heappush(events, (begins + 2.0, number, False, stay))
    assert ended >= 0.9 * 4 * 100
    assert refused <= 0.01 * came
    assert patient or max(waits[len(waits) // 2 :]) < 30
