from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.engine import reference
from mainspring.engine.penalties import Penalties
from mainspring.engine.sampler import Sampler, uniforms
from mainspring.engine.sequence import Sequence
from mainspring.kernels import Array, load_kernels
from mainspring.types import Sampling
from tests.unit.engine.toy import Toy, finish_all, prompt, run_one, tokens_of, toy_engine

VOCABULARY = 50


def sequence(tokens: list[int], generated: list[int], **sampling: Any) -> Sequence:
    return Sequence(
        "s",
        tokens,
        generated,
        Sampling(**sampling),
        salt=b"",
        eos=(49,),
        context=1000,
        hashed=False,
    )


def random_logits(rows: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((rows, VOCABULARY)) * 3).astype(np.float32)


def draw(logits: Array, sequences: list[Sequence]) -> list[int]:
    return [d.token for d in Sampler(load_kernels("reference")).draw(logits.copy(), sequences)]


# Uniform numbers ----------------------------------------------------------------------------------


def test_uniforms_are_those_of_the_oracle() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1, 123456789]
    positions = [0, 1, 7, 100_000, 3]
    fast = uniforms(np.array(seeds, np.uint64), np.array(positions, np.uint64))
    slow = [reference._uniform(s, p) for s, p in zip(seeds, positions, strict=True)]
    assert fast.tolist() == slow


def test_uniforms_are_uniform_along_positions_and_seeds() -> None:
    many = np.arange(20_000, dtype=np.uint64)
    zero = np.zeros(20_000, np.uint64)
    for numbers in (uniforms(zero, many), uniforms(many, zero)):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-squared, 19 degrees, p = 0.0007
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    diagonal = uniforms(many, many)
    assert len(set(diagonal.tolist())) == 20_000


# Parameters ---------------------------------------------------------------------------------------


def test_rows_do_not_disturb_each_other() -> None:
    wishes: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 0.7, "top_k": 3, "seed": 2},
        {"temperature": 1.0, "top_p": 0.4, "seed": 3, "presence_penalty": 1.0},
        {"temperature": 1.0, "min_p": 0.2, "seed": 4, "logit_bias": {5: 3.0}},
        {"temperature": 1.0, "repetition_penalty": 1.5, "seed": 5, "logprobs": 2},
    ]
    logits = random_logits(len(wishes))
    together = [sequence([1, 2, 3], [4, 5], **wish) for wish in wishes]
    alone = [draw(logits[i : i + 1], [s])[0] for i, s in enumerate(together)]
    assert draw(logits, together) == alone
    assert draw(logits[::-1], together[::-1]) == alone[::-1]


def test_draws_follow_the_distribution() -> None:
    logits = np.array([[0.0, 1.0, 2.0, -np.inf] + [-np.inf] * 46], np.float32)
    rows = 4000
    many = [sequence([1], [], seed=i, temperature=2.0) for i in range(rows)]
    counts = np.bincount(draw(np.repeat(logits, rows, axis=0), many), minlength=4)
    expected = np.exp([0, 0.5, 1.0]) / np.exp([0, 0.5, 1.0]).sum()
    assert counts[3] == 0
    np.testing.assert_allclose(counts[:3] / rows, expected, atol=0.03)


def test_the_same_seed_draws_the_same_text_whatever_the_batch() -> None:
    wish = Sampling(seed=77, max_tokens=30, ignore_eos=True)
    alone = tokens_of(run_one(toy_engine(), prompt(20), wish))
    crowd = toy_engine()
    for i in range(5):
        crowd.add(f"other{i}", prompt(30, i), Sampling(seed=i, max_tokens=20))
    crowd.add("it", prompt(20), wish)
    assert tokens_of(finish_all(crowd)["it"]) == alone
    other = tokens_of(run_one(toy_engine(), prompt(20), Sampling(seed=78, max_tokens=30)))
    assert other[:10] != alone[:10]


# Penalties ----------------------------------------------------------------------------------------


def penalized(logits: Array, tokens: list[int], output: list[int], **sampling: Any) -> Array:
    wish = Sampling(**sampling)
    stops = frozenset((49, *wish.stop_token_ids))
    found = Penalties.of(wish, [*tokens, *output], len(tokens), stops)
    changed = logits.copy()
    if found is not None:
        found.apply(changed)
    return changed


def test_without_wishes_there_are_no_penalties() -> None:
    assert Penalties.of(Sampling(), [1, 2], 1, frozenset({49})) is None
    assert Penalties.of(Sampling(min_tokens=5), [1, 2], 1, frozenset()) is None
    assert Penalties.of(Sampling(min_tokens=1), [1, 2], 1, frozenset({49})) is None


def test_each_penalty_does_what_it_says() -> None:
    logits = random_logits(1)[0]
    prompt_, output = [1, 2, 3], [3, 4, 4, 4]
    repeated = penalized(logits, prompt_, output, repetition_penalty=2.0)
    expected = logits.copy()
    for token in (1, 2, 3, 4):
        expected[token] = logits[token] / 2 if logits[token] > 0 else logits[token] * 2
    np.testing.assert_array_equal(repeated, expected)
    present = penalized(logits, prompt_, output, presence_penalty=0.5, frequency_penalty=0.25)
    expected = logits.copy()
    expected[3] -= 0.75
    expected[4] -= 1.25
    np.testing.assert_allclose(present, expected)
    biased = penalized(logits, prompt_, output, logit_bias={7: 5.0, 8: -100.0})
    expected = logits.copy()
    expected[[7, 8]] += np.array([5, -100], np.float32)
    np.testing.assert_array_equal(biased, expected)


