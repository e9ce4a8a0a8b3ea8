"""Mainspring's Engine in-process: random weights, greedy choice, no early end."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.sides import answer, figures
from mainspring import __version__
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import random_model
from mainspring.kernels import blocks_of, load_kernels
from mainspring.types import Sampling


def main() -> None:
    options = json.loads(sys.argv[1])
    shape = SHAPES[options["shape"]]
    kernels = load_kernels(options.get("isa", "auto"), options["threads"])
    model = random_model(shape, kernels, format=options["precision"], seed=0)
    count = 0

    def batch(sequences: int, prompt: int, output: int) -> dict[str, Any]:
        nonlocal count
        engine = Engine(
            model,
            kernels,
            EngineConfig(
                blocks=sequences * (blocks_of(prompt + output) + 1),
                max_running=sequences,
                max_queue=sequences,
                prefix_cache=False,
                speculation=False,  # the peer has none
            ),
        )
        rng = np.random.default_rng(1)
        prompts = rng.integers(1, shape["vocab_size"], (sequences, prompt)).tolist()
        sampling = Sampling(temperature=0.0, max_tokens=output, ignore_eos=True)
        begin = time.perf_counter()
        for tokens in prompts:
            count += 1
            engine.add(str(count), tokens, sampling)
        times: list[float] = []
        firsts: list[float] = []
        seen: set[str] = set()
        while engine.has_work:
            outputs = engine.step()
            now = time.perf_counter()
            for one in outputs:
                if one.error is not None:
                    raise RuntimeError(one.error)
                times.extend(now for _ in one.tokens)
                if one.tokens and one.id not in seen:
                    seen.add(one.id)
                    firsts.append(now)
        assert len(times) == sequences * output
        end = times[-1]
        # The decode phase: what came after every sequence had its first token.
        last_first = max(firsts)
        after = sum(1 for t in times if t > last_first)
        return figures(
            sequences * prompt, len(times), after, begin=begin, first=last_first, end=end
        )

    about = {
        "engine": "mainspring",
        "version": __version__,
        "precision": options["precision"],
        "kernels": kernels.name,
        "threads": kernels.threads,
    }
    answer(about, {"batch": batch})


main()
