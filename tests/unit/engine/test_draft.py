from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mainspring.engine.batch import Batch
from mainspring.engine.draft import LEVELS, LOOKED_UP, MOST, SHORTEST, Draft
from mainspring.engine.engine import Engine
from mainspring.engine.sequence import Output
from mainspring.kernels import Array, Cache, load_kernels
from mainspring.types import Finish, Sampling
from tests.unit.engine.toy import EOS, Toy, greedy, prompt, run_one, tokens_of, toy_engine

CHEAP = 0.01
"""A row's share of a step where nearly any guess is worth it."""
CYCLE = [11, 5, 5, 60, 2, 33, 8]

# Guesses ------------------------------------------------------------------------------------------


def drafted(tokens: list[int], most: int = MOST, share: float = CHEAP) -> list[int]:
    return Draft(list(tokens)).guess(most, share)


def test_the_guess_is_what_followed_the_last_time() -> None:
    text = [1, 2, 3, 4, 5, 6, 7]
    assert drafted([*text, 9, 1, 2], 3) == [3, 4, 5]
    assert drafted([*text, 9, 2]) == []  # a single token says too little
    assert drafted([1]) == drafted([1, 1]) == []


def test_the_longest_match_counts_and_of_those_the_latest() -> None:
    assert drafted([1, 2, 3, 70, 0, 2, 3, 80, 0, 1, 2, 3], 1) == [70]
    assert drafted([2, 3, 70, 0, 2, 3, 80, 0, 2, 3], 1) == [80]


def test_a_short_repetition_goes_on_with_itself() -> None:
    assert drafted([9, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert drafted([4, 4, 4], 3) == [4, 4, 4]


def brute(tokens: list[int]) -> int:
    """Where the next token is guessed from."""
    for length in range(LOOKED_UP, SHORTEST - 1, -1):
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:] and len(tokens) > length:
                return place
    return 0


def test_looking_up_finds_what_a_plain_search_finds() -> None:
    rng = random.Random(1)
    for _ in range(400):
        # The bytes of these tokens also match at other places than where tokens begin.
        letters = rng.choice([[0, 1], [0, 256, 65536, 1 << 24], [1, 257, 65793, 16843009, 5]])
        tokens = [rng.choice(letters) for _ in range(rng.randint(1, 40))]
        assert Draft(tokens)._source == brute(tokens), tokens


def test_a_match_that_holds_is_followed() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 0, 1, 2]
    draft = Draft(tokens)
    for token in (3, 4, 5):
        tokens.append(token)
        draft.push(token)
    assert (draft._source, draft._match) == (5, 5)
    assert draft.guess(1, CHEAP) == [6]


def pushed(draft: Draft, tokens: list[int], token: int) -> None:
    tokens.append(token)
    draft.push(token)


# Gain ---------------------------------------------------------------------------------------------


def test_guesses_grow_with_their_success() -> None:
    tokens = CYCLE * 2
    draft = Draft(tokens)
    before = len(draft.guess(MOST, 0.15))
    for i in range(100):
        pushed(draft, tokens, CYCLE[i % 7])
    assert 0 < before < len(draft.guess(MOST, 0.15)) == MOST
    assert len(draft.guess(4, 0.15)) == 4


