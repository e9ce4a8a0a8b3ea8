"""Whatever happens around a sequence, its tokens and every bit of its log-probabilities stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.penalties import Penalties
from mainspring.engine.sampler import Sampler
from mainspring.engine.sequence import Sequence
from mainspring.kernels import Array, Kernels, Weight
from mainspring.kernels.cpu import machine
from tests.soak.trials import ROUND, Models, Trials

CIRCUMSTANCES = (
    "preemptions",
    "replays",
    "aborts",
    "cached_tokens",
    "tokens from memory",
    "tokens from disk",
    "accepted_tokens",
    "int8 cache",
    "1 threads",
    "2 threads",
    "3 threads",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def hold(models: Models, seeds: range) -> Counter[str]:
    """Run these rounds; each kind of trouble must really have come.

    More rounds follow while one has not: on a busy disk, reading from it hardly ever pays.
    """
    tally: Counter[str] = Counter()
    for seed in range(seeds.start, seeds.stop + 2 * len(seeds)):
        if seed >= seeds.stop and all(tally[name] for name in CIRCUMSTANCES):
            break
        trials = Trials(models, seed)
        trials.run()
        assert trials.differences() == [], f"round {seed}"
        largest = max(tally["largest batch"], trials.tally["largest batch"])
        tally.update(trials.tally)
        tally["largest batch"] = largest
    print(dict(tally))
    assert all(tally[name] for name in CIRCUMSTANCES), tally
    assert tally["accepted_tokens"] < tally["draft_tokens"]
    return tally


def test_circumstances_change_nothing(models: Models) -> None:
    hold(models, range(15))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("isa", machine().isas)
def test_circumstances_change_nothing_in_ten_thousand_trials(isa: str, tmp_path: Path) -> None:
    """As many on each instruction set that this machine has, ten thousand together at least."""
    rounds = -(-10_000 // (ROUND * len(machine().isas)))
    first = 1000 * (1 + machine().isas.index(isa))
    hold(Models(tmp_path, isa), range(first, first + rounds))


# The trials can fail ------------------------------------------------------------------------------


def differs(trials: Trials) -> bool:
    trials.run()
    return bool(trials.differences())


class Leaning:
    """Kernels whose products lean on the number of rows: by the last bit of a number."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def linear(self, x: Array, weight: Weight) -> Array:
        y = self._kernels.linear(x, weight)
        return np.nextafter(y, np.float32(0)) if len(x) > 6 else y


def test_a_bit_that_depends_on_the_batch_is_seen(tmp_path: Path) -> None:
    models = Models(tmp_path, wrap=Leaning)
    assert differs(Trials(models, 0, name="llama3", format="float32"))


def test_guesses_that_stay_in_the_books_are_seen(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Penalties, "_pop", lambda penalties, token: None)
    assert any(differs(Trials(models, seed)) for seed in range(20))


def test_a_draw_that_depends_on_its_place_is_seen(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = Sampler._gather

    def leaning(sequences: list[Sequence]) -> tuple[Array, ...]:
        *rest, seeds, prompts = gather(sequences)
        return (*rest, seeds + np.arange(len(seeds), dtype=np.uint64), prompts)

    monkeypatch.setattr(Sampler, "_gather", staticmethod(leaning))
    assert differs(Trials(models, 0))
