"""Streaming HTTP clients against llama.cpp's server, both sides in one run, in turns.

    python benchmarks/streams.py --save

Each of 16 clients sends a prompt of 128 random token ids and streams 128 tokens, greedily, without
an early end. The same client code drives both servers, on the same cores. `make bench-peers`
builds llama.cpp's server from the sources of its Python package.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.checkpoint import write_checkpoint
from benchmarks.engine import ROOT
from benchmarks.record import save
from benchmarks.server import free_port, pss_mb
from benchmarks.shapes import SHAPES

PROMPT, OUTPUT = 128, 128


class Server:
    """A server process, ready on its port; killed when the run ends."""

    def __init__(self, command: list[str], port: int, health: str) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=1):
                    return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended before it was ready") from None
                time.sleep(0.05)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def ours(options: argparse.Namespace) -> Server:
    folder = options.cache / options.shape
    if not folder.exists():
        write_checkpoint(folder, SHAPES[options.shape])
    port = free_port()
    command = [str(Path(sys.executable).parent / "mainspring"), "serve", f"bench={folder}"]
    flags = f"--quantize int8 --no-prefix-cache --max-running {options.clients}"
    command += [*flags.split(), "--threads", str(options.threads), "--port", str(port)]
    return Server(command, port, "/health/ready")


def llamacpp(options: argparse.Namespace, folder: Path) -> Server:
    environment = options.environments / ".venv-bench"
    file = folder / "model.gguf"
    write = [environment / "bin/python", "-m", "benchmarks.sides.llamacpp_file"]
    subprocess.run([*write, options.shape, "int8", file], check=True, cwd=ROOT)
    port, count = free_port(), str(options.clients)
    length = str(options.clients * (PROMPT + OUTPUT + 32))
    command = [str(options.llama_server or environment / "bin/llama-server"), "-m", str(file)]
    command += ["--parallel", count, "-c", length, "--port", str(port), "--host", "127.0.0.1"]
    threads = str(options.threads)
    return Server([*command, "-t", threads, "-tb", threads], port, "/health")


async def stream(client: httpx.AsyncClient, prompt: list[int]) -> list[float]:
    """The times of the request's start and of each chunk with text."""
    times = [time.perf_counter()]
    made = 0
    body = {
        "model": "bench",
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": OUTPUT,
        "temperature": 0,
        "ignore_eos": True,
    }
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if any(choice["text"] for choice in chunk["choices"]):
                times.append(time.perf_counter())
            made = (chunk.get("usage") or {}).get("completion_tokens", made)
    if made != OUTPUT:
        raise RuntimeError(f"a stream of {made} tokens, not {OUTPUT}")
    return times


async def clients(port: int, count: int, seed: int, vocabulary: int) -> dict[str, float]:
    """All clients at once: total tokens a second, first tokens and gaps in milliseconds."""
    prompts = np.random.default_rng(seed).integers(256, vocabulary, (count, PROMPT)).tolist()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        begin = time.perf_counter()
        runs = await asyncio.gather(*(stream(client, prompt) for prompt in prompts))
        end = time.perf_counter()
    firsts = [run[1] - run[0] for run in runs]
    gaps = [b - a for run in runs for a, b in itertools.pairwise(run[1:])]
    first, gap = np.percentile(firsts, (50, 99)) * 1e3, np.percentile(gaps, (50, 99)) * 1e3
    found = (count * OUTPUT / (end - begin), *first, *gap)
    return {name: round(float(value), 1) for name, value in zip(FIGURES, found, strict=True)}


FIGURES = (
    "tokens_per_second",
    "first_token_p50_ms",
    "first_token_p99_ms",
    "gap_p50_ms",
    "gap_p99_ms",
)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every round of both servers, by figure, their memory after, and our ratio of tokens/s."""
    vocabulary = SHAPES[options.shape]["vocab_size"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            "mainspring": stack.enter_context(ours(options)),
            "llamacpp": stack.enter_context(llamacpp(options, folder)),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for turn in range(options.rounds + 1):
            for name, server in servers.items():
                run = asyncio.run(clients(server.port, options.clients, turn, vocabulary))
                print(f"{name:11} {run}", flush=True)
                if turn:  # the first warms up
                    runs[name].append(run)
        memory = {name: round(sum(pss_mb(s.process.pid).values())) for name, s in servers.items()}
    row: dict[str, Any] = {"shape": options.shape, "precision": "int8", "clients": options.clients}
    for figure in FIGURES:
        row[figure] = {name: [run[figure] for run in taken] for name, taken in runs.items()}
    speeds = {n: statistics.median(taken) for n, taken in row["tokens_per_second"].items()}
    ratio = round(speeds["mainspring"] / speeds["llamacpp"], 2)
    return {**row, "pss_mb": memory, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of the peers' ones")
    parser.add_argument("--llama-server", type=Path, help="default: that of .venv-bench")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/mainspring-bench")
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    row = compare(options)
    print(json.dumps(row, indent=1))
    if options.save:
        save(f"streams-{options.shape}", rows=[row])


if __name__ == "__main__":
    main()
