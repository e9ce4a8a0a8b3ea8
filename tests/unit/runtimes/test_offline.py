"""`LLM`: a model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring import LLM
from mainspring.errors import BadRequest, ContextLength, ModelNotFound
from mainspring.types import Finish, Message, Sampling
from tests.faults.streams import NATIVE, request, runtime, tell
from tests.tiny import tiny_checkpoint

ISA = "auto" if NATIVE else "reference"
GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint, isa=ISA, threads=1, max_running=3) as made:
        yield made


def test_it_says_what_the_server_says(llm: LLM, checkpoint: Path) -> None:
    async def served() -> str:
        async with runtime(checkpoint) as one:
            return (await tell(one.run(request("the sea", sampling=GREEDY)))).texts[0]

    (result,) = llm.generate("the sea", GREEDY)
    assert result.text == asyncio.run(served())
    assert result.finish is Finish.LENGTH
    assert (result.usage.prompt, result.usage.output) == (7, 24)


def test_many_prompts_are_answered_in_order(llm: LLM) -> None:
    """More than run at once, and each as if it were alone."""
    prompts = [f"prompt {i}" for i in range(8)]
    results = llm.generate(prompts, GREEDY)
    assert [r.text for r in results] == [llm.generate(p, GREEDY)[0].text for p in prompts]
    drawn = Sampling(temperature=1.0, max_tokens=12, seed=5)
    assert llm.generate(prompts, drawn) == llm.generate(prompts, drawn)
    assert llm.generate([[64, 65]], GREEDY)[0].text == llm.generate("ab", GREEDY)[0].text


def test_streams_join_to_the_text(llm: LLM) -> None:
    assert "".join(llm.stream("the sea", GREEDY)) == llm.generate("the sea", GREEDY)[0].text
    turns = [{"role": "user", "content": "hi"}]
    assert "".join(llm.stream(turns, GREEDY)) == llm.chat(turns, GREEDY).text
    assert llm.chat([Message("user", "hi")], GREEDY) == llm.chat(turns, GREEDY)


def test_closing_a_stream_ends_the_work(llm: LLM) -> None:
    stream = llm.stream("x", Sampling(max_tokens=400, ignore_eos=True))
    next(stream)
    stream.close()
    assert llm.stats().running == llm.stats().blocks_used == 0


def test_stop_strings(llm: LLM) -> None:
    text = llm.generate("stop", GREEDY)[0].text
    (result,) = llm.generate("stop", GREEDY, stop=[text[5:8]])
    assert result.text == text[: text.index(text[5:8])]
    assert result.stop_reason == text[5:8] and result.finish is Finish.STOP
    assert llm.stats().running == 0


def test_it_works_where_a_loop_is_running(llm: LLM) -> None:
    async def notebook() -> str:
        return llm.chat([{"role": "user", "content": "hi"}], GREEDY).text

    assert asyncio.run(notebook())


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("x" * 600, "the context"),
        ([], "at least one"),
        ([1, 10**6], "vocabulary"),
        ([1, 2.5], "must be integers"),
    ],
)
def test_a_bad_prompt_is_named_before_any_is_computed(
    llm: LLM, bad: str | list[int], expected: str
) -> None:
    before = llm.stats().steps
    with pytest.raises(BadRequest, match=rf"prompts\[4\]: .*{expected}"):
        llm.generate(["a", "b", "c", "d", bad], GREEDY)
    assert llm.stats().steps == before


def test_mistakes(llm: LLM, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextLength):
        llm.generate("x" * 600)
    with pytest.raises(BadRequest, match="role"):
        llm.chat([{"content": "x"}])
    with pytest.raises(BadRequest, match="quantize"):
        LLM(checkpoint, quantize="int3")
    with pytest.raises(ModelNotFound):
        LLM("no-such-model")
    assert llm.stats().running == 0
