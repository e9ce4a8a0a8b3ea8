from __future__ import annotations

import random

import numpy as np

from mainspring.kernels import BLOCK
from mainspring.types import Sampling
from tests.unit.engine.toy import (
    GREEDY,
    finish_all,
    greedy,
    prompt,
    run_one,
    story_of,
    tokens_of,
    toy_engine,
)

# Scheduling ---------------------------------------------------------------------------------------


def test_a_long_prompt_is_cut_while_others_decode_and_nobody_starves() -> None:
    engine = toy_engine(step_seconds=0.02, blocks=64, speculation=False)  # 20 rows of the Toy
    engine.add("stream", prompt(5), greedy(60))
    engine.step()
    engine.add("long", prompt(400, 1), greedy(2))
    outputs = finish_all(engine)
    chunks = [e.tokens for e in story_of(outputs["long"]) if e.name == "prefill"]
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
        id: [e.step for e in story_of(found) if e.name == "prefill"]
        for id, found in outputs.items()
    }
    assert steps["a"][-1] < steps["b"][0]


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it() -> None:
    engine = toy_engine(step_seconds=0.02, blocks=64)  # 80 rows of the Toy
    run_one(engine, prompt(40), GREEDY)  # what a row costs is known
    engine.add("long", prompt(450, 1), greedy(1))
    engine.add("longer", prompt(480, 2), greedy(1))
    for _ in range(2):
        engine.step()
    now = engine.stats().steps
    for i in range(3):
        engine.add(f"short{i}", prompt(12, 5 + i), greedy(1))
    outputs = finish_all(engine)
    first = {id: found[-1].times[0].step for id, found in outputs.items()}
    assert all(first[f"short{i}"] <= now + 2 for i in range(3)), first
    assert first["long"] < first["longer"]


def test_a_long_prompt_gets_half_of_every_step() -> None:
    engine = toy_engine(step_seconds=0.02, blocks=64, prefix_cache=False)
    engine.add("long", prompt(450, 1), greedy(1))
    outputs = []
    for i in range(40):
        engine.add(f"short{i}", prompt(36, i), greedy(1))
        outputs += engine.step()
    (found,) = [output for output in outputs if output.id == "long"]
    chunks = [e.tokens for e in found.events if e.name == "prefill"]
    assert all(30 <= chunk <= 82 for chunk in chunks[2:-1]), chunks


def test_while_nobody_decodes_a_step_is_longer() -> None:
    engine = toy_engine(step_seconds=0.02)
    events = story_of(run_one(engine, prompt(400), greedy(1)))
    chunks = [e.tokens for e in events if e.name == "prefill"]
    assert all(60 <= chunk <= 82 for chunk in chunks[2:-1]), chunks


def test_a_step_that_is_too_long_already_at_most_doubles() -> None:
    engine = toy_engine(step_seconds=1e-6, blocks=128)
    for i in range(20):
        engine.add(str(i), prompt(1, i), greedy(100))
    for _ in range(40):
        engine.step()
    engine.add("long", prompt(300, 1), greedy(1))
    events = story_of(finish_all(engine)["long"])
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
    names = [event.name for event in story_of(outputs["3"])]
    assert "preempted" in names and names.count("admitted") == names.count("preempted") + 1
    assert all(event.name != "preempted" for event in story_of(outputs["0"]))


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
        id: [e.step for e in story_of(found) if e.name == "admitted"]
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
    assert (first[0].cached, second[0].cached) == (0, 3 * BLOCK - 1)
    assert engine.stats().cached_tokens == 3 * BLOCK - 1
    longer = run_one(engine, [*tokens, *tokens_of(first), *prompt(40, 5)], GREEDY)
    assert longer[0].cached == 3 * BLOCK + 7  # the last token of an answer is not computed


def test_a_block_that_differs_is_copied_up_to_there() -> None:
    """The new tokens alone are computed, and the answer is as if all had been."""
    shared = prompt(2 * BLOCK + 9)
    ends = [prompt(20, 5), prompt(20, 6), prompt(3, 7)]
    whole = [tokens_of(run_one(toy_engine(), shared + end, GREEDY)) for end in ends]
    engine = toy_engine()
    found = [run_one(engine, shared + end, GREEDY) for end in ends]
    assert [tokens_of(outputs) for outputs in found] == whole
    assert [outputs[0].cached for outputs in found] == [0, len(shared), len(shared)]
    computed = [e.tokens for e in story_of(found[1]) if e.name == "prefill"]
    assert computed == [20]


def test_a_scored_prompt_copies_nothing() -> None:
    engine = toy_engine()
    scored = Sampling(temperature=0.0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    run_one(engine, prompt(50), GREEDY)
    assert run_one(engine, prompt(50), scored)[0].cached == 0


def test_only_computed_blocks_can_be_read() -> None:
    engine = toy_engine(step_seconds=1e-9)
    whole = tokens_of(run_one(toy_engine(), prompt(200), GREEDY))
    engine.add("gone", prompt(200), GREEDY)
    for _ in range(9):  # 72 tokens
        engine.step()
    engine.abort("gone")
    outputs = run_one(engine, prompt(200), GREEDY)
    assert outputs[0].cached == 72
    assert tokens_of(outputs) == whole


def test_salts_do_not_share() -> None:
    engine = toy_engine()
    run_one(engine, prompt(70), GREEDY, salt=b"a")
    assert run_one(engine, prompt(70), GREEDY, salt=b"b")[0].cached == 0
    assert run_one(engine, prompt(70), GREEDY, salt=b"a")[0].cached == 69


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
