"""Decode speed with and without speculation, in turns; figures are ratios of medians.

    python benchmarks/speculation.py --save

Random weights of the shape in int8, each answer to its full length. What the cells are:

    loop    greedy: random weights soon repeat themselves, most guesses are right
    random  temperature 1: nothing repeats, no guess is made; what looking costs

Random weights copy nothing from a prompt, so no cell says what a real task gains: that depends on
how much of its output stands in its input. Both sides must give the same tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.shapes import SHAPES
from mainspring.engine.architectures import Architecture
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import random_model
from mainspring.kernels import BLOCK, Kernels, load_kernels
from mainspring.types import Sampling

ROOT = Path(__file__).parents[1]
# (cell, temperature, sequences)
CELLS = [
    ("loop", 0.0, 1), ("loop", 0.0, 4), ("loop", 0.0, 16),
    ("random", 1.0, 1), ("random", 1.0, 4), ("random", 1.0, 16),
]  # fmt: skip
PROMPT, OUTPUT = 64, 192


def decode(
    model: Architecture, kernels: Kernels, temperature: float, sequences: int, speculation: bool
) -> tuple[float, list[list[int]], Engine]:
    """Tokens a second once every sequence has its first, all tokens, and the Engine."""
    blocks = sequences * (-(-(PROMPT + OUTPUT) // BLOCK) + 1)
    config = EngineConfig(blocks=blocks, prefix_cache=False, speculation=speculation)
    engine = Engine(model, kernels, config)
    rng = np.random.default_rng(1)
    prompts = rng.integers(1, model.shape.vocabulary, (sequences, PROMPT)).tolist()
    tokens: dict[str, list[int]] = {}
    for seed, prompt in enumerate(prompts):
        sampling = Sampling(temperature, seed=seed, max_tokens=OUTPUT, ignore_eos=True)
        tokens[str(seed)] = []
        engine.add(str(seed), prompt, sampling)
    began, count = 0.0, 0
    while engine.has_work:
        for output in engine.step():
            tokens[output.id] += output.tokens
            count += len(output.tokens) if began else 0
        if not began and all(tokens.values()):
            began = time.perf_counter()
    return count / (time.perf_counter() - began), list(tokens.values()), engine


def compare(
    model: Architecture, kernels: Kernels, cell: tuple[str, float, int], rounds: int
) -> dict[str, Any]:
    name, temperature, sequences = cell
    rates: dict[bool, list[float]] = {False: [], True: []}
    given = []
    for turn in range(rounds):
        for side in (False, True) if turn % 2 else (True, False):
            rate, tokens, engine = decode(model, kernels, temperature, sequences, side)
            rates[side].append(round(rate, 1))
            given.append(tokens)
            if side:
                stats = engine.stats()
    if any(tokens != given[0] for tokens in given):
        raise RuntimeError(f"{name}: speculation changed the tokens")
    ratio = statistics.median(on / off for on, off in zip(rates[True], rates[False], strict=True))
    return {
        "cell": name,
        "sequences": sequences,
        "off_tokens_per_second": rates[False],
        "on_tokens_per_second": rates[True],
        "ratio": round(ratio, 3),
        "draft_tokens": stats.draft_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "output_tokens": stats.output_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    kernels = load_kernels(threads=options.threads)
    model = random_model(SHAPES[options.shape], kernels, format="int8", seed=0)
    decode(model, kernels, 0.0, 1, False)  # memory is touched
    rows = []
    for cell in CELLS:
        rows.append(compare(model, kernels, cell, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    if options.save:
        date = time.strftime("%Y%m%d")
        path = ROOT / f"benchmarks/results/speculation-{options.shape}-{date}.json"
        about = {"kernels": kernels.name, "threads": options.threads, "format": "int8"}
        path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        print(f"saved {path.relative_to(ROOT)}")


main()
