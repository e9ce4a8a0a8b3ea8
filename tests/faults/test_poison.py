"""One poisoned sequence fails by itself, with its typed error; its batch-mates notice nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine import weights
from mainspring.engine.draft import Draft
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.penalties import Penalties
from mainspring.engine.sequence import Output
from mainspring.errors import BadRequest, ContextLength
from mainspring.kernels import Kernels, load_kernels
from mainspring.runtimes.detokenizer import ByteDetokenizer
from mainspring.runtimes.stops import Stops
from mainspring.types import Finish, Sampling
from tests.faults.streams import request, runtime, same, tell, until
from tests.parity.rows import ROWS
from tests.soak.leaks import idle
from tests.unit.engine.toy import finish_all, run_one, tokens_of

POISON = 7
"""the token whose embedding holds no numbers"""
MATES = {
    "greedy": Sampling(temperature=0, max_tokens=30, logit_bias={POISON: -100}),
    "drawn": Sampling(seed=3, max_tokens=30, logprobs=2, logit_bias={POISON: -100}),
    "scored": Sampling(seed=4, max_tokens=30, prompt_logprobs=1, logit_bias={POISON: -100}),
}


def prompt(name: str) -> list[int]:
    tokens: list[int] = np.random.default_rng(len(name)).integers(8, 150, 40).tolist()
    return tokens


class Spoiled(weights.RandomTensors):
    """Random weights whose embedding of one token is no number."""

    value = np.nan

    def read(self, names: Any, shapes: Any) -> Any:
        values = super().read(names, shapes).astype(np.uint32) << 16
        numbers = values.view(np.float32).copy()
        if "embed_tokens" in names[0]:
            numbers[POISON] = self.value
        return numbers


def engine_of(model: Any, kernels: Kernels, **config: Any) -> Engine:
    return Engine(model, kernels, EngineConfig(**{"blocks": 16, "dtype": "float32", **config}))


def undisturbed(engine: Engine) -> dict[str, list[int]]:
    """What the mates say, together but among themselves."""
    for name, sampling in MATES.items():
        engine.add(name, prompt(name), sampling)
    return {name: tokens_of(outputs) for name, outputs in finish_all(engine).items()}


def beside(engine: Engine, poison: list[int], sampling: Sampling) -> tuple[Any, list[Output]]:
    """The mates' tokens and the poisoned sequence's Outputs; it comes in the middle."""
    for name, wishes in MATES.items():
        engine.add(name, prompt(name), wishes)
    first = [output for _ in range(5) for output in engine.step()]
    engine.add("poison", poison, sampling)
    outputs = finish_all(engine)
    for output in reversed(first):
        outputs.setdefault(output.id, []).insert(0, output)
    bad = outputs.pop("poison")
    assert engine.stats().blocks_used == 0
    return {name: tokens_of(found) for name, found in outputs.items()}, bad


@pytest.fixture
def model() -> tuple[Any, Kernels]:
    kernels = load_kernels("auto", 1)
    return weights.random_model(ROWS["llama"].config, kernels, "float32"), kernels


# In the Engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "gemma3_text", "mixtral", "gpt_oss", "deepseek_v2"]
)
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_no_numbers_stay_with_their_sequence(
    name: str, format: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the poison is in the middle of a long prompt, and in blocks used again."""
    monkeypatch.setattr(weights, "RandomTensors", Spoiled)
    monkeypatch.setattr(Spoiled, "value", value)
    kernels = load_kernels("auto", 1)
    config = {**ROWS[name].config, "tie_word_embeddings": False}
    engine = engine_of(weights.random_model(config, kernels, format), kernels)
    calm = undisturbed(engine)
    for scored in (None, 1):
        tokens = [*prompt("poison"), POISON, *prompt("more")]
        told, bad = beside(engine, tokens, Sampling(max_tokens=9, prompt_logprobs=scored))
        assert told == calm
        assert [output.error and output.error[0] for output in bad] == ["numerical_error"]


@pytest.mark.parametrize(
    "wishes",
    [
        {"top_k": 1 << 40},
        {"top_k": -5},
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"temperature": 1e-300},
        {"top_p": float("nan")},
        {"min_p": 7.0},
        {"logprobs": -3},
        {"logprobs": 1 << 40},
        {"prompt_logprobs": -3},
        {"prompt_logprobs": 1 << 40},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": 1e300},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {3: float("nan")}},
        {"logit_bias": {3: 1e300}},
        {"min_tokens": 1 << 70},
        {"max_tokens": 1 << 70},
        {"seed": 1 << 200},
    ],
    ids=str,
)
def test_absurd_wishes_are_their_own(wishes: Any, model: tuple[Any, Kernels]) -> None:
    """The dialects refuse them; a caller of the Engine itself may not have."""
    engine = engine_of(*model)
    calm = undisturbed(engine)
    try:
        told, bad = beside(engine, prompt("bad"), Sampling(**{"max_tokens": 9, **wishes}))
    except BadRequest as error:
        assert error.param in wishes
        outputs = finish_all(engine)
        assert set(outputs) == set(MATES) and engine.stats().blocks_used == 0
        return
    assert told == calm
    assert bad[-1].finish or bad[-1].error


