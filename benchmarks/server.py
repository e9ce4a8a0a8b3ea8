"""The server as a user meets it: start to ready, resident memory, streams over HTTP.

    python benchmarks/server.py            the embedded model

Start is the wall time from `mainspring serve` to a 200 of /health/ready; memory is the sum over
all processes of private pages plus their share of common ones (Pss), against weights + KV.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(port: int, arguments: list[str]) -> tuple[subprocess.Popen[bytes], float]:
    """The server and the seconds it took to be ready."""
    command = [str(Path(sys.executable).parent / "mainspring"), "serve", *arguments]
    begin = time.perf_counter()
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1):
                return server, time.perf_counter() - begin
        except OSError:
            if server.poll() is not None:
                raise RuntimeError("the server ended before it was ready") from None
            time.sleep(0.005)


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def pss_mb(pid: int) -> dict[str, float]:
    """Pss in MB (1e6 bytes) of each process of the family, by its command's end."""
    sizes = {}
    for member in family(pid):
        rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        name = Path(f"/proc/{member}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        sizes[f"{member} {name.strip()[-40:]}"] = int(line.split()[1]) * 1024 / 1e6
    return sizes


async def stream(client: httpx.AsyncClient, model: str, seed: int, tokens: int) -> list[float]:
    """One streaming chat; the times of its chunks, the request's start first."""
    times = [time.perf_counter()]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"question {seed}: how do I start?"}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content"' in line:
                times.append(time.perf_counter())
    return times


async def clients(port: int, model: str, count: int, tokens: int) -> dict[str, float]:
    """`count` clients stream `tokens` tokens each at once."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        begin = time.perf_counter()
        runs = await asyncio.gather(*(stream(client, model, i, tokens) for i in range(count)))
        end = time.perf_counter()
    firsts = sorted(run[1] - run[0] for run in runs)
    gaps = sorted(b - a for run in runs for a, b in itertools.pairwise(run[1:]))
    return {
        "tokens_per_second": count * tokens / (end - begin),
        "first_token_p50_ms": statistics.median(firsts) * 1e3,
        "first_token_max_ms": firsts[-1] * 1e3,
        "gap_p50_ms": statistics.median(gaps) * 1e3,
        "gap_p99_ms": gaps[int(len(gaps) * 0.99)] * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mainspring-guide")
    parser.add_argument("--flags", default="", help="further flags of `mainspring serve`")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    arguments = [options.model, *options.flags.split()]
    name = options.model.split("=")[0]
    starts = []
    for run in range(options.starts):
        port = free_port()
        server, seconds = start(port, arguments)
        starts.append(seconds)
        if run < options.starts - 1:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    result: dict[str, Any] = {"start_seconds": sorted(round(s, 2) for s in starts)}
    try:
        idle = pss_mb(server.pid)
        result["clients"] = {
            count: {
                k: round(v, 2)
                for k, v in asyncio.run(clients(port, name, count, options.tokens)).items()
            }
            for count in options.clients
        }
        loaded = pss_mb(server.pid)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/admin/models")
        if key := os.environ.get("MAINSPRING_API_KEY"):
            request.add_header("Authorization", f"Bearer {key.split(',')[0]}")
        with urllib.request.urlopen(request, timeout=5) as response:
            result["models"] = json.load(response)
        result["pss_mb_idle"] = {k: round(v, 1) for k, v in idle.items()}
        result["pss_mb_after"] = {k: round(v, 1) for k, v in loaded.items()}
        result["pss_mb_total"] = [round(sum(idle.values()), 1), round(sum(loaded.values()), 1)]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
