from __future__ import annotations

import random

import pytest

from mainspring.engine.architectures import ModelShape
from mainspring.engine.cost import CostModel, StepSize, attended

SHAPE = ModelShape(
    family="llama",
    layers=24,
    hidden=896,
    heads=14,
    kv_heads=2,
    head=64,
    vocabulary=151_936,
    context=32_768,
    parameters=494_000_000,
    eos=(2,),
    weight_bytes=500_000_000,
    format="int8",
)
FIXED, DECODE, TOKEN, ATTENTION = 8e-3, 1.6e-3, 1.1e-3, 4e-8


def seconds(size: StepSize, rng: random.Random) -> float:
    exact = FIXED + DECODE * size.drawn + TOKEN * size.prefill + ATTENTION * size.attended
    return exact * rng.uniform(0.95, 1.1)


def mixed_step(rng: random.Random) -> StepSize:
    drawn = rng.randint(0, 32)
    prefill = rng.choice([0, 0, 32, 100, 200])
    context = sum(rng.randint(50, 4000) for _ in range(drawn))
    return StepSize(drawn or 1, prefill, context + attended(prefill, rng.randint(0, 2000)))


def trained(steps: int, rng: random.Random) -> CostModel:
    cost = CostModel(SHAPE)
    for _ in range(steps):
        size = mixed_step(rng)
        cost.observe(size, seconds(size, rng))
    return cost


def worst_error(cost: CostModel, rng: random.Random) -> float:
    errors = []
    for _ in range(50):
        size = mixed_step(rng)
        truth = seconds(size, rng)
        errors.append(abs(cost.predict(size) - truth) / truth)
    return max(errors)


def test_it_learns_what_steps_cost() -> None:
    rng = random.Random(1)
    cost = trained(200, rng)
    assert worst_error(cost, rng) < 0.2
    assert cost.token == pytest.approx(TOKEN, rel=0.15)
    assert cost.decode == pytest.approx(DECODE, rel=0.3)


def test_the_first_guess_is_careful_and_soon_corrected() -> None:
    cost = CostModel(SHAPE)
    assert 0 < cost.fitting(0.05, 0) < 64
    rng = random.Random(2)
    for _ in range(10):
        size = StepSize(1, 127, attended(128, 0))
        cost.observe(size, seconds(size, rng))
    assert cost.predict(size) == pytest.approx(seconds(size, rng), rel=0.25)


def test_the_first_step_scales_what_it_does_not_show() -> None:
    cost = CostModel(SHAPE)
    size = StepSize(4, 0, 400)
    before, guess = cost.token, cost.predict(size)
    for _ in range(5):
        cost.observe(size, 20 * guess)
    assert cost.token == pytest.approx(20 * before, rel=0.01)


def test_cold_and_suspended_steps_leave_hardly_a_trace() -> None:
    rng = random.Random(3)
    cost = CostModel(SHAPE)
    cold = StepSize(1, 31, attended(32, 0))
    cost.observe(cold, 30 * seconds(cold, rng))  # pages of the weights are read for the first time
    for _ in range(60):
        size = mixed_step(rng)
        cost.observe(size, seconds(size, rng))
    assert worst_error(cost, rng) < 0.25
    before = cost.predict(cold)
    cost.observe(cold, 3600.0)  # the machine slept
    assert cost.predict(cold) == pytest.approx(before, rel=0.05)


def test_it_follows_a_machine_that_changes_speed() -> None:
    rng = random.Random(4)
    cost = trained(300, rng)
    for _ in range(200):
        size = mixed_step(rng)
        cost.observe(size, 2 * seconds(size, rng))
    size = mixed_step(rng)
    assert cost.predict(size) == pytest.approx(2 * seconds(size, rng), rel=0.25)


def test_long_decoding_does_not_forget_what_prefill_costs() -> None:
    rng = random.Random(5)
    cost = trained(200, rng)
    learned = cost.token
    for step in range(20_000):
        size = StepSize(8, 0, 8 * (500 + step % 1000))
        cost.observe(size, seconds(size, rng))
    assert cost.token == pytest.approx(learned, rel=0.05)
    assert cost.predict(size) == pytest.approx(seconds(size, rng), rel=0.2)


def test_coefficients_are_never_negative() -> None:
    rng = random.Random(6)
    cost = CostModel(SHAPE)
    for _ in range(2000):
        cost.observe(mixed_step(rng), 10 ** rng.uniform(-6, 1))
        assert min(cost.fixed, cost.decode, cost.token, cost.prefill(1, 10**6)) >= 0
    cost.observe(mixed_step(rng), 0.0)
    assert cost.predict(mixed_step(rng)) >= 0


def test_on_a_noisy_machine_steps_still_fit_their_budget() -> None:
    rng = random.Random(8)
    cost = CostModel(SHAPE)
    lengths, computed = [], 0
    for step in range(3000):
        drawn = 1 + step // 100 % 12
        context = drawn * rng.randint(100, 3000)
        base = cost.predict(StepSize(drawn, 0, context))
        count = 0
        if step % 50 < 30:
            count = max(8, cost.fitting(0.05 - base, computed))
            computed = (computed + count) % 6000
        size = StepSize(drawn, count, context + attended(count, computed))
        exact = FIXED + DECODE * drawn + TOKEN * count + ATTENTION * size.attended
        if step > 50 and count:
            lengths.append(exact)
        spike = 10 * rng.random() if rng.random() < 0.02 else 0
        cost.observe(size, exact * (1 + rng.expovariate(1 / 0.3) + spike))
    lengths.sort()
    assert lengths[len(lengths) * 99 // 100] < 0.055
    assert lengths[-1] < 0.2


@pytest.mark.parametrize("computed", [0, 1000, 100_000])
@pytest.mark.parametrize("limit", [0.001, 0.05, 1.0])
def test_fitting_is_the_inverse_of_prefill(computed: int, limit: float) -> None:
    cost = trained(200, random.Random(7))
    count = cost.fitting(limit, computed)
    assert cost.prefill(count, computed) <= limit * 1.0001
    assert cost.prefill(count + 1, computed) > limit * 0.9999
    assert cost.fitting(0.0, computed) == 0 and cost.fitting(-1.0, computed) == 0
