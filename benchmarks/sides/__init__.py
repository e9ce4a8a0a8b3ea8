"""The two sides of a comparison: a child process each, driven by one JSON line a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Side", "answer", "figures", "resident_mb"]


class Side:
    """A child process that measures one engine and idles between commands."""

    def __init__(self, python: str, engine: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.sides.{engine}", json.dumps(options)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def measure(self, cell: str, **options: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"cell": cell, **options}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def resident_mb() -> dict[str, float]:
    """Resident memory of this process in MB (1e6 bytes): anonymous, and file pages mapped."""
    status = Path("/proc/self/status").read_text()
    rows = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
    return {name: int(value.split()[0]) * 1024 / 1e6 for name, value in rows.items()}


def figures(
    prompted: int, output: int, after: int, *, begin: float, first: float, end: float
) -> dict[str, Any]:
    """What each side tells of a run.

    Of `prompted` tokens in all that were computed when every sequence had its first token, at time
    `first`; and of `output` tokens made in all, `after` of them later than that.
    """
    return {
        "prefill_tokens_per_second": prompted / (first - begin),
        "decode_tokens_per_second": after / max(end - first, 1e-9),
        "output_tokens_per_second": output / (end - begin),
        "resident_mb": resident_mb(),
    }


def answer(about: dict[str, Any], cells: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Run the child's end: say what it is, then answer commands until the input closes."""
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(about), file=out, flush=True)
    for line in sys.stdin:
        options = json.loads(line)
        print(json.dumps(cells[options.pop("cell")](**options)), file=out, flush=True)
