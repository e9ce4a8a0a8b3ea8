"""Running requests against an LLMRuntime, and breaking its Worker at chosen moments."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from mainspring.config import ModelConfig
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Chunk, Request, Sampling, Task, Token, Usage

NATIVE = importlib.util.find_spec("mainspring.kernels._native") is not None


class Told(msgspec.Struct):
    """All that a client saw of one request."""

    texts: dict[int, str] = {}
    tokens: dict[int, tuple[Token, ...]] = {}
    ends: dict[int, Any] = {}
    usage: Usage | None = None
    last: Chunk | None = None


def settings(**changes: Any) -> ModelConfig:
    isa = "auto" if NATIVE else "reference"
    return ModelConfig(**{"isa": isa, "threads": 1, "max_running": 16, **changes})


@asynccontextmanager
async def runtime(
    path: Path, config: ModelConfig | None = None, **more: Any
) -> AsyncIterator[LLMRuntime]:
    served = LLMRuntime("tiny", path, config or settings(), **more)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


def request(prompt: str | tuple[int, ...] = "once upon a time", **changes: Any) -> Request:
    sampling = changes.pop("sampling", None) or Sampling(temperature=0, max_tokens=40)
    fields: dict[str, Any] = {
        "id": "r",
        "task": Task.COMPLETE,
        "model": "tiny",
        "arrival": time.monotonic(),
        "prompts": (prompt,),
        "sampling": sampling,
        "seed": 7,
        **changes,
    }
    return Request(**fields)


async def tell(
    chunks: AsyncGenerator[Chunk, None], each: Callable[[], None] = lambda: None
) -> Told:
    """Read an answer to its end, calling `each` after every Chunk."""
    told = Told(texts={}, tokens={}, ends={})
    async for chunk in chunks:
        assert told.last is None, "a Chunk after the last"
        if chunk.usage is not None:
            told.usage, told.last = chunk.usage, chunk
        else:
            assert chunk.index not in told.ends, "a Chunk after its choice has ended"
            told.texts[chunk.index] = told.texts.get(chunk.index, "") + chunk.text
            told.tokens[chunk.index] = told.tokens.get(chunk.index, ()) + chunk.tokens
            if chunk.finish:
                told.ends[chunk.index] = (chunk.finish, chunk.stop_reason)
        each()
    assert told.last is not None
    return told


async def tell_all(
    served: LLMRuntime, requests: Sequence[Request], each: Callable[[], None] = lambda: None
) -> list[Told]:
    return list(await asyncio.gather(*(tell(served.run(one), each) for one in requests)))


def kill_after(
    served: LLMRuntime, counts: Sequence[int], how: int = signal.SIGKILL
) -> Callable[[], None]:
    """A callback that signals the Worker at these numbers of calls.

    Once for each: where the one before is not noticed yet, or there is no Worker, at a later call.
    """
    seen = signalled = 0
    before = served.restarts

    def each() -> None:
        nonlocal seen, signalled
        seen += 1
        due = sum(count <= seen for count in counts)
        if signalled < due and served.worker is not None and served.restarts - before == signalled:
            signalled += 1
            os.kill(served.worker, how)

    return each


def same(ours: Told, theirs: Told) -> None:
    """What two clients saw is the same, but for the cache and the times."""
    assert ours.texts == theirs.texts
    assert ours.tokens == theirs.tokens
    assert ours.ends == theirs.ends
    assert ours.usage and theirs.usage
    assert msgspec.structs.replace(ours.usage, cached=0) == msgspec.structs.replace(
        theirs.usage, cached=0
    )


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)
