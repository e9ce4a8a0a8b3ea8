"""Write benchmarks/README.md from results/*.json: `python benchmarks/report.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
HEAD = """# Benchmarks

Benchmarks are hard, and these have limits: random weights say nothing about quality, two cores are
not a server, and memory bandwidth on a shared machine moves by itself. So both sides run in turns
on the same cores, figures are medians, and what counts is the ratio. Everything below is in
`results/` with machine, commit and versions; this page is written from there by `report.py`.

| script | question |
|---|---|
| `engine.py` | the Engine against llama.cpp: one stream, prompts, batches (`make bench`) |
| `server.py` | start to ready, memory of all processes, streams over HTTP |
| `overload.py` | ten times the load a server can carry: goodput, first token, recovery |
| `kernels.py` | each kernel against the machine's limits |
| `accuracy.py` | what each weight format costs in accuracy |
"""


def engine_table(path: Path) -> str:
    """One result file of engine.py as Markdown."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = result["rows"]
    machine = result["machine"]
    peer = rows[0]["versions"][1]["version"]
    lines = [
        f"## Engine, {rows[0]['shape']} shape, {rows[0]['versions'][0]['threads']} threads",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, commit "
        f"{machine['commit']}, {machine['date']}; {peer}. Tokens a second.",
        "",
        "| cell | weights | Mainspring | llama.cpp | ratio | resident, MB | llama.cpp, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = [round(sum(row[f"{side}_resident_mb"].values())) for side in ("ours", "peer")]
        lines.append(
            f"| {row['cell']} | {row['precision']} | {statistics.median(row['ours'])} "
            f"| {statistics.median(row['peer'])} | {row['ratio']} | {sizes[0]} | {sizes[1]} |"
        )
    return "\n".join(lines)


def accuracy_table(path: Path) -> str:
    """One result file of accuracy.py as Markdown."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = [
        "## Accuracy",
        "",
        "Relative error (RMS) of one product of 896 numbers against float64, with normal",
        "activations and with four channels 100 times the rest, as trained models have them; and",
        f"of the embedded model over {rows[0]['tokens']} tokens of the manual: divergence from",
        "float32 in nats a token, and how often the likeliest token is the same.",
        "",
        "| weights | product | with outliers | KL | same choice |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['format']} | {row['product']['normal']:.2%} | "
            f"{row['product']['outliers']:.2%} | {row['kl']:.5f} | {row['agreement']:.1%} |"
        )
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    tables = [engine_table(path) for path in sorted(RESULTS.glob("engine-*.json"))]
    notes = (
        "decode: one stream, 32 tokens in, 128 out. prefill: one prompt. batch: 16 or 32 sequences "
        "of 128 in and 128 out,\nend to end. llama.cpp keeps its weights in the file's pages, "
        "which count as resident here."
    )
    accuracy = [accuracy_table(path) for path in sorted(RESULTS.glob("accuracy-*.json"))]
    return "\n\n".join([HEAD.rstrip(), *tables, notes, *accuracy]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
