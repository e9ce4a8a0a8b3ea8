"""Clients that leave, in every phase of their request, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from mainspring.kernels import load_kernels
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Request, Sampling
from tests.conformance.conftest import Server, start, stop
from tests.faults.streams import request, runtime, settings, tell, until
from tests.soak.cancels import PHASES, Cancels
from tests.soak.leaks import idle
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cancels")
    return tiny_checkpoint(path, max_position_embeddings=2048)


# In the Engine ------------------------------------------------------------------------------------


def cancel(engines: range, each: int) -> None:
    """Every phase must really have been met."""
    tally: Counter[str] = Counter()
    for seed in engines:
        cancels = Cancels(load_kernels("auto", 1), seed)
        cancels.run(each)
        stats = cancels.engine.stats()
        assert stats.running == stats.waiting == stats.blocks_used == 0
        tally += cancels.tally
    print(dict(tally))
    assert set(tally) == set(PHASES)


def test_cancelling_in_every_phase_frees_at_once() -> None:
    cancel(range(100, 108), 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_thousand_cancels_free_at_once() -> None:
    cancel(range(100, 120), 251)


# In the server ------------------------------------------------------------------------------------


def asked(rng: random.Random) -> Request:
    sampling = Sampling(max_tokens=rng.choice((5, 300)), ignore_eos=True, temperature=0)
    prompt = "shared " * rng.choice((1, 30, 200)) + str(rng.random())
    return request(prompt, sampling=sampling, n=rng.choice((1, 1, 3)))


async def leave(served: LLMRuntime, rng: random.Random) -> str:
    """Ask, and leave after so many Chunks or so long; what had come until then."""
    chunks, patience, most = served.run(asked(rng)), rng.choice((0, 1e-3, 0.05)), rng.randrange(40)
    seen = 0

    async def read() -> None:
        nonlocal seen
        async for _ in chunks:
            seen += 1
            if seen > most:
                return

    reading = asyncio.create_task(read())
    await asyncio.sleep(patience)
    if rng.random() < 0.5:
        reading.cancel()
    await asyncio.wait([reading])
    await chunks.aclose()
    if not reading.cancelled():
        reading.result()
    return "streaming" if seen else "before the first token"


@pytest.mark.parametrize("count", [120, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_clients_that_leave_give_back_their_places(checkpoint: Path, count: int) -> None:
    async def main() -> None:
        rng, tally = random.Random(count), Counter[str]()
        config = settings(max_running=4, max_queue=200, step_ms=5)
        async with runtime(checkpoint, config) as served:
            await tell(served.run(request()))
            tasks = len(asyncio.all_tasks())

            async def client() -> None:
                for _ in range(count // 12):
                    tally[await leave(served, rng)] += 1

            await asyncio.gather(*(client() for _ in range(12)))
            assert served._admission.taken == 0
            assert not served._supervisor.flights
            await until(lambda: idle(served))
            assert len(asyncio.all_tasks()) == tasks and served.restarts == 0
            await tell(served.run(request()))
        assert len(tally) == 2, tally

    asyncio.run(main())


def test_a_cancel_frees_while_another_runs_on(checkpoint: Path) -> None:
    async def main() -> None:
        config = settings(max_running=2, speculation=False)
        async with runtime(checkpoint, config) as served:
            long = Sampling(max_tokens=1200, ignore_eos=True, temperature=0)
            stays = served.run(request("stays", sampling=long))
            leaves = served.run(request("leaves " * 100, sampling=long))
            await anext(stays)
            await anext(leaves)
            before = served.stats()
            assert before.running == 2
            await leaves.aclose()
            async for _ in stays:
                if served.stats().running == 1:
                    break
            after = served.stats()
            assert after.blocks_used < before.blocks_used and after.running == 1
            await stays.aclose()
            await until(lambda: idle(served))

    asyncio.run(main())


def test_connections_cut_anywhere_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"MAINSPRING_ISA": "auto", "MAINSPRING_MAX_RUNNING": "2", "MAINSPRING_THREADS": "1"}
    server = start([f"tiny={checkpoint}"], tmp_path / "log", **settings)
    try:
        rng = random.Random(1)
        for _ in range(80):
            cut(server, rng)
        server.wait_for_idle()
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        body = {"model": "tiny", "prompt": "after all", "max_tokens": 3}
        assert httpx.post(f"{server.address}/v1/completions", json=body).status_code == 200
    finally:
        assert stop(server) == 0, (tmp_path / "log").read_text()


def cut(server: Server, rng: random.Random) -> None:
    """A streamed request whose connection is closed or reset after so many bytes or so long."""
    host, port = server.address.removeprefix("http://").split(":")
    body = b'{"model": "tiny", "prompt": "%b", "max_tokens": 400, "stream": true}'
    body %= b"cut " * rng.choice((1, 300))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    data = head % len(body) + body
    with socket.create_connection((host, int(port))) as client:
        client.sendall(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        time.sleep(rng.choice((0, 0.002, 0.02)))
        if rng.random() < 0.4 and data.endswith(body):
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                client.recv(rng.choice((1, 2000)))
        if rng.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
