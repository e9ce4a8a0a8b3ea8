"""Published figures are those of the kept results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_published_figures_are_written_from_the_results() -> None:
    code = "import report, json; print(json.dumps([report.page(), report.readme()]))"
    written = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pages = [ROOT / "benchmarks/README.md", ROOT / "README.md"]
    published = [page.read_text(encoding="utf-8") for page in pages]
    assert "| decode | int8 |" in published[1]
    assert published == json.loads(written), "run: python benchmarks/report.py"


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
