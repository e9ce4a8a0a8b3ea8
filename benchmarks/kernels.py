"""How fast is each kernel on its own, and how near to what the machine can do?

    python benchmarks/kernels.py [--formats int8 q4] [--rows 1 32 512] [--isa avx512] [--save]

The linear layers are those of all layers of Qwen2.5-0.5B (random weights, streamed from memory as
in a forward pass) and, by itself, its language-model head. Every table is bracketed by a probe of
what all threads read from memory and of the int8 peak, because both vary on shared machines. Each
row is the best of `--runs` passes. The kernels' Python calls are inside the times.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from shapes import QWEN_05B

from mainspring.kernels import Array, Kernels, Weight, WeightFormat, blocks_of, load_kernels
from mainspring.kernels.cpu import measure

HIDDEN, INNER = QWEN_05B["hidden_size"], QWEN_05B["intermediate_size"]
HEADS, KV = QWEN_05B["num_attention_heads"], QWEN_05B["num_key_value_heads"]
LAYERS, VOCABULARY = QWEN_05B["num_hidden_layers"], QWEN_05B["vocab_size"]
HEAD = HIDDEN // HEADS
MATRICES = (
    (HIDDEN + 2 * KV * HEAD, HIDDEN),  # q, k, v
    (HIDDEN, HIDDEN),  # output
    (2 * INNER, HIDDEN),  # gate, up
    (HIDDEN, INNER),  # down
)
ROWS = (1, 4, 8, 16, 32, 64, 128, 512)


@dataclass(frozen=True)
class Row:
    what: str
    rows: int
    ms: float
    gb: float = 0.0
    """gigabytes of weights or cache read a second"""
    gop: float = 0.0
    """10^9 multiplications and additions a second"""

    def __str__(self) -> str:
        return f"{self.what:<28} {self.rows:>5} {self.ms:>9.3f} {self.gb:>8.1f} {self.gop:>8.0f}"


def best(work: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of `runs`, after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def pack(kernels: Kernels, source: Array, format: WeightFormat) -> Weight:
    """In q8 and q4 with random codes: only others choose them."""
    if format != "q8" and format != "q4":
        return kernels.weight(source, format=format)
    n, k = source.shape
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (n, k), np.int8)
    scales = rng.random((n, -(-k // 32)), np.float32)
    mins = -8 * scales if format == "q4" else None
    return kernels.coded_weight(codes, scales, mins, format=format)


def linear(kernels: Kernels, format: WeightFormat, rows: list[int], runs: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    sources = {s: rng.standard_normal(s, np.float32) * np.float32(0.02) for s in MATRICES}
    weights: list[Weight] = []
    start = time.perf_counter()
    for _ in range(LAYERS):
        weights += [pack(kernels, sources[s], format) for s in MATRICES]
    packed = time.perf_counter() - start
    numbers = sum(w.n * w.k for w in weights)
    print(f"packed {numbers / 1e6:.0f} M numbers in {packed:.2f} s")
    yield from products(kernels, f"layers {format}", weights, rows, runs)


def lm_head(kernels: Kernels, format: WeightFormat, rows: list[int], runs: int) -> Iterator[Row]:
    source = np.random.default_rng(0).standard_normal((VOCABULARY, HIDDEN), np.float32)
    weight = pack(kernels, source, format)
    yield from products(kernels, f"lm head {format}", [weight], [r for r in rows if r <= 64], runs)


def products(
    kernels: Kernels, what: str, weights: list[Weight], rows: list[int], runs: int
) -> Iterator[Row]:
    stored = sum(w.nbytes for w in weights)
    numbers = sum(w.n * w.k for w in weights)
    for count in rows:
        x = {
            k: np.random.default_rng(k).standard_normal((count, k), np.float32)
            for k in {w.k for w in weights}
        }
        seconds = best(lambda x=x: [kernels.linear(x[w.k], w) for w in weights], runs)
        yield Row(
            what, count, seconds * 1e3, stored / seconds / 1e9, 2 * numbers * count / seconds / 1e9
        )


def attention(
    kernels: Kernels,
    dtype: Any,
    fresh: int,
    length: int,
    sequences: int,
    runs: int,
    layers: int = LAYERS,
) -> Row:
    """All of `layers`, with `sequences` contexts of `length` of which `fresh` tokens are new.

    With all layers, as in a step, the cache comes from memory.
    """
    per = blocks_of(length)
    cache = kernels.cache(layers, per * sequences, KV, HEAD, dtype)
    rng = np.random.default_rng(0)
    tables = rng.permutation(per * sequences).astype(np.int32).reshape(sequences, per)
    starts = np.arange(sequences + 1, dtype=np.int32)
    lengths = np.full(sequences, length, np.int32)
    width = (HEADS + 2 * KV) * HEAD

    def attend(new: int, window: int) -> None:
        for layer in range(layers):
            kernels.attention(
                qkv[: new * sequences],
                cache,
                layer,
                starts * new,
                lengths,
                tables,
                heads=HEADS,
                scale=HEAD**-0.5,
                window=window,
            )

    # Pages that were never written would all be the one page of zeros. A window of 1 is fast.
    qkv = rng.standard_normal((length * sequences, width), np.float32)
    attend(length, 1)
    seconds = best(lambda: attend(fresh, 0), runs)
    pairs = layers * sequences * sum(range(length - fresh + 1, length + 1))
    return Row(
        f"attention {dtype} {length}",
        fresh * sequences,
        seconds * 1e3,
        cache.nbytes / seconds / 1e9,
        4 * pairs * HEADS * HEAD / seconds / 1e9,
    )


def sampling(kernels: Kernels, rows: int, spread: float, top_p: float, runs: int) -> Row:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, VOCABULARY), np.float32) * np.float32(spread)
    one, zero = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    top_k, p, uniform = np.zeros(rows, np.int32), one * np.float32(top_p), rng.random(rows)
    seconds = best(lambda: kernels.sample(logits, one, top_k, p, zero, uniform), runs)
    return Row(f"sample spread {spread} top_p {top_p}", rows, seconds * 1e3)


def small(kernels: Kernels, rows: int, runs: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    x, gain = rng.standard_normal((rows, HIDDEN), np.float32), np.ones(HIDDEN, np.float32)
    add = np.zeros_like(x)
    qkv = rng.standard_normal((rows, (HEADS + 2 * KV) * HEAD), np.float32)
    table, at = np.ones((64, 2, HEAD // 2), np.float32), np.zeros(rows, np.int32)
    calls: dict[str, Callable[[], object]] = {
        "rms_norm": lambda: kernels.rms_norm(x, gain, 1e-6, add=add),
        "rope": lambda: kernels.rope(qkv, table, at, heads=HEADS + KV, head=HEAD),
    }
    for name, call in calls.items():
        yield Row(name, rows, best(call, 20 * runs) * 1e3)


def tables(kernels: Kernels, options: argparse.Namespace) -> Iterator[Callable[[], Iterator[Row]]]:
    runs = options.runs
    for format in options.formats:
        yield lambda f=format: linear(kernels, f, options.rows, runs)  # type: ignore[misc]
    yield lambda: lm_head(kernels, "int8", options.rows, runs)

    def others() -> Iterator[Row]:
        for dtype in ("bf16", "int8", "float32"):
            yield attention(kernels, dtype, 1, 256, 32, runs)
            yield attention(kernels, dtype, 1, 16384, 1, runs)
            for length in (512, 2048, 16384):
                yield attention(kernels, dtype, 512, length, 1, runs, layers=1)
        for spread, top_p in ((2.0, 1.0), (2.0, 0.9), (10.0, 1.0), (10.0, 0.9)):
            yield sampling(kernels, 32, spread, top_p, runs)
        yield from small(kernels, 1, runs)
        yield from small(kernels, 512, runs)

    yield others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="*", default=list(get_args(WeightFormat)))
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/kernels.json")
    options = parser.parse_args()
    kernels = load_kernels(options.isa, options.threads)
    record: dict[str, Any] = {
        "isa": kernels.name,
        "threads": kernels.threads,
        "machine": platform.platform(),
        "tables": [],
    }
    for table in tables(kernels, options):
        probes = [measure(kernels)]
        print(f"\n{'':<28} {'rows':>5} {'ms':>9} {'GB/s':>8} {'Gop/s':>8}")
        rows = []
        for row in table():
            print(row, flush=True)
            rows.append(asdict(row))
        probes.append(measure(kernels))
        before, after = (f"{p.read / 1e9:.0f} GB/s, {p.int8 / 1e9:.0f} Gop/s" for p in probes)
        print(f"probe before: {before}; after: {after}")
        record["tables"].append({"rows": rows, "probes": [asdict(p) for p in probes]})
    if options.save:
        path = Path(__file__).parent / "results" / "kernels.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