@pytest.mark.parametrize("method", ["apply", "push"])
def test_an_exception_in_one_samplers_books_is_its_own(
    method: str, model: tuple[Any, Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(*model)
    calm = undisturbed(engine)
    sound = getattr(Penalties, method)

    def explode(penalties: Penalties, *rest: Any) -> None:
        if penalties._presence:
            raise ZeroDivisionError("a bug")
        sound(penalties, *rest)

    monkeypatch.setattr(Penalties, method, explode)
    told, bad = beside(engine, prompt("bad"), Sampling(presence_penalty=1.0, max_tokens=9))
    assert told == calm
    assert bad[-1].error and bad[-1].error[0] == "internal_error"


@pytest.mark.parametrize("method", ["guess", "push"])
def test_an_exception_in_one_sequences_guesses_ends_them_and_nothing_else(
    method: str, model: tuple[Any, Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(*model)
    calm = undisturbed(engine)
    wish = Sampling(temperature=0.5, seed=2, max_tokens=9)
    calm["bad"] = tokens_of(run_one(engine, prompt("bad"), wish))
    sound, failures = getattr(Draft, method), []

    def explode(draft: Draft, *rest: Any) -> Any:
        if draft._tokens[:40] == prompt("bad"):
            failures.append(draft)
            raise ZeroDivisionError("a bug")
        return sound(draft, *rest)

    monkeypatch.setattr(Draft, method, explode)
    told, bad = beside(engine, prompt("bad"), wish)
    assert {**told, "bad": tokens_of(bad)} == calm
    assert bad[-1].error is None and len(failures) == 1


def test_a_cache_that_is_too_small_refuses_one_and_changes_nobody(
    model: tuple[Any, Kernels],
) -> None:
    """A prompt that can never fit is refused; those that do not fit together wait and go on."""
    calm = undisturbed(engine_of(*model))
    engine = engine_of(*model, blocks=6)
    for id in ("greedy 1", "greedy 2"):  # each could fill the cache alone
        engine.add(id, prompt("a"), Sampling(temperature=0, ignore_eos=True))
    for name, sampling in MATES.items():
        engine.add(name, prompt(name), sampling)
    with pytest.raises(ContextLength, match="6 blocks of 32 hold 192"):
        engine.add("poison", prompt("a") * 5, Sampling())
    outputs = finish_all(engine)
    one, other = outputs.pop("greedy 1"), outputs.pop("greedy 2")
    assert tokens_of(one) == tokens_of(other) and one[-1].finish is Finish.LENGTH
    assert {name: tokens_of(found) for name, found in outputs.items()} == calm
    assert engine.stats().preemptions and not engine.stats().blocks_used


# In the server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [ByteDetokenizer, Stops])
def test_an_exception_in_one_text_is_its_own(
    part: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that it belongs to ends, its place and blocks are free, others go on."""
    sampling = Sampling(temperature=0.8, max_tokens=60, ignore_eos=True)
    good = [request(f"good {i}", sampling=sampling, stop=("zz",), n=2) for i in range(3)]
    sound, victims = part.feed, []

    def explode(self: Any, piece: Any) -> Any:
        victims.append(self)
        if self is victims[0] and victims.count(self) > 5:
            raise ZeroDivisionError("a bug")
        return sound(self, piece)

    async def main() -> None:
        async with runtime(checkpoint) as served:
            calm = [await tell(served.run(one)) for one in good]
            monkeypatch.setattr(part, "feed", explode)
            bad = asyncio.create_task(tell(served.run(request("bad", sampling=sampling))))
            await until(lambda: victims)
            told = await asyncio.gather(*(tell(served.run(one)) for one in good))
            with pytest.raises(ZeroDivisionError):
                await bad
            for ours, theirs in zip(told, calm, strict=True):
                same(ours, theirs)
            assert served._admission.taken == 0 and not served._supervisor.flights
            await until(lambda: idle(served))
            assert served.restarts == 0 and served.unhealthy() is None

    asyncio.run(main())
