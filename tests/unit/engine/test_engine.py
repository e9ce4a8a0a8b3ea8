from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.engine.batch import Batch
from mainspring.engine.engine import Engine
from mainspring.errors import BadRequest, ContextLength, Overloaded
from mainspring.kernels import Array, Cache, load_kernels
from mainspring.types import Finish, Sampling
from tests.unit.engine.toy import (
    EOS,
    GREEDY,
    LAYERS,
    VOCABULARY,
    Toy,
    finish_all,
    greedy,
    prompt,
    run_one,
    story_of,
    tokens_of,
    toy_engine,
)


class Scripted(Toy):
    """A Toy whose logits a test can change before the Engine sees them."""

    def __init__(self, change: Any) -> None:
        super().__init__(load_kernels("reference"))
        self.change = change

    def forward(self, batch: Batch, cache: Cache) -> Array:
        logits = super().forward(batch, cache)
        self.change(self, batch, logits)
        return logits


# Ends ---------------------------------------------------------------------------------------------


def favour(token: int, after: int) -> Any:
    """Make `token` the likeliest from output token number `after` on (one sequence only)."""

    def change(model: Toy, batch: Batch, logits: Array) -> None:
        if model.forwards > after:
            logits[:, token] = 1e4

    return change


def test_the_models_end_ends_without_a_reason() -> None:
    outputs = run_one(toy_engine(model=Scripted(favour(EOS, 2))), prompt(5), Sampling())
    assert (outputs[-1].finish, outputs[-1].stop_reason) == (Finish.STOP, None)
    assert tokens_of(outputs)[-1] == EOS and len(outputs) == 3


def test_a_stop_id_ends_and_is_named() -> None:
    sampling = Sampling(stop_token_ids=(7,), max_tokens=20)
    outputs = run_one(toy_engine(model=Scripted(favour(7, 3))), prompt(5), sampling)
    assert (outputs[-1].finish, outputs[-1].stop_reason) == (Finish.STOP, 7)


def test_ignore_eos_goes_on_to_the_length() -> None:
    sampling = Sampling(ignore_eos=True, max_tokens=6)
    outputs = run_one(toy_engine(model=Scripted(favour(EOS, 0))), prompt(5), sampling)
    assert tokens_of(outputs) == [EOS] * 6
    assert outputs[-1].finish is Finish.LENGTH


def test_min_tokens_holds_back_every_end() -> None:
    sampling = Sampling(min_tokens=4, stop_token_ids=(7,), max_tokens=20)

    def change(model: Toy, batch: Batch, logits: Array) -> None:
        logits[:, [7, EOS]] = 1e4

    tokens = tokens_of(run_one(toy_engine(model=Scripted(change)), prompt(5), sampling))
    assert len(tokens) == 5 and tokens[-1] in (7, EOS)
    assert not {7, EOS} & set(tokens[:4])


