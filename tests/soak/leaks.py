"""What a server and its Worker hold, sampled while idle, and whether it grows with requests."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import threading
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from mainspring.errors import MainspringError
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Message, Request, Sampling, Task
from tests.faults.streams import request, until

__all__ = ["Sample", "growth", "sample", "traffic"]


class Sample(NamedTuple):
    requests: int
    server: int
    """bytes of private memory, swapped out or not"""
    worker: int
    files: int
    tasks: int
    threads: int


async def sample(served: LLMRuntime, requests: int) -> Sample:
    """Once the runtime is idle."""
    await until(lambda: idle(served))
    assert not served._supervisor.flights and served._admission.taken == 0
    await ask(served, CHAT, None)  # a client that left may have taken the sandbox with it
    await until(lambda: idle(served))
    gc.collect()
    assert served.worker
    return Sample(
        requests,
        private(os.getpid()),
        private(served.worker),
        open_files(),
        len(asyncio.all_tasks()),
        threading.active_count(),
    )


def growth(samples: list[Sample], field: str) -> float:
    """Bytes a request: the median of the slopes between all pairs of samples (Theil 1950)."""
    points = [(s.requests, getattr(s, field)) for s in samples]
    return statistics.median((b - a) / (m - n) for (n, a), (m, b) in combinations(points, 2))


async def traffic(served: LLMRuntime, rng: random.Random, count: int) -> None:
    """`count` requests of all kinds, eight at a time; a third of the clients leave early."""
    left = count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            leaves = rng.choice((None, None, 0, 1, rng.randrange(2, 20), "at once"))
            await ask(served, mixed(rng), leaves)

    await asyncio.gather(*(client() for _ in range(8)))


async def ask(served: LLMRuntime, asked: Request, leaves: int | str | None) -> None:
    """Read an answer, or leave after so many Chunks or before the first one."""

    async def read() -> None:
        chunks, seen = served.run(asked), 0
        try:
            async for _ in chunks:
                seen += 1
                if seen == leaves:
                    break
        except MainspringError:
            pass
        finally:
            await chunks.aclose()

    reading = asyncio.create_task(read())
    if leaves == "at once":
        await asyncio.sleep(0.001)
        reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    if not reading.cancelled() and (error := reading.exception()):
        raise error


def mixed(rng: random.Random) -> Request:
    words = "".join(rng.choices("abcdefgh ", k=rng.choice((1, 20, 150, 600))))
    sampling = Sampling(
        temperature=rng.choice((0.0, 1.0)),
        max_tokens=rng.randrange(1, 30),
        logprobs=rng.choice((None, None, 3)),
        prompt_logprobs=rng.choice((None, None, None, 1)),
        presence_penalty=rng.choice((0.0, 0.5)),
        logit_bias=rng.choice(({}, {65: 5.0})),
    )
    more = {
        "sampling": sampling,
        "n": rng.choice((1, 1, 3)),
        "stop": rng.choice(((), ("a", "zz"))),
        "tenant": rng.choice(("", "a", "b")),
        "timeline": rng.random() < 0.3,
        "seed": None,
    }
    if rng.random() < 0.5:
        return request("a beginning that many share " + words, echo=rng.random() < 0.3, **more)
    messages = (Message("system", "be brief"), Message("user", words))
    return request(task=Task.CHAT, prompts=(), messages=messages, **more)


CHAT = request(
    task=Task.CHAT,
    prompts=(),
    messages=(Message("user", "hi"),),
    sampling=Sampling(temperature=0, max_tokens=2),
)


def idle(served: LLMRuntime) -> bool:
    stats = served.stats()
    return stats.running == stats.waiting == stats.blocks_used == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def private(pid: int) -> int:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "VmSwap"))
