from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from mainspring.engine.batch import Batch
from mainspring.engine.draft import Draft
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.sequence import Sequence
from mainspring.engine.speculation import TRIAL_SHARE, Speculation
from mainspring.engine.weights import load_model
from mainspring.kernels import Array, Cache, Format, load_kernels
from mainspring.types import EngineStats, Sampling
from tests.tiny import tiny_checkpoint
from tests.unit.engine.test_draft import Reciter
from tests.unit.engine.test_invariance import CONTEXT, Storm, native
from tests.unit.engine.toy import Clock, Toy, finish_all, greedy, prompt, run_one, tokens_of

STEP = 0.05
SMALL = 0.1
"""of the large model's step, what the draft model's takes"""
SAMPLED = Sampling(temperature=1.0, seed=7, max_tokens=120, ignore_eos=True)


def engine_with(draft: Any, *, model: Any = None, small: float = SMALL, **config: Any) -> Engine:
    """An Engine whose steps take STEP, and the draft model's `small` of that."""
    kernels = load_kernels("reference")
    model = model or Toy(kernels)
    model.clock = clock = Clock()
    model.step_seconds = STEP
    if draft is not None:
        draft.clock, draft.step_seconds, draft.row_seconds = clock, small * STEP, 1e-4
    settings: dict[str, Any] = {"blocks": 32, "dtype": "float32", **config}
    return Engine(model, kernels, EngineConfig(**settings), clock, draft)


def toy(seed: int = 0) -> Toy:
    return Toy(load_kernels("reference"), seed=seed)


def share(stats: EngineStats, engine: Engine) -> float:
    """Of all the time, what the draft model took."""
    return stats.draft_model.seconds / engine._clock()  # its Clock began at 0


def only_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draft, "guess", lambda *_: [])


# Gain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [greedy(120), SAMPLED])
def test_a_draft_that_agrees_makes_steps_few(sampling: Sampling) -> None:
    plain = run_one(engine_with(None, speculation=False), prompt(40), sampling)
    engine = engine_with(toy())
    outputs = run_one(engine, prompt(40), sampling)
    assert tokens_of(outputs) == tokens_of(plain)
    assert len(outputs) < len(plain) / 3
    stats = engine.stats()
    assert stats.draft_model.accepted >= 0.9 * stats.draft_model.tokens
    assert stats.draft_tokens >= stats.draft_model.tokens > 60


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.1},
        {"logit_bias": {5: 4.0}, "min_tokens": 50, "stop_token_ids": (5,), "ignore_eos": False},
    ],
)
def test_log_probabilities_are_the_same(changes: dict[str, Any]) -> None:
    sampling = structs.replace(SAMPLED, logprobs=2, **changes)
    plain = run_one(engine_with(None, speculation=False), prompt(40), sampling)
    outputs = run_one(engine_with(toy()), prompt(40), sampling)
    assert tokens_of(outputs) == tokens_of(plain) and len(outputs) < len(plain)
    assert [p for o in outputs for p in o.logprobs] == [p for o in plain for p in o.logprobs]


def test_a_draft_that_knows_nothing_is_only_tried() -> None:
    engine = engine_with(toy(seed=99))
    for turn in range(5):
        outputs = run_one(engine, prompt(40, turn), Sampling(seed=turn, max_tokens=300))
    stats = engine.stats()
    assert 0 < stats.draft_model.tokens < 60
    assert share(stats, engine) < 2 * TRIAL_SHARE
    assert tokens_of(outputs)


def test_a_draft_as_slow_as_the_model_is_only_tried() -> None:
    engine = engine_with(toy(), small=1.0)
    for turn in range(3):
        run_one(engine, prompt(40, turn), greedy(150))
    assert share(engine.stats(), engine) < 2 * TRIAL_SHARE


def test_trust_comes_back_when_the_draft_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_draft(monkeypatch)

    class Fickle(Reciter):
        """Recites once it is `good`."""

        good = False

        def forward(self, batch: Batch, cache: Cache) -> Array:
            self.gain = 1e4 if self.good else 0.0
            return super().forward(batch, cache)

    draft = Fickle()
    engine = engine_with(draft, model=Reciter())
    for turn in range(3):
        run_one(engine, prompt(40, turn), greedy(200))
    before = engine.stats().draft_model
    draft.good = True
    for turn in range(4):
        steps = len(run_one(engine, prompt(40, turn), greedy(200)))
    after = engine.stats().draft_model
    assert before.tokens < 60 and before.accepted < 5
    assert steps < 100 and after.accepted - before.accepted > 100


# What its cache holds -----------------------------------------------------------------------------


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every wrong guess of a draft model, by its sequence."""
    found: list[str] = []
    learn = Speculation._learn

    def note(speculation: Speculation, sequence: Sequence, right: bool) -> None:
        if not right:
            found.append(sequence.id)
        learn(speculation, sequence, right)

    monkeypatch.setattr(Speculation, "_learn", note)
    return found


def storm(seed: int, draft_seed: int, steps: int) -> Storm:
    kernels = native()
    weather = Storm(kernels, seed, draft=Toy(kernels, context=CONTEXT, seed=draft_seed))
    weather.rage(steps)
    weather.compare()
    return weather


@pytest.mark.parametrize("seed", range(400, 404))
def test_a_copy_is_never_wrong_whatever_happens(
    seed: int, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So every row that it reads is right: over prefix hits, preemptions, chunks, replays."""
    only_the_draft(monkeypatch)
    assert storm(seed, seed, 200).accepted > 100 and not wrong