def test_output_ends_at_the_contexts_end() -> None:
    engine = toy_engine(model=Toy(load_kernels("reference"), context=40))
    for max_tokens in (None, 1000):
        sampling = Sampling(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        outputs = run_one(engine, prompt(30), sampling)
        assert len(tokens_of(outputs)) == 10
        assert outputs[-1].finish is Finish.LENGTH
    assert len(tokens_of(run_one(engine, prompt(39), greedy(5)))) == 1


# Refusals -----------------------------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    engine = toy_engine(model=Toy(load_kernels("reference"), context=64))
    with pytest.raises(ContextLength, match=r"64 tokens.*context of 64 holds 63"):
        engine.add("x", prompt(64), GREEDY)
    assert not engine.has_work


def test_a_pool_smaller_than_the_context_is_the_limit() -> None:
    engine = toy_engine(blocks=2)
    with pytest.raises(ContextLength, match=r"100 tokens.*64 holds 63.*512 tokens, 2 blocks"):
        engine.add("x", prompt(100), GREEDY)
    outputs = run_one(engine, prompt(60), greedy(50))
    assert len(tokens_of(outputs)) == 4 and outputs[-1].finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("tokens", "sampling", "text"),
    [
        ([], {}, "no tokens"),
        ([1, VOCABULARY], {}, f"prompt: token id {VOCABULARY} is not in the vocabulary of 97"),
        ([-1], {}, "prompt: token id -1"),
        ([1], {"stop_token_ids": (5, 1000)}, "stop_token_ids: token id 1000"),
        ([1], {"logit_bias": {97: 1.0}}, "logit_bias: token id 97"),
        ([1], {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_bad_requests_name_the_mistake(
    tokens: list[int], sampling: dict[str, Any], text: str
) -> None:
    engine = toy_engine()
    with pytest.raises(BadRequest, match=text):
        engine.add("x", tokens, Sampling(**sampling))
    assert not engine.has_work and engine.step() == []


def test_an_id_in_use_is_refused() -> None:
    engine = toy_engine()
    engine.add("x", [1], GREEDY)
    with pytest.raises(BadRequest, match="'x' is already here"):
        engine.add("x", [1], GREEDY)


def test_the_queue_is_bounded() -> None:
    engine = toy_engine(max_running=2, max_queue=1)
    for i in range(3):
        engine.add(str(i), prompt(5, i), GREEDY)
    with pytest.raises(Overloaded, match="3 sequences") as caught:
        engine.add("3", prompt(5), GREEDY)
    assert caught.value.retry_after >= 1
    assert len(finish_all(engine)) == 3
    engine.add("3", prompt(5), GREEDY)


# Failures -----------------------------------------------------------------------------------------


def spoil(value: float, token: int) -> Any:
    """Write `value` into the logits of every sequence whose newest token row is `token`."""

    def change(model: Toy, batch: Batch, logits: Array) -> None:
        logits[batch.tokens[batch.logit_rows] == token, 3] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_bad_numbers_end_only_their_own_sequence(value: float, logprobs: int | None) -> None:
    engine = toy_engine(model=Scripted(spoil(value, 50)))
    sampling = Sampling(temperature=0.0, max_tokens=3, logprobs=logprobs, logit_bias={50: -100.0})
    engine.add("bad", [1, 2, 50], sampling)
    engine.add("good", [1, 2, 3], sampling)
    outputs = finish_all(engine)
    [bad] = outputs["bad"]
    assert bad.error is not None and bad.error[0] == "numerical_error"
    assert bad.finish is None and bad.events[-1].name == "finished"
    assert outputs["good"][-1].finish is Finish.LENGTH


def test_bad_numbers_in_a_scored_prompt() -> None:
    engine = toy_engine(model=Scripted(spoil(np.nan, 50)))
    engine.add("bad", [1, 50, 2, 3], Sampling(max_tokens=3, prompt_logprobs=1))
    [bad] = finish_all(engine)["bad"]
    assert bad.error is not None and bad.error[0] == "numerical_error"


@pytest.mark.parametrize("method", ["apply", "push"])
def test_an_exception_in_one_sequences_books_is_its_own(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = toy_engine()
    engine.add("bad", prompt(40), Sampling(max_tokens=4, presence_penalty=1.0))
    engine.add("good", prompt(40, 1), greedy(4))

    def explode(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(f"mainspring.engine.penalties.Penalties.{method}", explode)
    outputs = finish_all(engine)
    assert outputs["bad"][-1].error is not None
    assert outputs["bad"][-1].error[0] == "internal_error"
    assert "a bug" in caplog.text and "a bug" not in outputs["bad"][-1].error[1]
    assert len(tokens_of(outputs["good"])) == 4


def test_a_failing_forward_comes_through() -> None:
    def change(model: Toy, batch: Batch, logits: Array) -> None:
        raise MemoryError("no memory")

    engine = toy_engine(model=Scripted(change))
    engine.add("x", [1], GREEDY)
    with pytest.raises(MemoryError):
        engine.step()


# Replay -------------------------------------------------------------------------------------------

STUBBORN = Sampling(
    temperature=1.0,
    seed=9,
    max_tokens=30,
    min_tokens=12,
    repetition_penalty=1.2,
    presence_penalty=0.4,
    frequency_penalty=0.2,
    ignore_eos=False,
)


@pytest.mark.parametrize("emitted", [0, 1, 11, 12, 13, 29])
def test_a_replay_goes_on_where_it_stopped(emitted: int) -> None:
    whole = run_one(toy_engine(), prompt(50), STUBBORN)
    tokens = tokens_of(whole)
    emitted = min(emitted, len(tokens) - 1)
    again = run_one(toy_engine(), prompt(50), STUBBORN, generated=tokens[:emitted])
    assert tokens_of(again) == tokens[emitted:]
    assert again[-1].finish is whole[-1].finish


def test_a_replay_of_something_finished_only_says_so() -> None:
    engine = toy_engine()
    [output] = run_one(engine, prompt(5), greedy(3), generated=[1, 2, 3])
    assert (output.tokens, output.finish) == ((), Finish.LENGTH)
    sampling = Sampling(stop_token_ids=(7,))
    [output] = run_one(engine, prompt(5), sampling, generated=[1, 7])
    assert (output.finish, output.stop_reason) == (Finish.STOP, 7)
    engine.add("gone", prompt(5), greedy(1), generated=[1])
    assert engine.has_work and engine.abort("gone") and not engine.has_work


# Numbers ------------------------------------------------------------------------------------------


def test_the_timeline_tells_the_whole_story() -> None:
    engine = toy_engine(step_seconds=1e-9)
    outputs = run_one(engine, prompt(20), greedy(3))
    events = story_of(outputs)
    assert [(e.name, e.tokens, e.step) for e in events] == [
        ("queued", 0, 0),
        ("admitted", 0, 1),
        ("prefill", 8, 1),
        ("prefill", 8, 2),
        ("prefill", 4, 3),
        ("finished", 0, 5),
    ]
    times = [output.times[0] for output in outputs]
    assert [(t.step, t.batch, t.prefill) for t in times] == [(3, 1, 4), (4, 1, 0), (5, 1, 0)]
    clock = [e.time for e in events[:5]] + [t.time for t in times]
    assert clock == sorted(clock)
    assert [len(output.events) for output in outputs] == [5, 0, 1]


def test_stats_and_progress() -> None:
    engine = toy_engine()
    before = engine.stats()
    assert (before.blocks, before.steps, before.step_seconds) == (32, 0, 0.0)
    engine.add("a", prompt(40), greedy(3))
    engine.add("b", prompt(40, 1), greedy(3))
    assert engine.stats().waiting == 2
    progress = engine.progress
    engine.step()
    assert engine.progress == progress + 1 + LAYERS
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (2, 0, 4)
    assert (stats.prompt_tokens, stats.output_tokens, stats.steps) == (80, 2, 1)
    assert stats.step_seconds > 0
    finish_all(engine)
    assert engine.stats().blocks_cached == 4


def test_the_pool_is_checked_when_idle() -> None:
    engine = toy_engine()
    engine.add("a", prompt(40), greedy(3))
    engine.step()
    engine._pool.allocate(1)  # a leak
    with pytest.raises(AssertionError, match="holders"):
        finish_all(engine)


def test_engines_share_nothing() -> None:
    one, other = toy_engine(), toy_engine()
    one.add("a", prompt(40), greedy(2))
    assert not other.has_work and isinstance(other, Engine)
