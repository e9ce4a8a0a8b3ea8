from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mainspring.engine.batch import Batch
from mainspring.engine.engine import Engine
from mainspring.errors import BadRequest, ContextLength, Overloaded
from mainspring.kernels import BLOCK, Array, Cache, load_kernels
from mainspring.types import Finish, Sampling
from tests.unit.engine.toy import (
    EOS,
    VOCABULARY,
    Toy,
    finish_all,
    prompt,
    run_one,
    tokens_of,
    toy_engine,
)

GREEDY = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)


def greedy(count: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=count, ignore_eos=True)


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


# Scheduling ---------------------------------------------------------------------------------------


def test_a_long_prompt_is_cut_while_others_decode_and_nobody_starves() -> None:
    engine = toy_engine(step_seconds=0.02, blocks=64)  # 20 rows of the Toy
    engine.add("stream", prompt(5), greedy(60))
    engine.step()
    engine.add("long", prompt(400, 1), greedy(2))
    outputs = finish_all(engine)
    chunks = [e.tokens for e in outputs["long"][-1].events if e.name == "prefill"]
    assert sum(chunks) == 400 and all(12 <= chunk <= 20 for chunk in chunks[2:-1]), chunks
    stream = outputs["stream"]
    assert len(stream) == 59  # a token in every step
    gaps = np.diff([output.times[0].time for output in stream])
    assert gaps[2:].max() < 0.025


def test_prompts_that_do_not_fit_a_step_are_computed_one_after_the_other() -> None:
    engine = toy_engine(step_seconds=1e-9)
    engine.add("a", prompt(100, 1), greedy(1))
    engine.add("b", prompt(100, 2), greedy(1))
    outputs = finish_all(engine)
    steps = {
        id: [e.step for e in found[-1].events if e.name == "prefill"]
        for id, found in outputs.items()
    }
    assert steps["a"][-1] < steps["b"][0]


def test_while_nobody_decodes_a_step_is_longer() -> None:
    engine = toy_engine(step_seconds=0.02)
    events = run_one(engine, prompt(400), greedy(1))[-1].events
    chunks = [e.tokens for e in events if e.name == "prefill"]
    assert all(60 <= chunk <= 82 for chunk in chunks[2:-1]), chunks


def test_a_step_that_is_too_long_already_at_most_doubles() -> None:
    engine = toy_engine(step_seconds=1e-6, blocks=128)
    for i in range(20):
        engine.add(str(i), prompt(1, i), greedy(100))
    for _ in range(40):
        engine.step()
    engine.add("long", prompt(300, 1), greedy(1))
    events = finish_all(engine)["long"][-1].events
    chunks = [e.tokens for e in events if e.name == "prefill"]
    assert all(12 <= chunk <= 24 for chunk in chunks[:-1]), chunks


def test_prompts_share_a_step_when_the_budget_allows() -> None:
    engine = toy_engine(step_seconds=10.0)
    for i in range(4):
        engine.add(str(i), prompt(40, i), greedy(3))
    first = engine.step()
    assert [output.id for output in first] == ["0", "1", "2", "3"]
    assert {(output.times[0].batch, output.times[0].prefill) for output in first} == {(4, 160)}


def test_preemption_takes_the_latest_and_changes_nothing() -> None:
    alone = {i: tokens_of(run_one(toy_engine(), prompt(30, i), greedy(60))) for i in range(4)}
    engine = toy_engine(blocks=8, prefix_cache=False)
    for i in range(4):
        engine.add(str(i), prompt(30, i), greedy(60))
    outputs = finish_all(engine)
    assert engine.stats().preemptions > 0
    assert {int(id): tokens_of(found) for id, found in outputs.items()} == alone
    names = [event.name for event in outputs["3"][-1].events]
    assert "preempted" in names and names.count("admitted") == names.count("preempted") + 1
    assert all(event.name != "preempted" for event in outputs["0"][-1].events)


def test_a_newcomer_leaves_each_running_sequence_a_block_to_grow() -> None:
    engine = toy_engine(blocks=5)
    engine.add("a", prompt(60, 1), greedy(20))
    engine.add("b", prompt(70, 2), greedy(2))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    assert len(finish_all(engine)) == 2 and engine.stats().preemptions == 0


def test_first_come_first_served_when_blocks_are_short() -> None:
    engine = toy_engine(blocks=6)
    engine.add("a", prompt(90, 1), greedy(20))
    engine.add("b", prompt(150, 2), greedy(2))
    engine.add("c", prompt(5, 3), greedy(2))
    ends = []
    while engine.has_work:
        ends += [output.id for output in engine.step() if output.finish]
    assert ends[0] == "a" and set(ends) == {"a", "b", "c"}