def test_another_model_changes_no_text(wrong: list[str]) -> None:
    storm(404, 1, 150)
    assert wrong


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_copy_is_never_wrong_at_length(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_draft(monkeypatch)
    for seed in range(3000, 3100):
        storm(seed, seed, 400)
    assert not wrong


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_a_copy_of_a_real_checkpoint_is_never_wrong(
    format: Format, tmp_path: Path, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_draft(monkeypatch)
    kernels = native()
    path = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=CONTEXT)
    model, draft = (load_model(path, kernels, format=format) for _ in range(2))
    weather = Storm(kernels, 6, model, "int8", draft)
    weather.rage(60)
    weather.compare()
    assert not wrong


def test_prompts_that_come_back_from_a_tier_are_computed_again(wrong: list[str]) -> None:
    engine = engine_with(toy(), blocks=6, prefix_memory=1 << 20)
    for seed in (1, 2, 1):
        run_one(engine, prompt(100, seed), greedy(40))
    stats = engine.stats()
    assert stats.tier.memory_tokens > 0 and stats.draft_model.accepted > 60
    assert not wrong


def test_a_shared_prefix_is_computed_once() -> None:
    draft = toy()
    engine = engine_with(draft)
    shared = prompt(96)
    run_one(engine, [*shared, 5], greedy(30))
    rows = count_rows(draft)
    run_one(engine, [*shared, 6], greedy(30))
    assert 1 <= len(rows[0]) <= 2 and rows[0][0] >= 96


def test_what_choices_share_is_computed_by_one_of_them(wrong: list[str]) -> None:
    draft = toy()
    engine = engine_with(draft)
    run_one(engine, prompt(10), greedy(40))
    rows = count_rows(draft)
    for i in range(4):
        engine.add(str(i), prompt(200, 1), Sampling(seed=i, max_tokens=40, ignore_eos=True))
    outputs = finish_all(engine)
    assert max(map(len, outputs.values())) < 30 and not wrong
    assert sum(positions.count(100) for positions in rows) == 1


def count_rows(model: Toy) -> list[list[int]]:
    """The positions of each of the model's batches from now on."""
    positions: list[list[int]] = []
    forward = model.forward

    def watched(batch: Batch, cache: Cache) -> Array:
        positions.append(batch.positions.tolist())
        return forward(batch, cache)

    model.forward = watched  # type: ignore[method-assign]
    return positions


def test_a_long_prompt_is_caught_up_in_pieces_and_only_where_that_pays() -> None:
    draft = toy()
    engine = engine_with(draft, blocks=64)
    draft.row_seconds = 1e-3
    run_one(engine, prompt(20), greedy(60))
    rows = count_rows(draft)
    run_one(engine, prompt(450, 1), greedy(6))
    assert not rows
    outputs = run_one(engine, prompt(450, 2), greedy(60))
    assert sum(len(batch) > 8 for batch in rows) > 1
    assert max(map(len, rows)) * draft.row_seconds <= 1.1 * STEP
    assert len(outputs) < 45


def test_a_draft_of_a_shorter_context_guesses_as_far_as_it_reaches() -> None:
    draft = toy()
    draft.shape = replace(draft.shape, context=100)
    engine = engine_with(draft)
    rows = count_rows(draft)
    long = run_one(engine, prompt(40), greedy(150))
    assert tokens_of(long) == tokens_of(
        run_one(engine_with(None, speculation=False), prompt(40), greedy(150))
    )
    assert 90 <= max(map(max, rows)) < 100


# Failures -----------------------------------------------------------------------------------------


def test_a_draft_that_fails_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Toy):
        def forward(self, batch: Batch, cache: Cache) -> Array:
            if self.forwards > 20:
                raise ZeroDivisionError("a bug")
            return super().forward(batch, cache)

    draft = Broken(load_kernels("reference"))
    engine = engine_with(draft)
    with caplog.at_level(logging.ERROR):
        outputs = run_one(engine, prompt(40), SAMPLED)
    plain = run_one(engine_with(None, speculation=False), prompt(40), SAMPLED)
    assert tokens_of(outputs) == tokens_of(plain)
    assert draft.forwards == 21 and len(caplog.records) == 1


def test_a_draft_that_says_no_numbers_is_no_failure() -> None:
    class Mute(Toy):
        def forward(self, batch: Batch, cache: Cache) -> Array:
            logits = super().forward(batch, cache)
            logits[batch.positions[batch.logit_rows] > 60] = np.nan
            return logits

    draft = Mute(load_kernels("reference"))
    engine = engine_with(draft)
    outputs = run_one(engine, prompt(40), SAMPLED)
    plain = run_one(engine_with(None, speculation=False), prompt(40), SAMPLED)
    assert tokens_of(outputs) == tokens_of(plain) and outputs[-1].error is None
    assert 8 <= engine.stats().draft_model.accepted <= 21 and draft.forwards < 80
