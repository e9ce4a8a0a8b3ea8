"""A grammar changes nothing but its own text: not under guesses, preemption, replay or failure."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from mainspring.engine import weights
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.errors import GrammarError
from mainspring.kernels import Kernels, load_kernels
from mainspring.runtimes.compiler import OWN
from mainspring.runtimes.matcher import GrammarMatcher, Matchers
from mainspring.runtimes.protocol import Vocabulary
from mainspring.types import Finish, Grammar, Sampling
from tests.faults.streams import NATIVE, kill_after, request, runtime, same, tell, until
from tests.soak.leaks import idle
from tests.tiny import tiny_config
from tests.unit.engine.toy import finish_all, tokens_of

TOKENS = (*(bytes([byte]) for byte in range(256)), b"<|end|>", b"ab", b"ca", b"")
LINES = "start: LINE+\nLINE: /[abc]{3,40};/" + OWN
WISHES = {
    "greedy": Sampling(temperature=0, max_tokens=120),
    "drawn": Sampling(seed=3, max_tokens=120, logprobs=1),
    "counted": Sampling(seed=4, max_tokens=120, presence_penalty=0.5, min_tokens=60),
}


@pytest.fixture(scope="module")
def model() -> tuple[Any, Kernels]:
    kernels = load_kernels("auto" if NATIVE else "reference", 1)
    return weights.random_model(tiny_config(), kernels, "float32"), kernels


@pytest.fixture(scope="module")
def matchers() -> Matchers:
    return Matchers(Vocabulary(TOKENS, (256,), (256,)))


def engine_of(model: Any, kernels: Kernels, **config: Any) -> Engine:
    return Engine(model, kernels, EngineConfig(**{"blocks": 64, "dtype": "float32", **config}))


def told(engine: Engine, matchers: Matchers, **generated: list[int]) -> dict[str, list[int]]:
    """What each of WISHES says after what it said already, held to LINES; they share steps."""
    for id, wish in WISHES.items():
        prompt = list(b"abcabc;" * 3)
        said = generated.get(id, [])
        engine.add(id, prompt, wish, generated=said, matcher=matchers.make(LINES))
    engine.add("free", list(b"free"), Sampling(temperature=0, max_tokens=100, ignore_eos=True))
    outputs = finish_all(engine)
    assert engine.stats().blocks_used == 0
    return {id: generated.get(id, []) + tokens_of(found) for id, found in outputs.items()}


def test_guesses_preemption_and_replay_change_nothing(
    model: tuple[Any, Kernels], matchers: Matchers
) -> None:
    calm = told(engine_of(*model, speculation=False), matchers)
    for id in WISHES:
        text = b"".join(TOKENS[token] for token in calm[id] if token != 256).decode()
        assert re.fullmatch("([abc]{3,40};)*[abc]{0,40}", text) and len(calm[id]) > 20
    guessing = engine_of(*model)
    assert told(guessing, matchers) == calm
    assert guessing.stats().accepted_tokens > 0
    tight = engine_of(*model, blocks=9, prefix_cache=False)
    assert told(tight, matchers) == calm
    assert tight.stats().preemptions > 0
    half = {id: calm[id][: len(calm[id]) // 2] for id in WISHES}
    assert told(engine_of(*model), matchers, **half) == calm


class Broken(GrammarMatcher):
    """Follows its grammar for ten masks, and then breaks."""

    error: Exception = GrammarError("too complex")

    def mask(self) -> Any:
        self.masks = getattr(self, "masks", 0) + 1
        if self.masks > 10:
            raise self.error
        return super().mask()


@pytest.mark.parametrize("error", [GrammarError("too complex"), ZeroDivisionError("a bug")])
def test_a_matcher_that_breaks_ends_its_own_sequence(
    error: Exception, model: tuple[Any, Kernels], matchers: Matchers
) -> None:
    calm = told(engine_of(*model), matchers)
    engine = engine_of(*model)
    broken = Broken(matchers.make(LINES)._inner)
    broken.error = error
    engine.add("broken", list(b"x"), Sampling(max_tokens=50), matcher=broken)
    for id, wish in WISHES.items():
        engine.add(id, list(b"abcabc;" * 3), wish, matcher=matchers.make(LINES))
    outputs = finish_all(engine)
    code = "grammar_error" if isinstance(error, GrammarError) else "internal_error"
    last = outputs.pop("broken")[-1]
    assert last.error and last.error[0] == code
    assert {id: tokens_of(found) for id, found in outputs.items()} == {
        id: calm[id] for id in WISHES
    }
    assert engine.stats().blocks_used == 0


def test_a_grammar_that_grows_too_complex_fails_and_the_engine_goes_on(
    model: tuple[Any, Kernels], matchers: Matchers
) -> None:
    """An ambiguous grammar: what it takes to follow grows with the text, up to the limit."""
    engine = engine_of(*model)
    rules = " | ".join(f"x{i} a" for i in range(300))
    grammar = (
        "start: a\na: "
        + rules
        + ' | "a"\n'
        + "\n".join(f'x{i}: "a" | "a" "a" "a"' for i in range(300))
    )
    engine.add("deep", list(b"x"), Sampling(max_tokens=200), matcher=matchers.make(grammar + OWN))
    engine.add("mate", list(b"y"), Sampling(seed=1, max_tokens=60), matcher=matchers.make(LINES))
    outputs = finish_all(engine)
    last = outputs["deep"][-1]
    assert last.finish or (last.error and last.error[0] == "grammar_error")
    assert outputs["mate"][-1].finish


# In the server ------------------------------------------------------------------------------------


def test_a_worker_that_dies_continues_the_identical_text(checkpoint: Path) -> None:
    grammar = Grammar("regex", "([a-f]{2,9}[0-9],)*!")
    wish = Sampling(temperature=1.0, max_tokens=60)
    asked = request(grammar=grammar, n=3, sampling=wish)

    async def main() -> None:
        async with runtime(checkpoint) as served:
            calm = await tell(served.run(asked))
            replayed = await tell(served.run(asked), kill_after(served, (5, 40)))
            assert served.restarts == 2
            same(replayed, calm)
            for text, (finish, _) in zip(calm.texts.values(), calm.ends.values(), strict=True):
                whole = re.fullmatch("([a-f]{2,9}[0-9],)*!", text)
                assert whole if finish is Finish.STOP else len(text) == 60
            await until(lambda: idle(served))

    asyncio.run(main())


def test_a_client_that_leaves_while_its_grammar_is_built_leaves_nothing(checkpoint: Path) -> None:
    wide = "start: CHOICE\nCHOICE: " + " | ".join(f'"value {i}"' for i in range(3000))

    async def main() -> None:
        async with runtime(checkpoint) as served:
            await tell(served.run(request(grammar=Grammar("regex", "ab"))))
            for wait in (0.0, 0.02, 0.05, 0.1):
                asked = asyncio.create_task(
                    tell(served.run(request(grammar=Grammar("lark", wide + f' | "{wait}"'))))
                )
                await asyncio.sleep(wait)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            told = await tell(served.run(request(grammar=Grammar("regex", "ab"))))
            assert told.texts == {0: "ab"}
            await until(lambda: idle(served))
            assert served.restarts == 0

    asyncio.run(main())
