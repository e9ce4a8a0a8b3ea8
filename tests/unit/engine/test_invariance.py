"""Invariant 4: whatever happens around a sequence, its tokens are those of `reference.generate`."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from mainspring.engine.draft import Draft
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.reference import generate
from mainspring.engine.weights import load_model
from mainspring.kernels import Format, Kernels, KvFormat, load_kernels
from mainspring.types import Finish, Sampling, Thinking
from tests.tiny import tiny_checkpoint
from tests.unit.engine.toy import EOS, VOCABULARY, Clock, Toy

CONTEXT = 160


def random_sampling(rng: random.Random) -> Sampling:
    def maybe(chance: float, value: Any, default: Any) -> Any:
        return value if rng.random() < chance else default

    return Sampling(
        temperature=maybe(0.6, rng.choice([0.3, 0.8, 1.0, 1.7]), 0.0),
        top_k=maybe(0.3, rng.choice([1, 3, 20, 500]), 0),
        top_p=maybe(0.3, rng.uniform(0.2, 1.0), 1.0),
        min_p=maybe(0.2, rng.uniform(0.0, 0.3), 0.0),
        repetition_penalty=maybe(0.3, rng.uniform(0.7, 1.6), 1.0),
        presence_penalty=maybe(0.3, rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(0.3, rng.uniform(-2, 2), 0.0),
        logit_bias=maybe(0.3, {rng.randrange(VOCABULARY): rng.uniform(-20, 8)}, {}),
        seed=rng.choice([0, 1, -5, 2**63 + 11, rng.getrandbits(64)]),
        max_tokens=maybe(0.8, rng.randint(1, 50), None),
        min_tokens=maybe(0.3, rng.randint(1, 30), 0),
        stop_token_ids=maybe(0.3, (rng.randrange(VOCABULARY),), ()),
        ignore_eos=rng.random() < 0.4,
        logprobs=maybe(0.2, rng.randint(0, 3), None),
        prompt_logprobs=maybe(0.1, rng.randint(0, 3), None),
        thinking=maybe(0.2, random_thinking(rng), None),
    )


def random_thinking(rng: random.Random) -> Thinking:
    begin = rng.choice([None, rng.randrange(VOCABULARY)])
    return Thinking(rng.randint(0, 15), rng.randrange(EOS), begin)


@dataclass
class Asked:
    """A request as its client sees it, over any number of Engines."""

    prompt: list[int]
    sampling: Sampling
    salt: bytes
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


class Storm:
    """One Engine under random arrivals, aborts and crashes, its pool and budget far too small."""

    def __init__(
        self,
        kernels: Kernels,
        seed: int,
        model: Any = None,
        dtype: KvFormat = "float32",
        draft: Any = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.kernels = kernels
        self.dtype = dtype
        self.model = model or Toy(kernels, context=CONTEXT, seed=seed)
        self.draft = draft
        self.prefixes = [
            [self.rng.randrange(EOS) for _ in range(self.rng.randint(1, 120))] for _ in range(3)
        ]
        self.asked: dict[str, Asked] = {}
        self.ids = itertools.count()
        self.preemptions = self.replays = self.aborts = self.guesses = self.accepted = 0
        self.answers: dict[str, list[int]] = {}
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        rng = self.rng
        config = EngineConfig(
            blocks=rng.randint(-(-CONTEXT // 32), 14),
            max_running=rng.choice([2, 5, 16]),
            step_seconds=rng.choice([1e-9, 0.02, 0.1]),
            prefix_cache=rng.random() < 0.8,
            speculation=rng.random() < 0.9,
            dtype=self.dtype,
        )
        clock: Any = time.monotonic
        if isinstance(self.model, Toy):
            self.model.clock = clock = Clock()
            self.model.step_seconds = rng.choice([0.0, 0.05])
            if isinstance(self.draft, Toy):
                self.draft.clock, self.draft.row_seconds = clock, 1e-5
        return Engine(self.model, self.kernels, config, clock, self.draft)

    def answer(self, asked: Asked) -> list[int]:
        key = repr((asked.prompt, asked.sampling))
        if key not in self.answers:
            self.answers[key] = generate(
                self.model, self.kernels, asked.prompt, asked.sampling, dtype=self.dtype
            )
        return self.answers[key]

    def count(self) -> None:
        stats = self.engine.stats()
        self.preemptions += stats.preemptions
        self.guesses += stats.draft_tokens
        self.accepted += stats.accepted_tokens

    def arrive(self) -> None:
        rng = self.rng
        prompt = rng.choice(self.prefixes)[: rng.randint(1, 120)]
        prompt += [rng.randrange(EOS) for _ in range(rng.randint(0, 30))]
        sampling, salt = random_sampling(rng), rng.choice([b"", b"a"])
        for _ in range(rng.choice([1, 1, 1, 3])):
            id = f"s{next(self.ids)}"
            self.asked[id] = Asked(prompt, sampling, salt)
            self.engine.add(id, prompt, sampling, salt=salt)

    def abort(self) -> None:
        if running := [id for id, a in self.asked.items() if a.finish is None]:
            id = self.rng.choice(running)
            assert self.engine.abort(id) and not self.engine.abort(id)
            del self.asked[id]
            self.aborts += 1

    def crash(self) -> None:
        """A new Engine is given what was already emitted."""
        self.count()
        self.engine = self.new_engine()
        for id, asked in self.asked.items():
            if asked.finish is None:
                self.engine.add(
                    id, asked.prompt, asked.sampling, salt=asked.salt, generated=asked.tokens
                )
        self.replays += 1

    def step(self) -> None:
        for output in self.engine.step():
            asked = self.asked[output.id]
            assert output.error is None and asked.finish is None
            if asked.sampling.logprobs is not None:
                assert len(output.logprobs) == len(output.tokens)
            if asked.sampling.prompt_logprobs is not None and not asked.tokens:
                assert len(output.prompt_logprobs) == len(asked.prompt) - 1
            assert len(output.times) == len(output.tokens)
            asked.tokens += output.tokens
            asked.finish = output.finish

    def rage(self, steps: int) -> None:
        for _ in range(steps):
            chance = self.rng.random()
            if chance < 0.12:
                self.arrive()
            elif chance < 0.18:
                self.abort()
            elif chance < 0.20:
                self.crash()
            self.step()
        while self.engine.has_work:
            self.step()
        self.count()
        assert self.engine.stats().blocks_used == 0

    def compare(self) -> None:
        for asked in self.asked.values():
            assert asked.tokens == self.answer(asked), (asked.prompt, asked.sampling)
            assert asked.finish is expected_finish(asked, self.model.shape.eos)


def expected_finish(asked: Asked, eos: tuple[int, ...]) -> Finish:
    sampling, output = asked.sampling, asked.tokens
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos)}
    return (
        Finish.STOP
        if output[-1] in stops and len(output) > sampling.min_tokens
        else (Finish.LENGTH)
    )


def storm(kernels: Kernels, seeds: range, steps: int) -> None:
    """Each kind of trouble must really have come."""
    storms = [Storm(kernels, seed) for seed in seeds]
    for weather in storms:
        weather.rage(steps)
        weather.compare()
    assert sum(weather.preemptions for weather in storms)
    assert sum(weather.replays for weather in storms)
    assert sum(weather.aborts for weather in storms)
    assert 0 < sum(weather.accepted for weather in storms) < sum(w.guesses for w in storms)


def native() -> Kernels:
    try:
        return load_kernels("auto", threads=1)
    except ImportError:
        pytest.skip("the native kernels are not built")


def test_reference_kernels() -> None:
    storm(load_kernels("reference"), range(4), 120)


def test_native_kernels() -> None:
    storm(native(), range(100, 110), 200)


@pytest.mark.parametrize("format", ["float32", "bf16", "int8", "int4"])
def test_a_real_checkpoint(format: Format, tmp_path: Path) -> None:
    kernels = native()
    path = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=CONTEXT)
    model = load_model(path, kernels, format=format)
    for dtype in get_args(KvFormat):
        weather = Storm(kernels, 5, model, dtype)
        weather.rage(60)
        weather.compare()


def know_the_future(weather: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses of any number, most of them right and any of them wrong."""

    def guess(draft: Draft, most: int, share: float) -> list[int]:
        tokens, rng = draft._tokens, weather.rng
        for asked in weather.asked.values():
            whole = asked.prompt + weather.answer(asked)
            if asked.finish is None and whole[: len(tokens)] == tokens:
                break
        rest = whole[len(tokens) :] + [rng.randrange(VOCABULARY) for _ in range(15)]
        guesses = rest[: min(most, rng.choice([0, 1, 4, 15]))]
        return [rng.randrange(VOCABULARY) if rng.random() < 0.1 else g for g in guesses]

    monkeypatch.setattr(Draft, "guess", guess)


def test_guesses_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    storms = [Storm(native(), seed) for seed in range(300, 306)]
    for weather in storms:
        know_the_future(weather, monkeypatch)
        weather.rage(150)
        weather.compare()
    assert sum(weather.preemptions for weather in storms)
    assert sum(weather.accepted for weather in storms) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reference_kernels_at_length() -> None:
    storm(load_kernels("reference"), range(1000, 1060), 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_native_kernels_at_length() -> None:
    storm(native(), range(2000, 2200), 600)
