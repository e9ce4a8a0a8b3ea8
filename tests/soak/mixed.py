"""A server process under mixed requests over HTTP, and what it holds when they are over."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.soak.leaks import Sample, private

__all__ = ["Served", "serving", "traffic"]

SERVE = """
import asyncio, gc, os, sys, threading
from mainspring import app
from mainspring.config import load_config
from mainspring.runtimes.answer import Answer

def leak():
    kept, close = [], Answer.close
    def forgetful(answer):
        close(answer)
        kept.append((os.urandom(256 << 10), os.open("/dev/null", os.O_RDONLY)))
        kept.append(asyncio.create_task(asyncio.sleep(3600)))
    Answer.close = forgetful

def asked():
    what = sys.stdin.readline().strip()
    if what == "leak":
        leak()
    gc.collect()
    print(len(asyncio.all_tasks()), threading.active_count(), flush=True)

def ready(address):
    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    print(address, flush=True)

app.serve(load_config({"port": 0, "models": sys.argv[1:]}), on_ready=ready)
"""
ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 8
IDLE_SECONDS = 10.0


@dataclass
class Served:
    """The process, and its `answers` to what it is asked over its standard input."""

    process: subprocess.Popen[str]
    address: str

    @property
    def host(self) -> tuple[str, int]:
        host, port = self.address.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def worker(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(c): Path(f"/proc/{c}/cmdline").read_bytes() for c in children}
        (found,) = [child for child, line in commands.items() if b"runtimes.worker" in line]
        return found

    def tell(self, what: str) -> list[int]:
        """Tasks and threads, after `what`: "count", or "leak" from now on."""
        ask, answer = self.process.stdin, self.process.stdout
        assert ask and answer
        ask.write(f"{what}\n")
        ask.flush()
        return [int(number) for number in answer.readline().split()]

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as reply:
            found = re.search(rf"^{re.escape(name)}\{{.*\}} (\S+)$", reply.read().decode(), re.M)
        assert found, name
        return float(found[1])

    def sample(self, requests: int) -> Sample:
        """Once the Engine is idle, with no block held."""
        end = time.monotonic() + IDLE_SECONDS
        busy = (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        )
        while any(self.metric(name) for name in busy):
            assert time.monotonic() < end, "the engine is not idle"
            time.sleep(0.05)
        time.sleep(1.5)  # connections that linger after their client left
        tasks, threads = self.tell("count")
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return Sample(
            requests, private(self.process.pid), private(self.worker), files, tasks, threads
        )


@contextmanager
def serving(checkpoint: Path, log: IO[str]) -> Iterator[Served]:
    """A server process for the model "tiny", of few blocks: they are soon all in the cache."""
    settings = {"MAINSPRING_KV_MEMORY": str(2 << 20), "MAINSPRING_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, f"tiny={checkpoint}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MAINSPRING_LOG_LEVEL": "error", **settings},
    )
    assert process.stdout and process.stdin
    try:
        yield Served(process, process.stdout.readline().strip())
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


async def traffic(served: Served, rng: random.Random, count: int) -> dict[int, int]:
    """`count` requests, eight at a time; how many had which status, 0 for those that left."""
    statuses: dict[int, int] = {}
    left = count

    async def client() -> None:
        nonlocal left
        connection = None
        while left > 0:
            left -= 1
            connection = connection or await asyncio.open_connection(*served.host)
            status = await _ask(connection, rng)
            statuses[status] = statuses.get(status, 0) + 1
            if not status or rng.random() < 0.02:
                connection[1].transport.abort()
                connection = None
        if connection:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return statuses


async def _ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], rng: random.Random
) -> int:
    """One request; the answer's status, 0 when the client leaves before its end."""
    reader, writer = connection
    path, fields = _mixed(rng)
    body = json.dumps(fields).encode() if fields else b'{"model": "tiny", '
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    leaves = rng.random()
    if leaves < 0.03:
        await asyncio.sleep(0.001)
        return 0
    lines = (await reader.readuntil(b"\r\n\r\n")).lower()
    if length := re.search(rb"content-length: (\d+)", lines):
        await reader.readexactly(int(length[1]))
    elif leaves < 0.13:
        return 0
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    return int(lines[9:12])


def _mixed(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body, sometimes a wrong one."""
    words = "".join(rng.choices("abcdefgh ", k=rng.choice((1, 20, 20, 150, 300))))
    fields: dict[str, Any] = {
        "model": "tiny" if rng.random() < 0.98 else "nobody",
        "max_tokens": rng.randrange(1, 12),
        "temperature": rng.choice((0, 1, 1, 9 if rng.random() < 0.1 else 0.5)),
        "n": rng.choice((1, 1, 1, 2)),
        "stream": rng.random() < 0.5,
        "stop": rng.choice((None, "a", ["b", "zz"])),
        "user": "soak",
    }
    if rng.random() < 0.01:
        return "/v1/completions", {}
    if rng.random() < 0.5:
        logprobs = rng.choice((None, None, 3))
        return "/v1/completions", fields | {
            "prompt": "shared beginning " + words,
            "logprobs": logprobs,
        }
    logprobs = rng.choice((None, None, 2))
    fields |= {"logprobs": logprobs is not None, "top_logprobs": logprobs}
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": words}]
    return "/v1/chat/completions", fields | {"messages": messages}
