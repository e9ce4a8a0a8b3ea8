"""Time to the first token of a prompt whose beginning is known, by where it is kept.

    python benchmarks/prefix.py --save

Random weights of the shape in int8, an Engine in this process. What the cells are, in milliseconds:

    cold    1,020 tokens that nobody has asked before
    new     20 tokens alone: what the others would take if the shared 1,000 cost nothing
    known   the model's forward pass of 20 tokens after 1,000 in the KV cache, without an Engine:
            what the others could take at best, since attention reads the 1,000
    pool    1,000 shared tokens and 20 new ones, the shared ones in the KV cache
    memory  the same, evicted to memory
    disk    the same, evicted to disk; the file's pages may still be in the system's memory
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from benchmarks.shapes import SHAPES
from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.engine.disk import DiskPlace
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import random_model
from mainspring.kernels import BLOCK, Kernels, load_kernels
from mainspring.types import Sampling

ROOT = Path(__file__).parents[1]
SHARED, NEW = 1000, 20
BLOCKS = 40
"""of the KV cache: one such prompt, and little besides"""
ROOM = 1 << 30


class Bench:
    """Engines of one model, and prompts of random tokens.

    A block in which two prompts part is copied within the KV cache, and lost to the tiers.
    """

    def __init__(self, model: Architecture, kernels: Kernels, file: Path) -> None:
        place = DiskPlace(file, ROOM, b"")
        sizes = {"pool": (4 * BLOCKS, 0, None), "memory": (BLOCKS, ROOM, None)}
        sizes["disk"] = (BLOCKS, 0, place)
        self.engines = {
            name: Engine(
                model, kernels, EngineConfig(blocks=blocks, prefix_memory=memory, prefix_disk=disk)
            )
            for name, (blocks, memory, disk) in sizes.items()
        }
        self._model = model
        shape = model.shape
        self._cache = kernels.cache(shape.layers, BLOCKS, shape.kv_heads, shape.head, "bf16")
        self._vocabulary = shape.vocabulary
        self._rng = np.random.default_rng(1)

    def tokens(self, count: int) -> list[int]:
        return [int(token) for token in self._rng.integers(1, self._vocabulary, count)]

    def first_token(self, name: str, tokens: list[int]) -> tuple[float, int]:
        """Milliseconds, and how many of the tokens were known."""
        engine = self.engines[name]
        began = time.perf_counter()
        engine.add("x", tokens, Sampling(temperature=0.0, max_tokens=1, ignore_eos=True))
        while not (outputs := engine.step()):
            pass
        return (time.perf_counter() - began) * 1000, outputs[-1].cached

    def shared(self, name: str) -> float:
        """A second prompt after one with the same beginning, evicted in between unless `pool`."""
        start = self.tokens(SHARED)
        self.first_token(name, start + self.tokens(NEW))
        if name != "pool":
            for _ in range(2):
                self.first_token(name, self.tokens(SHARED + NEW))
            time.sleep(0.5)  # written
        seconds, cached = self.first_token(name, start + self.tokens(NEW))
        if cached != (SHARED if name == "pool" else SHARED // BLOCK * BLOCK):
            raise RuntimeError(f"{name}: only {cached} tokens came back")
        return seconds

    def alone(self, count: int) -> float:
        return self.first_token("pool", self.tokens(count))[0]

    def known(self) -> float:
        rows = np.arange(SHARED, SHARED + NEW, dtype=np.int32)
        batch = Batch(
            np.array(self.tokens(NEW), np.int32),
            rows,
            starts=np.array([0, NEW], np.int32),
            lengths=np.array([SHARED + NEW], np.int32),
            tables=np.arange(BLOCKS, dtype=np.int32)[None],
            logit_rows=np.array([NEW - 1], np.int32),
        )
        began = time.perf_counter()
        self._model.forward(batch, self._cache)
        return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the disk's file lies for the time of the run")
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    kernels = load_kernels(threads=options.threads)
    model = random_model(SHAPES[options.shape], kernels, format="int8", seed=0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(model, kernels, Path(folder) / "prefix.blocks")
        cells: dict[str, Callable[[], float]] = {
            "cold": lambda: bench.alone(SHARED + NEW),
            "new": lambda: bench.alone(NEW),
            "known": bench.known,
            **{name: lambda name=name: bench.shared(name) for name in bench.engines},  # type: ignore[misc]
        }
        for measure in cells.values():  # memory is touched, speeds are learned
            measure()
        times: dict[str, list[float]] = {cell: [] for cell in cells}
        for _ in range(options.rounds):
            for cell, measure in cells.items():
                times[cell].append(round(measure(), 2))
        for engine in bench.engines.values():
            engine.close()
    rows = [{"cell": cell, "ms": ms} for cell, ms in times.items()]
    for row in rows:
        print(json.dumps({**row, "median": statistics.median(times[str(row["cell"])])}))
    if options.save:
        about = {"kernels": kernels.name, "threads": options.threads, "format": "int8"}
        save(f"prefix-{options.shape}", about=about, rows=rows)


main()
