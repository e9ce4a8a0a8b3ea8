"""Streams over HTTP while their Worker is killed: no client can tell, as far as the text goes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.soak.mixed import Served, serving
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
APART_SECONDS = 1.2
"""between a round's two kills at most: the second may find a Worker that loads, replays or idles"""
SERVING_SECONDS = 5.0
STANDSTILL_SECONDS = 0.5
PROBE = {"model": "tiny", "prompt": "hello", "max_tokens": 1}


class Told:
    """All that a client saw of one stream, but for its id, its times and the cache."""

    def __init__(self) -> None:
        self.choices: dict[int, list[Any]] = {}
        self.usage: tuple[int, int] | None = None

    def take(self, event: dict[str, Any]) -> None:
        assert "error" not in event, event
        for choice in event["choices"]:
            told = self.choices.setdefault(choice["index"], ["", [], None])
            assert told[2] is None, "a piece after the end"
            logprobs = choice["logprobs"] or {"tokens": [], "token_logprobs": []}
            told[0] += choice["text"]
            told[1] += zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
            told[2] = choice["finish_reason"]
        if usage := event.get("usage"):
            self.usage = (usage["prompt_tokens"], usage["completion_tokens"])


async def ask(
    client: httpx.AsyncClient, body: dict[str, Any], each: Callable[[], None] = lambda: None
) -> Told:
    """Read a stream to its end, calling `each` after every piece."""
    told, last = Told(), ""
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if line.startswith("data: "):  # others keep a connection awake
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    told.take(json.loads(last))
                    each()
    assert last == "[DONE]" and told.usage
    return told


def mixed(rng: random.Random) -> list[dict[str, Any]]:
    """Some requests whose prompts share a beginning."""
    beginning = "the keeper of the lighthouse " * 3
    return [
        {
            "model": "tiny",
            "prompt": beginning + "by the sea"[: rng.randrange(10)],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": rng.choice((0.0, 0.8)),
            "max_tokens": rng.randrange(1, 350),
            "ignore_eos": True,
            "logprobs": rng.choice((None, 1)),
            "seed": rng.randrange(1000),
            "n": rng.choice((1, 1, 2)),
        }
        for _ in range(rng.randrange(2, 7))
    ]


class Storm:
    """Rounds of streams under kills, each compared with the same request undisturbed."""

    def __init__(self, served: Served, client: httpx.AsyncClient, seed: int) -> None:
        self.pauses: list[float] = []
        """seconds from each kill until a request that was sent then had its answer"""
        self.tally: Counter[str] = Counter()
        self._served, self._client = served, client
        self._victims: set[int] = set()
        self._open = 0
        """streams now"""
        self._left = 0
        """pieces until the first kill of a round"""
        self._struck = asyncio.Event()
        self._rng = random.Random(seed)
        self._seconds = 0.0

    async def tick(self) -> None:
        """Count the seconds, but for those in which this process stood still."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(STANDSTILL_SECONDS / 10)
            now = time.monotonic()
            self._seconds += min(now - last, STANDSTILL_SECONDS)
            last = now

    async def round(self) -> None:
        rng, bodies = self._rng, mixed(self._rng)
        self._left = rng.randrange(
            1, 2 + sum(body["n"] * body["max_tokens"] for body in bodies) // 3
        )
        self._struck = asyncio.Event()
        # A request that is part of three crashes would be given up.
        moments = [0.0, rng.uniform(0, APART_SECONDS)][: rng.randrange(1, 3)]
        kills = [asyncio.create_task(self._kill(moment)) for moment in moments]
        disturbed = await asyncio.gather(*(self._disturbed(body) for body in bodies))
        self._struck.set()
        self.pauses += [pause for pause in await asyncio.gather(*kills) if pause is not None]
        for body, ours in zip(bodies, disturbed, strict=True):
            calm = await ask(self._client, body)
            assert ours.choices == calm.choices and ours.usage == calm.usage, body
        self.tally.update(rounds=1, streams=len(bodies))

    async def _disturbed(self, body: dict[str, Any]) -> Told:
        self._open += 1
        told = await ask(self._client, body, self._piece)
        self._open -= 1
        return told

    def _piece(self) -> None:
        self._left -= 1
        if not self._left:
            self._struck.set()

    async def _kill(self, moment: float) -> float | None:
        await self._struck.wait()
        await asyncio.sleep(moment)
        began = self._seconds
        try:
            victim = self._served.worker
        except ValueError:
            return None  # there is none just now
        if victim in self._victims:
            return None  # dead, and not yet missed
        self._victims.add(victim)
        os.kill(victim, signal.SIGKILL)
        self.tally["kills in streams"] += self._open > 0
        reply = await self._client.post("/v1/completions", json=PROBE)
        assert reply.status_code == 200, reply.text
        return self._seconds - began


async def storm(served: Served, seed: int, kills: int) -> Storm:
    async with httpx.AsyncClient(base_url=served.address, timeout=None) as client:
        run = Storm(served, client, seed)
        ticking = asyncio.create_task(run.tick())
        while len(run.pauses) < kills:
            await run.round()
            if run.tally["rounds"] % 10 == 0:
                print(len(run.pauses), dict(run.tally), f"{max(run.pauses):.2f} s", flush=True)
        ticking.cancel()
    return run


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 3), *(pytest.param(seed, 50, marks=pytest.mark.slow) for seed in range(2, 8))],
)
@pytest.mark.timeout(900)
def test_no_kill_is_seen_in_a_stream(tmp_path: Path, seed: int, kills: int) -> None:
    """Three hundred kills in the long forms together."""
    with (tmp_path / "log").open("w") as log, serving(tiny_checkpoint(tmp_path), log) as served:
        run = asyncio.run(storm(served, seed, kills))
        restarts = served.metric("mainspring_worker_restarts_total")
        served.sample(0)  # idle, with no block held
    print(f"{restarts:.0f} restarts, {dict(run.tally)}; answered within {max(run.pauses):.2f} s")
    assert restarts == len(run.pauses) and run.tally["kills in streams"] > kills / 2
    assert max(run.pauses) < SERVING_SECONDS
