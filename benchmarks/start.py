"""Start to ready: from `mainspring serve` to a 200 of /health/ready, prepared and not.

    python benchmarks/start.py                      every cell, medians of 5
    python benchmarks/start.py --shapes qwen2.5-0.5b --precisions int8

The checkpoints have the measured shapes, random weights and a tokenizer as large as a real one;
they lie in the page cache, as after a first start. The cells of a shape take turns. Resident is
the sum over all processes of private pages plus their share of common ones (Pss) when ready.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.checkpoint import write_checkpoint
from benchmarks.record import save
from benchmarks.server import free_port, pss_mb, start
from benchmarks.shapes import SHAPES

ROOT = Path(__file__).parents[1]
GUIDE = "mainspring-guide"
PRECISIONS = ("int8", "int4", "bf16")


def flag(precision: str) -> list[str]:
    return [] if precision == "bf16" else ["--quantize", precision]


def timed(model: str, *flags: str) -> tuple[float, float]:
    """Seconds to ready, and MB resident then."""
    server, seconds = start(free_port(), [model, *flags])
    try:
        return seconds, sum(pss_mb(server.pid).values())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def prepare(model: str, precision: str) -> None:
    command = [str(Path(sys.executable).parent / "mainspring"), "prepare", model, *flag(precision)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(
    shape: str, model: str, precision: str, cells: dict[str, list[str]], runs: int
) -> Iterator[dict[str, Any]]:
    """One row a cell, name -> flags."""
    found: dict[str, list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(runs):
        for cell, flags in cells.items():
            found[cell].append(timed(model, *flag(precision), *flags))
    for cell, pairs in found.items():
        yield {
            "cell": cell,
            "shape": shape,
            "precision": precision,
            "seconds": [round(seconds, 2) for seconds, _ in pairs],
            "resident_mb": round(statistics.median(resident for _, resident in pairs)),
        }


def rows(shapes: list[str], precisions: list[str], runs: int) -> Iterator[dict[str, Any]]:
    yield from measure(GUIDE, GUIDE, "bf16", {"unprepared": []}, runs)
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="mainspring-start-") as folder:
            model = f"m={write_checkpoint(Path(folder) / 'm', SHAPES[shape])}"
            for precision in precisions:
                prepare(model, precision)
                cells = {"unprepared": ["--no-prepared"], "prepared": ["--prepared"]}
                yield from measure(shape, model, precision, cells, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    kept = []
    print(f"{'cell':12} {'shape':18} {'weights':8} {'seconds':>8} {'MB':>6}")
    for row in rows(options.shapes, options.precisions, options.runs):
        kept.append(row)
        print(
            f"{row['cell']:12} {row['shape']:18} {row['precision']:8} "
            f"{statistics.median(row['seconds']):8.2f} {row['resident_mb']:6} {row['seconds']}",
            flush=True,
        )
    if options.save:
        save("start", rows=kept)


if __name__ == "__main__":
    main()
