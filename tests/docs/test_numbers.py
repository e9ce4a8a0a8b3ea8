"""Published figures are those of the kept results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table_figures(page: Path, columns: int) -> set[tuple[str, ...]]:
    """The last `columns` cells of every table row that ends in numbers."""
    rows = re.findall(r"^\|(.+)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [tuple(cell.strip() for cell in row.split("|")) for row in rows]
    return {row[-columns:] for row in cells if re.fullmatch(r"\d+\.\d+", row[-1])}


def test_the_benchmark_page_is_written_from_the_results() -> None:
    before = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    code = "import report; print(report.page(), end='')"
    written = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert before == written, "run: python benchmarks/report.py"


def test_the_readmes_figures_are_results() -> None:
    results = set()
    for path in (ROOT / "benchmarks/results").glob("engine-*.json"):
        for row in json.loads(path.read_text())["rows"]:
            ours, peer = (sorted(row[side])[len(row[side]) // 2] for side in ("ours", "peer"))
            results.add((str(ours), str(peer), str(row["ratio"])))
    published = table_figures(ROOT / "README.md", 3)
    assert published
    assert published <= results


def test_the_guides_score_is_the_recorded_one() -> None:
    score = json.loads((ROOT / "training/results.json").read_text())["evaluation"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    claimed = re.search(
        r"answers (\S+) % of (\d+) questions .*? refuses (\S+) % of (\d+)", readme, re.DOTALL
    )
    assert claimed is not None
    assert claimed.groups() == (
        f"{100 * score['right']:.1f}",
        str(score["held_out"]),
        f"{100 * score['refused']:.1f}",
        str(score["out_of_domain"]),
    )