def test_dear_rows_are_not_guessed() -> None:
    tokens = CYCLE * 2
    draft = Draft(tokens)
    for i in range(100):
        pushed(draft, tokens, CYCLE[i % 7])
    assert draft.guess(MOST, 1.0) == [] == draft.guess(0, CHEAP)
    draft = Draft(CYCLE * 2)  # not yet known to be right
    lengths = [len(draft.guess(MOST, share)) for share in (0.01, 0.1, 0.3, 0.6)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[1] and not lengths[-1]


def test_the_length_is_the_one_with_the_most_tokens_for_the_time() -> None:
    draft = Draft(CYCLE * 4)
    chance, share = 0.8, 0.1
    draft._hits = [8 * chance] * (LEVELS + 1)
    draft._trials = [8.0] * (LEVELS + 1)

    def rate(rows: int) -> float:
        return float(sum(chance**k for k in range(rows + 1)) / (1 + rows * share))

    best = max(range(MOST + 1), key=rate)
    rows = len(draft.guess(MOST, share))
    assert best - 2 <= rows <= best and rate(rows) > 0.98 * rate(best)


def test_where_guesses_fail_they_stop_and_where_the_text_repeats_they_return() -> None:
    rng = random.Random(2)
    tokens = [rng.randrange(16) for _ in range(300)]  # every pair came before, and means nothing
    draft = Draft(tokens)
    guessed = 0
    for _ in range(1000):
        guessed += len(draft.guess(MOST, 0.2))
        pushed(draft, tokens, rng.randrange(16))
    assert guessed < 40
    for token in tokens[100:130]:
        pushed(draft, tokens, token)
    assert draft.guess(5, 0.2) == tokens[130:135]


# In the Engine ------------------------------------------------------------------------------------


class Reciter(Toy):
    """Says CYCLE again and again, as sure of it as `gain`, but `ends` at some positions."""

    def __init__(self, gain: float = 1e4, ends: dict[int, int] | None = None) -> None:
        super().__init__(load_kernels("reference"))
        self.gain, self.ends = gain, ends or {}
        self.step_seconds = 0.05

    def forward(self, batch: Batch, cache: Cache) -> Array:
        logits = super().forward(batch, cache)
        for row, position in enumerate(batch.positions[batch.logit_rows].tolist()):
            token = self.ends.get(position + 1, CYCLE[(position + 1) % 7])
            logits[row, token] += self.gain
        return logits


def recite(sampling: Sampling, model: Reciter | None = None, **config: Any) -> list[Output]:
    return run_one(toy_engine(model=model or Reciter(), **config), CYCLE * 3, sampling)


def test_repetition_takes_few_steps() -> None:
    engine = toy_engine(model=Reciter())
    outputs = run_one(engine, CYCLE * 3, greedy(140))
    assert tokens_of(outputs) == CYCLE * 20
    assert len(outputs) < 30
    assert all(len(o.tokens) == len(o.times) for o in outputs)
    stats = engine.stats()
    assert stats.output_tokens == 140 == len(outputs) + stats.accepted_tokens
    assert stats.accepted_tokens <= stats.draft_tokens <= MOST * stats.drafts


def test_it_can_be_off() -> None:
    engine = toy_engine(model=Reciter(), speculation=False)
    assert len(run_one(engine, CYCLE * 3, greedy(40))) == 40
    assert engine.stats().drafts == 0


@pytest.mark.parametrize("length", range(60, 76))
def test_nothing_comes_after_the_end(length: int) -> None:
    end = {21 + length: EOS}
    for sampling, finish, reason, count in (
        (Sampling(temperature=0.0), Finish.STOP, None, length + 1),
        (
            Sampling(temperature=0.0, ignore_eos=True, stop_token_ids=(EOS,)),
            Finish.STOP,
            EOS,
            length + 1,
        ),
        (greedy(length), Finish.LENGTH, None, length),
    ):
        outputs = recite(sampling, Reciter(ends=end))
        assert len(tokens_of(outputs)) == count
        assert (outputs[-1].finish, outputs[-1].stop_reason) == (finish, reason)
        assert max(len(output.tokens) for output in outputs) > 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.1},
        {"logit_bias": {CYCLE[0]: -3.0, 90: 4.0}},
        {"min_tokens": 50, "stop_token_ids": (90,), "ignore_eos": False},
        {"temperature": 0.0, "frequency_penalty": 0.15},
        {"top_k": 3, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_tokens_and_log_probabilities_are_the_same(changes: dict[str, Any]) -> None:
    wish: dict[str, Any] = {"temperature": 0.8, "ignore_eos": True, "seed": 3}
    sampling = Sampling(max_tokens=120, logprobs=2, **{**wish, **changes})
    plain = recite(sampling, Reciter(gain=25.0), speculation=False)
    outputs = recite(sampling, Reciter(gain=25.0))
    assert tokens_of(outputs) == tokens_of(plain)
    assert [p for o in outputs for p in o.logprobs] == [p for o in plain for p in o.logprobs]
    assert len(outputs) < len(plain)


def test_rows_that_cost_as_much_as_steps_are_only_probed() -> None:
    model = Reciter()
    model.step_seconds = 0.0
    engine = toy_engine(model=model)
    run_one(engine, CYCLE * 3, greedy(450))  # it must learn that rows are all that a step costs
    before = engine.stats().drafts
    run_one(engine, CYCLE * 3, greedy(450))
    assert 1 <= engine.stats().drafts - before <= 6


def test_a_failing_guess_is_no_failure() -> None:
    class Afraid(Reciter):
        """Cannot say what follows a 5 where CYCLE has none."""

        def forward(self, batch: Batch, cache: Cache) -> Array:
            logits = super().forward(batch, cache)
            wrong = np.array(CYCLE)[batch.positions % 7] != batch.tokens
            wrong &= batch.positions > 21
            logits[wrong[batch.logit_rows]] = np.nan
            return logits

    def misguess(draft: Draft, most: int, share: float) -> list[int]:
        at = len(draft._tokens)
        return [CYCLE[(at + i) % 7] if i < 3 else 70 for i in range(min(most, 6))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draft, "guess", misguess)
        outputs = recite(greedy(40), Afraid())
    assert tokens_of(outputs) == [CYCLE[i % 7] for i in range(40)]
    assert outputs[-1].error is None and outputs[-1].finish is Finish.LENGTH


def test_a_scored_prompt_of_which_one_token_is_left_is_not_guessed() -> None:
    def scores(engine: Engine) -> Any:
        wish = Sampling(temperature=0.0, prompt_logprobs=0, max_tokens=5)
        engine.add("other", prompt(30), greedy(60))
        engine.step()
        return run_one(engine, (CYCLE * 3)[:17], wish)[0].prompt_logprobs

    assert scores(toy_engine(model=Reciter(), step_seconds=1e-9)) == scores(
        toy_engine(model=Reciter(), step_seconds=10.0, speculation=False)
    )


def test_no_one_is_preempted_for_a_guess() -> None:
    engine = toy_engine(model=Reciter(), blocks=4, prefix_cache=False)
    for i in range(2):
        engine.add(str(i), CYCLE * 3, greedy(43))  # two blocks each, to the last token
    lengths = {"0": 0, "1": 0}
    while engine.has_work:
        for output in engine.step():
            lengths[output.id] += len(output.tokens)
    assert lengths == {"0": 43, "1": 43}
    stats = engine.stats()
    assert stats.preemptions == 0 and stats.accepted_tokens > 0
