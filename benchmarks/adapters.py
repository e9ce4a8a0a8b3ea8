"""What LoRA adapters cost: a decode step of 16 sequences that use 0, 1, 4 or 16 of them.

    python benchmarks/adapters.py [--format int8] [--rank 16] [--threads N] [--save]

The 0.5B shape with random weights, adapters on all seven linear layers of each block. The counts
are measured in turns within one process, so that a busy machine disturbs all alike; the figure is
the shortest step of each.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from benchmarks.shapes import QWEN_05B
from mainspring.engine.adapter import Adapter
from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.engine.weights import random_model
from mainspring.kernels import Kernels, LowRank, bf16_bits, blocks_of, load_kernels

ROWS, CONTEXT = 16, 128
COUNTS = (0, 1, 4, 16)


def adapter(model: Architecture, kernels: Kernels, rank: int, seed: int) -> Adapter:
    """Random matrices for every product that can be changed."""
    rng = np.random.default_rng(seed)
    parts: dict[int, list[tuple[LowRank, int]]] = {}
    nbytes = 0
    for slot in model.slots.values():
        down = bf16_bits(rng.standard_normal((slot.k, rank), np.float32) / slot.k**0.5)
        up = bf16_bits(rng.standard_normal((rank, slot.n), np.float32) / 100)
        matrix = kernels.low_rank(down, up)
        nbytes += matrix.nbytes
        parts.setdefault(slot.index, []).append((matrix, slot.first))
    return Adapter({i: tuple(found) for i, found in parts.items()}, bytes(32), rank, nbytes)


def batch(adapters: list[Adapter]) -> Batch:
    """One new token of each sequence; the adapters take turns."""
    width = blocks_of(CONTEXT)
    tables = np.arange(ROWS * width, dtype=np.int32).reshape(ROWS, width)
    pieces = [([7 + row], CONTEXT - 1, tables[row]) for row in range(ROWS)]
    owners = [adapters[row % len(adapters)] for row in range(ROWS)] if adapters else []
    return Batch.of(pieces, list(range(ROWS)), owners)


def measure(format: Any, rank: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    kernels = load_kernels(threads=threads)
    model = random_model(QWEN_05B, kernels, format)
    shape = model.shape
    blocks = ROWS * blocks_of(CONTEXT)
    cache = kernels.cache(shape.layers, blocks, shape.kv_heads, shape.head, "bf16")
    adapters = [adapter(model, kernels, rank, seed) for seed in range(max(COUNTS))]
    batches = {count: batch(adapters[:count]) for count in COUNTS}
    best = dict.fromkeys(COUNTS, float("inf"))
    for _ in range(rounds):
        for count, asked in batches.items():
            began = time.perf_counter()
            model.forward(asked, cache)
            best[count] = min(best[count], time.perf_counter() - began)
    return [
        {
            "format": format,
            "rank": rank,
            "threads": kernels.threads,
            "adapters": count,
            "adapter_bytes": adapters[0].nbytes,
            "step_ms": round(1000 * seconds, 2),
            "times": round(seconds / best[0], 3),
        }
        for count, seconds in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="int8", choices=["bf16", "int8", "int4", "float32"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    rows = measure(args.format, args.rank, args.threads, args.rounds)
    for row in rows:
        print(f"{row['adapters']:3} adapters  {row['step_ms']:8.2f} ms  x {row['times']:.3f}")
    if args.save:
        save("adapters", rows, ("format", "rank", "threads", "adapters"))


if __name__ == "__main__":
    main()
