"""Where results are kept: with the machine, the commit and the date."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["machine", "save"]

ROOT = Path(__file__).parents[1]


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


def save(name: str, rows: list[dict[str, Any]], same: tuple[str, ...] = (), **about: Any) -> None:
    """Keep `rows`, with what they were measured on, as `results/<name>-<date>.json`.

    With `same`, rows of the same day stay that differ from all new ones in these fields: a long
    table can be measured in pieces. Every row names its commit.
    """
    path = ROOT / f"benchmarks/results/{name}-{time.strftime('%Y%m%d')}.json"
    here = machine()
    rows = [{**row, "commit": here["commit"]} for row in rows]
    if same and path.exists():
        new = {tuple(row[field] for field in same) for row in rows}
        old = json.loads(path.read_text())["rows"]
        rows = [row for row in old if tuple(row[field] for field in same) not in new] + rows
    path.write_text(json.dumps({"machine": here, **about, "rows": rows}, indent=1) + "\n")
    print(f"saved {path.relative_to(ROOT)}")
