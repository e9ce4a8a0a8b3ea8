"""The Engine against llama.cpp, both sides in one run, interleaved; figures are ratios of medians.

    make bench                                    the whole table (about 10 minutes)
    python benchmarks/engine.py --cells decode    one kind of cell

Both engines get the same shape with random weights, the same threads, the same random prompts,
greedy choice, and run every sequence to its full length. llama.cpp comes from PyPI's sdist, built
with native flags into `.venv-bench`. Memory bandwidth of shared machines moves by itself, so the
sides take turns within each cell and a bandwidth probe stands before and after every pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.sides import Side
from mainspring.kernels import load_kernels
from mainspring.kernels.cpu import measure

ROOT = Path(__file__).parents[1]
# (cell, precision, sequences, prompt, output, the figure that is compared)
CELLS = [
    ("decode", "int8", 1, 32, 128, "decode_tokens_per_second"),
    ("decode", "int4", 1, 32, 128, "decode_tokens_per_second"),
    ("decode", "bf16", 1, 32, 64, "decode_tokens_per_second"),
    ("prefill512", "int8", 1, 512, 1, "prefill_tokens_per_second"),
    ("prefill2048", "int8", 1, 2048, 1, "prefill_tokens_per_second"),
    ("batch16", "int8", 16, 128, 128, "output_tokens_per_second"),
    ("batch32", "int8", 32, 128, 128, "output_tokens_per_second"),
    ("batch32", "int4", 32, 128, 128, "output_tokens_per_second"),
]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def compare(
    shape: str, threads: int, rounds: int, wanted: set[str], peer: str
) -> Iterator[dict[str, Any]]:
    """One row a cell: each side's runs, medians and their ratio."""
    kernels = load_kernels(threads=threads)
    for precision in ("int8", "int4", "bf16"):
        cells = [c for c in CELLS if c[1] == precision and (not wanted or c[0] in wanted)]
        if not cells:
            continue
        options = {"shape": shape, "precision": precision, "threads": threads}
        ours, theirs = (
            Side(sys.executable, "ours.py", **options),
            Side(peer, "llamacpp.py", **options),
        )
        try:
            for cell, _, sequences, prompt, output, figure in cells:
                row: dict[str, Any] = {
                    "shape": shape,
                    "cell": cell,
                    "precision": precision,
                    "figure": figure,
                    "bandwidth_gb_s": [],
                    "ours": [],
                    "peer": [],
                    "versions": [ours.about, theirs.about],
                }
                for _ in range(rounds):
                    row["bandwidth_gb_s"].append(round(measure(kernels).read / 1e9, 1))
                    for name, side in (("ours", ours), ("peer", theirs)):
                        run = side.measure(
                            "batch", sequences=sequences, prompt=prompt, output=output
                        )
                        row[name].append(round(run[figure], 1))
                        row[f"{name}_resident_mb"] = {
                            k: round(v) for k, v in run["resident_mb"].items()
                        }
                row["ratio"] = round(
                    statistics.median(row["ours"]) / statistics.median(row["peer"]), 2
                )
                yield row
        finally:
            ours.close()
            theirs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", nargs="*", default=[], help="names of cells; default all")
    parser.add_argument("--peer", default=str(ROOT / ".venv-bench/bin/python"))
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    if not Path(options.peer).exists():
        parser.error(f"no peer at {options.peer}: run `make bench-peer` first")
    rows = []
    print(f"{'cell':12} {'weights':8} {'mainspring':>12} {'llama.cpp':>12} {'ratio':>6}  GB/s")
    for row in compare(
        options.shape, options.threads, options.rounds, set(options.cells), options.peer
    ):
        rows.append(row)
        print(
            f"{row['cell']:12} {row['precision']:8} {statistics.median(row['ours']):12.1f} "
            f"{statistics.median(row['peer']):12.1f} {row['ratio']:6.2f}  {row['bandwidth_gb_s']}",
            flush=True,
        )
    if options.save:
        path = ROOT / f"benchmarks/results/engine-{options.shape}-{time.strftime('%Y%m%d')}.json"
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"saved {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