def test_min_tokens_masks_the_ends_only_so_long() -> None:
    found = Penalties.of(Sampling(min_tokens=2), [1], 1, frozenset({49, 3}))
    assert found is not None
    for masked in (True, True, False, False):
        logits = np.zeros(VOCABULARY, np.float32)
        found.apply(logits)
        assert np.isinf(logits[[3, 49]]).all() == masked
        assert np.isinf(logits).sum() == (2 if masked else 0)
        found.push(1)


def test_penalties_grow_as_if_built_anew() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, VOCABULARY - 1, 400).tolist()
    wish = Sampling(repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.1)
    grown = Penalties.of(wish, tokens[:5], 5, frozenset())
    assert grown is not None
    logits = random_logits(1)[0]
    for i in range(5, 400):
        grown.push(tokens[i])
        if i % 50 == 0:
            anew = Penalties.of(wish, tokens[: i + 1], 5, frozenset())
            assert anew is not None
            one, other = logits.copy(), logits.copy()
            grown.apply(one)
            anew.apply(other)
            np.testing.assert_array_equal(one, other)


# Log-probabilities --------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = random_logits(3)
    sequences = [
        sequence([1], [2], temperature=0.0, logprobs=3, logit_bias={9: 90.0}),
        sequence([1], [2], temperature=0.0),
        sequence([1], [2], temperature=0.5, logprobs=0, seed=1),
    ]
    draws = Sampler(load_kernels("reference")).draw(logits.copy(), sequences)
    assert draws[0].token == 9 and draws[1].logprob is None
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    first, last = draws[0].logprob, draws[2].logprob
    assert first is not None and last is not None
    assert first.logprob == pytest.approx(exact[0, 9], abs=1e-5)
    best = np.argsort(-exact[0])[:3]
    assert [id for id, _ in first.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in first.top], exact[0][best], atol=1e-5)
    assert last.logprob == pytest.approx(exact[2, draws[2].token], abs=1e-5)
    assert last.top == ()


def test_more_logprobs_than_the_vocabulary_has_are_all_of_it() -> None:
    [found] = Sampler(load_kernels("reference")).draw(
        random_logits(1), [sequence([1], [], logprobs=1000)]
    )
    assert found.logprob is not None and len(found.logprob.top) == VOCABULARY


def test_prompt_logprobs_equal_whether_cut_or_cached() -> None:
    wish = Sampling(temperature=0.0, max_tokens=40, prompt_logprobs=2, ignore_eos=True)
    tokens = prompt(90)
    whole = run_one(toy_engine(step_seconds=10.0), tokens, wish)[0].prompt_logprobs
    assert len(whole) == 89
    model = Toy(load_kernels("reference"))
    cut = toy_engine(model=model, step_seconds=1e-9)
    assert run_one(cut, tokens, Sampling(max_tokens=1))[0].cached == 0
    again = run_one(cut, tokens, wish)
    assert again[0].cached == 0 and again[0].prompt_logprobs == whole
    assert all(output.prompt_logprobs == () for output in again[1:])


def test_prompt_logprobs_start_over_after_a_preemption() -> None:
    model = Toy(load_kernels("reference"), context=2048)
    tokens, wish = prompt(1160), Sampling(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    whole = run_one(toy_engine(model=model, blocks=45, step_seconds=10.0), tokens, wish)
    engine = toy_engine(model=model, blocks=45, step_seconds=1e-9)
    for i in range(3):  # they outgrow their blocks while the long prompt is computed
        engine.add(f"early{i}", prompt(31, i), Sampling(max_tokens=60, ignore_eos=True))
    engine.add("late", tokens, wish)
    [late] = finish_all(engine)["late"]
    names = [event.name for event in late.events]
    assert "prefill" in names[: names.index("preempted")]
    assert late.prompt_logprobs == whole[0].prompt_logprobs


def test_a_scored_prompt_is_cut_so_that_its_logits_stay_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mainspring.engine.engine.LOGIT_BYTES", 10 * 4 * 97)
    wish = Sampling(max_tokens=1, prompt_logprobs=0)
    [output] = run_one(toy_engine(step_seconds=10.0), prompt(25), wish)
    assert [e.tokens for e in output.events if e.name == "prefill"] == [10, 10, 5]
    assert len(output.prompt_logprobs) == 24


def test_a_replay_does_not_score_the_prompt_again() -> None:
    wish = Sampling(max_tokens=4, prompt_logprobs=0, ignore_eos=True)
    outputs = run_one(toy_engine(), prompt(25), wish, generated=[1])
    assert len(outputs) == 3 and not any(output.prompt_logprobs for output in outputs)


def test_a_prompt_of_one_token_has_no_logprobs() -> None:
    [output] = run_one(toy_engine(), [5], Sampling(max_tokens=1, prompt_logprobs=1))
    assert output.prompt_logprobs == ()
