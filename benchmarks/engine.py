"""The Engine against its peers, all sides in one run, in turns; figures are ratios of medians.

    make bench                                                    every table
    python benchmarks/engine.py --cells decode --peers openvino   one kind of cell, one peer

Every engine gets the same shape with random weights, the same threads, the same random prompts as
token ids, greedy choice, and runs every sequence to its full length. Peers come from PyPI, each in
a virtual environment of its own (`make bench-peers`). Memory bandwidth of shared machines moves by
itself, so the sides take turns within each cell and a bandwidth probe stands before every turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.checkpoint import write_checkpoint
from benchmarks.record import save
from benchmarks.shapes import SHAPES
from benchmarks.sides import Side
from mainspring.kernels import load_kernels
from mainspring.kernels.cpu import measure

ROOT = Path(__file__).parents[1]
OURS = "mainspring"


@dataclass(frozen=True)
class Peer:
    environment: str
    precisions: tuple[str, ...]


PEERS = {
    "llamacpp": Peer(".venv-bench", ("int8", "int4", "bf16")),
    "openvino": Peer(".venv-openvino", ("int8", "int4")),
    "transformers": Peer(".venv-parity", ("bf16",)),
    "vllm": Peer(".venv-vllm", ("bf16",)),
}


@dataclass(frozen=True)
class Cell:
    """One run of `sequences` prompts to `output` tokens each, and the rows that come from it."""

    name: str
    precisions: tuple[str, ...]
    sequences: int
    prompt: int
    output: int
    rows: dict[str, str]
    """row name: the phase whose tokens a second are compared (prefill, decode or output)"""
    peers: tuple[str, ...] = tuple(PEERS)
    most: int = 9
    """rounds, for a cell that takes minutes"""


CELLS = [
    Cell("decode", ("int8", "int4", "bf16"), 1, 32, 128, {"decode": "decode"}),
    Cell("prefill512", ("int8", "bf16"), 1, 512, 1, {"prefill512": "prefill"}),
    Cell("prefill2048", ("int8",), 1, 2048, 1, {"prefill2048": "prefill"}),
    Cell("batch16", ("int8", "int4", "bf16"), 16, 128, 128, {"batch16": "output"}),
    Cell("batch32", ("int8", "int4"), 32, 128, 128, {"batch32": "output", "decode32": "decode"}),
    Cell(
        "long16k", ("int8",), 1, 16384, 32, {"prefill16k": "prefill", "decode16k": "decode"},
        peers=("llamacpp",), most=1,
    ),
]  # fmt: skip


def run_cell(cell: Cell, sides: dict[str, Side], rounds: int, probe: Any) -> dict[str, Any]:
    """What every side of the cell measured in each round, and the bandwidth before each."""
    sides = {name: side for name, side in sides.items() if name == OURS or name in cell.peers}
    found: dict[str, Any] = {"bandwidth_gb_s": [], "runs": {name: [] for name in sides}}
    for _ in range(min(rounds, cell.most)):
        found["bandwidth_gb_s"].append(round(measure(probe).read / 1e9, 1))
        for name, side in sides.items():
            run = side.measure(
                "batch", sequences=cell.sequences, prompt=cell.prompt, output=cell.output
            )
            found["runs"][name].append(run)
    return found


def rows_of(cell: Cell, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cell's rows: tokens a second of every side, the best peer, and our ratio to it."""
    runs: dict[str, list[dict[str, Any]]] = found["runs"]
    for row, phase in cell.rows.items():
        speeds = {
            name: [round(run[f"{phase}_tokens_per_second"], 1) for run in taken]
            for name, taken in runs.items()
        }
        medians = {name: statistics.median(taken) for name, taken in speeds.items()}
        ours = medians.pop(OURS)
        best = max(medians, key=lambda name: medians[name])
        yield {
            "cell": row,
            "bandwidth_gb_s": found["bandwidth_gb_s"],
            "tokens_per_second": speeds,
            "best": best,
            "ratio": round(ours / medians[best], 2),
            "resident_mb": {
                name: {kind: round(mb) for kind, mb in taken[-1]["resident_mb"].items()}
                for name, taken in runs.items()
            },
        }


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows of the chosen cells; the sides of a precision are alive together."""
    probe = load_kernels(threads=options.threads)
    folder = options.cache / options.shape
    if not folder.exists():
        write_checkpoint(folder, SHAPES[options.shape])
    for precision in ("int8", "int4", "bf16"):
        cells = [
            cell
            for cell in CELLS
            if precision in cell.precisions and (not options.cells or cell.name in options.cells)
        ]
        peers = [
            name
            for name in options.peers
            if precision in PEERS[name].precisions and any(name in cell.peers for cell in cells)
        ]
        if not peers:
            continue
        sides: dict[str, Side] = {}
        try:
            for name in (OURS, *peers):
                sides[name] = start(name, precision, folder, cells, options)
            about = {name: side.about for name, side in sides.items()}
            for cell in cells:
                if not set(peers) & set(cell.peers):
                    continue
                for row in rows_of(cell, run_cell(cell, sides, options.rounds, probe)):
                    yield {"shape": options.shape, "precision": precision, **row, "about": about}
        finally:
            for side in sides.values():
                side.close()


def start(
    name: str, precision: str, folder: Path, cells: list[Cell], options: argparse.Namespace
) -> Side:
    """The side, warm, with room for the largest of its cells."""
    python = sys.executable
    if name != OURS:
        python = str(options.environments / PEERS[name].environment / "bin/python")
    wanted = [cell for cell in cells if name == OURS or name in cell.peers]
    side = Side(
        python,
        "ours" if name == OURS else name,
        shape=options.shape,
        precision=precision,
        threads=options.threads,
        checkpoint=str(folder),
        tokens=max(cell.sequences * (cell.prompt + cell.output) for cell in wanted),
    )
    side.measure("batch", sequences=1, prompt=32, output=4)
    return side


def line(row: dict[str, Any]) -> str:
    speeds = {name: statistics.median(taken) for name, taken in row["tokens_per_second"].items()}
    figures = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
    return (
        f"{row['cell']:12} {row['precision']:5} {figures}; "
        f"{row['ratio']:.2f} times {row['best']}; {row['bandwidth_gb_s']} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", nargs="*", default=[], choices=[cell.name for cell in CELLS])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of the peers' ones")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/mainspring-bench")
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    for name in options.peers:
        if not (options.environments / PEERS[name].environment / "bin/python").exists():
            parser.error(f"no {name} in {PEERS[name].environment}: run `make bench-peers` first")
    rows = []
    for row in compare(options):
        rows.append(row)
        print(line(row), flush=True)
    if options.save:
        same = ("cell", "precision")
        save(f"engine-{options.shape}", rows, same, threads=options.threads)


if __name__ == "__main__":
    main()