def test_a_preempted_sequence_comes_back_before_those_that_wait() -> None:
    engine = toy_engine(blocks=8, max_running=2, prefix_cache=False)
    engine.add("a", prompt(60, 1), greedy(140))
    engine.add("b", prompt(60, 2), greedy(140))
    engine.add("c", prompt(5, 3), greedy(2))
    outputs = finish_all(engine)
    admitted = {
        id: [e.step for e in found[-1].events if e.name == "admitted"]
        for id, found in outputs.items()
    }
    assert len(admitted["b"]) > 1 and admitted["b"][-1] <= admitted["c"][0]


# Prefix cache -------------------------------------------------------------------------------------


def test_the_second_of_a_prompt_reads_all_but_the_last_token() -> None:
    engine = toy_engine()
    tokens = prompt(3 * BLOCK)
    first = run_one(engine, tokens, GREEDY)
    second = run_one(engine, tokens, GREEDY)
    assert tokens_of(first) == tokens_of(second)
    assert (first[0].cached, second[0].cached) == (0, 2 * BLOCK)
    assert engine.stats().cached_tokens == 2 * BLOCK
    longer = run_one(engine, [*tokens, *tokens_of(first), *prompt(40, 5)], GREEDY)
    assert longer[0].cached == 3 * BLOCK


def test_only_computed_blocks_can_be_read() -> None:
    engine = toy_engine(step_seconds=1e-9)
    whole = tokens_of(run_one(toy_engine(), prompt(200), GREEDY))
    engine.add("gone", prompt(200), GREEDY)
    for _ in range(9):  # 72 tokens
        engine.step()
    engine.abort("gone")
    outputs = run_one(engine, prompt(200), GREEDY)
    assert outputs[0].cached == 2 * BLOCK
    assert tokens_of(outputs) == whole


def test_salts_do_not_share() -> None:
    engine = toy_engine()
    run_one(engine, prompt(70), GREEDY, salt=b"a")
    assert run_one(engine, prompt(70), GREEDY, salt=b"b")[0].cached == 0
    assert run_one(engine, prompt(70), GREEDY, salt=b"a")[0].cached == 64


def test_choices_that_come_together_share_their_prompt() -> None:
    engine = toy_engine()
    for i in range(4):
        engine.add(str(i), prompt(100), Sampling(seed=i, max_tokens=5, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.stats().blocks_used == 4 + 3
    outputs = finish_all(engine)
    assert engine.stats().cached_tokens == 3 * 96
    assert all(found[-1].cached == 96 for id, found in outputs.items() if id != "0")


def test_the_prefix_cache_can_be_off() -> None:
    engine = toy_engine(prefix_cache=False)
    run_one(engine, prompt(70), GREEDY)
    assert run_one(engine, prompt(70), GREEDY)[0].cached == 0
    assert engine.stats().blocks_cached == 0


# Abort --------------------------------------------------------------------------------------------


def test_abort_in_every_phase_frees_at_once() -> None:
    engine = toy_engine(step_seconds=1e-4, max_running=2, prefix_cache=False)
    engine.add("decoding", prompt(5), greedy(50))
    engine.step()
    engine.add("prefill", prompt(200, 1), greedy(50))
    engine.step()
    engine.add("waiting", prompt(40, 2), greedy(50))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)
    for id, used in (("waiting", 8), ("prefill", 1), ("decoding", 0)):
        assert engine.abort(id)
        assert engine.stats().blocks_used == used
    assert not engine.has_work and not engine.abort("decoding")


def test_hundreds_of_aborts_leave_the_pool_as_it_was() -> None:
    rng = random.Random(3)
    engine = toy_engine(blocks=20, max_running=6)
    alive: list[str] = []
    for i in range(400):
        if len(alive) < 12:
            engine.add(str(i), prompt(rng.randint(1, 150), i % 7), greedy(rng.randint(1, 100)))
            alive.append(str(i))
        ended = {output.id for output in engine.step() if output.finish}
        alive = [id for id in alive if id not in ended]
        if alive and rng.random() < 0.8:
            assert engine.abort(alive.pop(rng.randrange(len(alive))))
        engine._pool.check([s.blocks for s in engine._scheduler.running])
    for id in alive:
        engine.abort(id)
    stats = engine.stats()
    assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)


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
    events = outputs[-1].events
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
    assert not any(output.events for output in outputs[:-1])


def test_stats_and_progress() -> None:
    engine = toy_engine()
    before = engine.stats()
    assert (before.blocks, before.steps, before.step_seconds) == (32, 0, 0.0)
    engine.add("a", prompt(40), greedy(3))
    engine.add("b", prompt(40, 1), greedy(3))
    assert engine.stats().waiting == 2
    progress = engine.progress
    engine.step()
    assert engine.progress > progress
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (2, 0, 4)
    assert (stats.prompt_tokens, stats.output_tokens, stats.steps) == (80, 2, 1)
    assert stats.step_seconds > 0
    finish_all(engine)
    assert engine.stats().blocks_cached == 2


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
