"""The runtime of language models, over a real Worker with a tiny random model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mainspring.config import ModelConfig
from mainspring.engine.weights import prepare_model
from mainspring.errors import (
    BadRequest,
    ContextLength,
    InsufficientMemory,
    MainspringError,
    ModelError,
    Overloaded,
    Unavailable,
)
from mainspring.kernels import load_kernels
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Chunk, Finish, Message, Sampling, Task
from tests.faults.streams import request, runtime, settings, tell, tell_all, until
from tests.tiny import tiny_checkpoint

GREEDY = Sampling(temperature=0, max_tokens=20, ignore_eos=True)
LONG = Sampling(temperature=0, max_tokens=480, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("llm"))


def serving(checkpoint: Path, test: Callable[[LLMRuntime], Awaitable[None]], **more: Any) -> None:
    config, run = more.pop("config", None), more.pop("run", asyncio.run)

    async def main() -> None:
        async with runtime(checkpoint, config, **more) as served:
            await test(served)

    run(main())


async def error_of(chunks: AsyncGenerator[Chunk, None]) -> MainspringError:
    with pytest.raises(MainspringError) as raised:
        await tell(chunks)
    return raised.value


def idle(served: LLMRuntime) -> bool:
    stats = served.stats()
    return stats.running == stats.waiting == stats.blocks_used == 0


# Answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_answers(checkpoint: Path, run: Callable[..., None]) -> None:
    """One runtime, many requests; each block is one property of the answer."""

    async def test(served: LLMRuntime) -> None:
        alone = await tell(served.run(request("a", sampling=GREEDY)))
        assert alone.usage and (alone.usage.prompt, alone.usage.output) == (1, 20)
        assert alone.ends == {0: (Finish.LENGTH, None)}

        # Token ids are the same prompt as their text.
        ids = await tell(served.run(request((64,), sampling=GREEDY)))
        assert ids.texts == alone.texts

        # Choices are numbered prompt * n + i, whatever their order of arrival.
        both = request(sampling=GREEDY, n=2)
        both = _with_prompts(both, "a", "b")
        many = await tell(served.run(both))
        assert sorted(many.texts) == [0, 1, 2, 3]
        assert many.texts[0] == many.texts[1] == alone.texts[0] != many.texts[2] == many.texts[3]
        assert many.usage and (many.usage.prompt, many.usage.output) == (2, 80)

        # The prompt's text comes first.
        echo = await tell(served.run(request("a", sampling=GREEDY, echo=True)))
        assert echo.texts[0] == "a" + alone.texts[0]

        # Seeds: given ones repeat and differ by choice, absent ones are random.
        drawn = Sampling(temperature=1.0, max_tokens=20, ignore_eos=True)
        one, again, other, fresh, fresh_too = await tell_all(
            served,
            [
                request("a", sampling=drawn, n=2, seed=3),
                request("a", sampling=drawn, n=2, seed=3),
                request("a", sampling=drawn, seed=4),
                request("a", sampling=drawn, seed=None),
                request("a", sampling=drawn, seed=None),
            ],
        )
        assert one.texts == again.texts and one.texts[0] != one.texts[1]
        assert other.texts[0] == one.texts[1]
        assert fresh.texts != fresh_too.texts

        await _logprobs(served, alone.texts[0])
        await _stops(served)
        await until(lambda: idle(served))

    serving(checkpoint, test, run=run)


def _with_prompts(one: Any, *prompts: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(one, prompts=prompts)


async def _logprobs(served: LLMRuntime, text: str) -> None:
    scored = Sampling(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    told = await tell(served.run(request("abc", sampling=scored)))
    assert len(told.tokens[0]) == 20
    data = b"".join(token.data for token in told.tokens[0])
    assert data.decode(errors="replace") == told.texts[0]
    assert all(len(token.top) == 2 and token.top[0].id == token.id for token in told.tokens[0])
    first = await anext(chunks := served.run(request("abc", sampling=scored)))
    await chunks.aclose()
    assert [token.text for token in first.prompt_tokens] == ["a", "b", "c"]
    assert [token.logprob is None for token in first.prompt_tokens] == [True, False, False]


async def _stops(served: LLMRuntime) -> None:
    whole = await tell(served.run(request("stop here", sampling=GREEDY)))
    text = whole.texts[0]
    string = text[6:9]
    scored = Sampling(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
    stopped = await tell(served.run(request("stop here", sampling=scored, stop=("zzz", string))))
    assert stopped.texts[0] == text[: text.index(string)]
    assert stopped.ends[0] == (Finish.STOP, string)
    assert stopped.usage and stopped.usage.output < 20
    told = b"".join(token.data for token in stopped.tokens[0]).decode(errors="replace")
    assert told.startswith(stopped.texts[0]) and len(told) <= text.index(string) + len(string)
    # No stop counts before min_tokens.
    late = Sampling(temperature=0, max_tokens=20, min_tokens=20, ignore_eos=True)
    kept = await tell(served.run(request("stop here", sampling=late, stop=(string,))))
    assert kept.texts == whole.texts and kept.ends[0] == (Finish.LENGTH, None)
    # A stop token ends a choice without being part of its text.
    (last,) = {token.id for token in stopped.tokens[0][-1:]}
    by_id = Sampling(temperature=0, max_tokens=20, stop_token_ids=(last,), ignore_eos=True)
    ended = await tell(served.run(request("stop here", sampling=by_id)))
    assert ended.ends[0] == (Finish.STOP, last) and text.startswith(ended.texts[0])


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_chat(checkpoint: Path, run: Callable[..., None]) -> None:
    async def test(served: LLMRuntime) -> None:
        def chat(content: str, **more: Any) -> Any:
            messages = (Message("user", content),)
            return request(task=Task.CHAT, prompts=(), messages=messages, sampling=GREEDY, **more)

        told = await tell(served.run(chat("hi", timeline=True)))
        assert told.usage and told.usage.prompt == 5  # <|user|> h i <|end|> <|assistant|>
        assert told.last and told.last.timings
        timings, (timeline,) = told.last.timings, told.last.timelines
        parts = timings.tokenize + timings.queue + timings.prefill + timings.decode
        assert abs(parts - timings.total) < 1e-6 and timings.first_token < timings.total
        names = [event.name for event in timeline.events]
        assert names == ["arrival", "tokenized", "queued", "admitted", "prefill", "finished"]
        # A special token in a message is six characters, not one token.
        forged = await tell(served.run(chat("<|end|>")))
        assert forged.usage and forged.usage.prompt == 3 + len("<|end|>")
        error = await error_of(served.run(chat("hi", template_variables={"x": 1})))
        assert isinstance(error, BadRequest) and error.param == "chat_template_kwargs"

    serving(checkpoint, test, run=run)


def test_the_checkpoints_own_sampling_fills_what_the_client_left_out(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "calm")
    says = {"eos_token_id": 256, "do_sample": False}
    (checkpoint / "generation_config.json").write_text(json.dumps(says))

    async def test(served: LLMRuntime) -> None:
        warm = Sampling(temperature=1.0, max_tokens=20, ignore_eos=True)
        greedy = await tell(served.run(request(sampling=GREEDY)))
        unsaid = await tell(served.run(request(sampling=warm, seed=1)))
        chosen = frozenset({"temperature"})
        said = await tell(served.run(request(sampling=warm, seed=1, chosen=chosen)))
        assert unsaid.texts == greedy.texts != said.texts

    serving(checkpoint, test)


def test_template_variables_where_they_are_allowed(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ tone }}")

    async def test(served: LLMRuntime) -> None:
        def chat(**variables: Any) -> Any:
            return request(
                task=Task.CHAT,
                prompts=(),
                messages=(Message("user", "hi"),),
                sampling=GREEDY,
                template_variables=variables,
            )

        told = await tell(served.run(chat(tone="loud")))
        assert told.usage and told.usage.prompt == 6
        for name in ("messages", "chat_template"):
            error = await error_of(served.run(chat(**{name: "x"})))
            assert isinstance(error, BadRequest) and name in error.message

    serving(path, test, template_variables=True)


# Refusals -----------------------------------------------------------------------------------------


def test_refusals(checkpoint: Path) -> None:
    async def test(served: LLMRuntime) -> None:
        async def refused(prompt: Any, sampling: Sampling = GREEDY, **more: Any) -> Any:
            return await error_of(served.run(request(prompt, sampling=sampling, **more)))

        error = await refused("x" * 600)
        assert isinstance(error, ContextLength) and error.param == "prompt"
        assert "600" in error.message and "512" in error.message
        error = await refused("x" * 500)
        assert isinstance(error, ContextLength) and error.param == "max_tokens"
        assert "at most 12" in error.message
        await tell(served.run(request("x" * 511, sampling=Sampling(max_tokens=1))))
        assert isinstance(await refused("x" * 512, Sampling(max_tokens=1)), ContextLength)
        assert (await refused("")).param == "prompt"
        assert (await refused(())).param == "prompt"
        for ids in ((260,), (-1,), (1, 1 << 40)):
            error = await refused(ids)
            assert isinstance(error, BadRequest) and "vocabulary" in error.message
        error = await refused("a", Sampling(logit_bias={999: 1.0}))
        assert isinstance(error, BadRequest) and error.param == "logit_bias"
        assert (await refused("a", n=1000)).param == "n"

        began = time.monotonic()
        error = await refused("x" * 10_000_000)
        assert isinstance(error, ContextLength) and "bytes" in error.message
        chat = request(task=Task.CHAT, prompts=(), messages=(Message("user", "x" * 600),))
        error = await error_of(served.run(chat))
        assert isinstance(error, ContextLength) and error.param == "messages"
        assert time.monotonic() - began < 1.0
        await until(lambda: idle(served))
        assert served._admission.taken == 0

    serving(checkpoint, test)


def test_one_request_too_many_is_told_when_to_come_back(checkpoint: Path) -> None:
    async def test(served: LLMRuntime) -> None:
        await tell(served.run(request(sampling=GREEDY)))
        running = [asyncio.create_task(tell(served.run(request(sampling=LONG)))) for _ in range(3)]
        await until(lambda: served.stats().running == 2)
        error = await error_of(served.run(request(sampling=GREEDY)))
        assert isinstance(error, Overloaded) and 1.0 <= error.retry_after <= 3600.0
        # Each choice takes a place; what never fits is no overload.
        assert isinstance(await error_of(served.run(request(n=3))), Overloaded)
        error = await error_of(served.run(request(n=4)))
        assert isinstance(error, BadRequest) and "4 choices" in error.message
        told = await asyncio.gather(*running)
        assert len({one.texts[0] for one in told}) == 1
        await tell(served.run(request(sampling=GREEDY, n=3)))

    serving(checkpoint, test, config=settings(max_running=2, max_queue=1))


# Cancelling ---------------------------------------------------------------------------------------


def test_closing_cancels_wherever_the_request_is(checkpoint: Path) -> None:
    async def test(served: LLMRuntime) -> None:
        before = served.stats().steps

        # Not begun.
        await served.run(request(sampling=LONG)).aclose()
        # While it is tokenized or waits for its first Chunk.
        for wait in (0.0, 0.001, 0.003, 0.01):
            task = asyncio.create_task(tell(served.run(request("x" * 400, sampling=LONG))))
            await asyncio.sleep(wait)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        # While it decodes, with others beside it.
        others = asyncio.create_task(tell(served.run(request(sampling=GREEDY, n=2))))
        chunks = served.run(request(sampling=LONG, n=3))
        for _ in range(7):
            await anext(chunks)
        await chunks.aclose()
        await others
        # While it queues behind others.
        first = served.run(request(sampling=LONG, n=4))
        await anext(first)
        queued = asyncio.create_task(tell(served.run(request(sampling=LONG))))
        await until(lambda: served.stats().waiting)
        queued.cancel()
        await until(lambda: not served.stats().waiting)
        await first.aclose()

        await until(lambda: idle(served))
        steps = served.stats().steps
        assert steps > before
        await asyncio.sleep(0.1)
        assert served.stats().steps == steps, "the Engine still works for nobody"
        assert served._admission.taken == 0 and not served._supervisor.flights

    serving(checkpoint, test, config=settings(max_running=4))


def test_a_stop_string_ends_the_work_in_the_worker(checkpoint: Path) -> None:
    async def test(served: LLMRuntime) -> None:
        whole = await tell(served.run(request(sampling=LONG)))
        before = served.stats().output_tokens
        string = whole.texts[0][10:14]
        asked = request(sampling=LONG, stop=(string,), timeline=True)
        told = await tell(served.run(asked))
        await until(lambda: idle(served))
        assert served.stats().output_tokens - before < 200
        assert told.usage and told.usage.output < 40
        assert told.last and told.last.timelines[0].events[-1].name == "finished"

    serving(checkpoint, test)


# Loading ------------------------------------------------------------------------------------------


def start_error(path: Path, config: ModelConfig | None = None) -> MainspringError:
    async def main() -> MainspringError:
        served = LLMRuntime("tiny", path, config or settings())
        with pytest.raises(MainspringError) as raised:
            await served.start()
        assert served.worker is None and served.unhealthy()
        with pytest.raises(Unavailable):
            await tell(served.run(request()))
        return raised.value

    return asyncio.run(main())


def test_a_checkpoint_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "a")
    (path / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in start_error(path).message
    (path / "tokenizer.model").write_bytes(b"x")
    assert "save_pretrained" in start_error(path).message
    (path / "tokenizer.json").write_text("{}")
    assert isinstance(start_error(path), ModelError)

    path = tiny_checkpoint(tmp_path / "b", vocab_size=258)
    assert "vocab_size 258" in start_error(path).message
    path = tiny_checkpoint(tmp_path / "c")
    (path / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}')
    assert "line 1" in start_error(path).message
    path = tiny_checkpoint(tmp_path / "d")
    (path / "model.safetensors").unlink()
    error = start_error(path)
    assert isinstance(error, ModelError) and str(tmp_path) not in error.message


def test_memory_is_checked_before_loading(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    error = start_error(path, settings(kv_memory=1 << 50))
    assert isinstance(error, InsufficientMemory)
    assert error.message.startswith("needs 1048576.0 GiB") and "--kv-memory" in error.message


def test_start_is_fast_and_small(checkpoint: Path) -> None:
    """The figures of the tiny model; the bounds leave room for a busy machine."""

    async def test(served: LLMRuntime) -> None:
        await tell(served.run(request(sampling=GREEDY)))
        template = served._template and served._template.pid
        sizes = {name: pss(pid) for name, pid in (("worker", served.worker), ("sandbox", template))}
        print({name: f"{size >> 20} MiB" for name, size in sizes.items()})
        assert sizes["worker"] < 90 << 20 and sizes["sandbox"] < 30 << 20

    began = time.monotonic()
    serving(checkpoint, test)
    assert time.monotonic() - began < 5.0


def pss(pid: int | None) -> int:
    """Bytes of memory, shared pages divided among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def test_a_prepared_model_is_read_and_a_stale_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_checkpoint(tmp_path / "tiny")

    async def text() -> tuple[dict[int, str], str]:
        caplog.clear()
        with caplog.at_level("INFO", "mainspring"):
            async with runtime(path, settings(isa="auto")) as served:
                told = await tell(served.run(request(sampling=GREEDY)))
        return told.texts, caplog.text

    expected, plain = asyncio.run(text())
    assert "prepared" not in plain
    prepare_model(path, load_kernels(), format="bf16")
    assert (found := asyncio.run(text())) == (expected, found[1])
    assert "read the prepared file of tiny" in found[1]
    (path / "config.json").write_bytes((path / "config.json").read_bytes())
    assert (found := asyncio.run(text())) == (expected, found[1])
    assert "because config.json is not the one that it was made of; `mainspring pre" in found[1]
