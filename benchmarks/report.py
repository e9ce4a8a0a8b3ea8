"""Write benchmarks/README.md, and the table in the project's README.md, from results/*.json.

    python benchmarks/report.py

Of results of one kind (and shape) the newest counts.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
README = HERE.parent / "README.md"
SHAPE = "qwen2.5-0.5b"
"""of the table in the project's README"""
NAMES = {
    "mainspring": "Mainspring",
    "llamacpp": "llama.cpp",
    "openvino": "OpenVINO",
    "transformers": "transformers",
    "vllm": "vLLM",
}
HEAD = """# Benchmarks

Benchmarks are hard, and these have limits: random weights say nothing about quality, two cores are
not a server, and memory bandwidth on a shared machine moves by itself. So all sides run in turns
on the same cores, figures are medians, and what counts is the ratio. Everything below is in
`results/` with machine, commit and versions; this page is written from there by `report.py`.

`make bench-peers` installs the peers, `make bench` measures all of it and writes this page.

| script | question |
|---|---|
| `engine.py` | the Engine against its peers: one stream, prompts, batches, long context |
| `streams.py` | 16 streaming HTTP clients, against llama.cpp's server |
| `server.py` | the embedded model: start to ready, memory of all processes, streams |
| `start.py` | from the command to ready, prepared and not |
| `prefix.py` | the first token where 1,000 tokens of a prompt are known |
| `adapters.py` | what LoRA adapters add to a step of 16 sequences |
| `speculation.py` | decoding with and without speculation |
| `grammar.py` | what holding an answer to a grammar costs a token |
| `overload.py` | ten times the load a server can carry: goodput, first token, recovery |
| `kernels.py` | each kernel against the machine's limits |
| `accuracy.py` | what each format of weights and of the KV cache costs in accuracy |"""
NOTES = """Tokens a second. decode: one stream, 32 tokens in, 128 out. prefill: one prompt. batch:
16 or 32 sequences of 128 in and 128 out, end to end; decode32: the part of batch32 after every
sequence has its first token. prefill16k and decode16k: one prompt of 16,384 tokens and 32 more,
one round, only against llama.cpp. Each ratio is to the best of the peers that ran the cell. Our
error is that of one product of Mainspring's, from the table "Accuracy".

Not like for like: each engine has its own int8 and int4. Mainspring and OpenVINO quantize
activations in groups of 128 (OpenVINO's fastest setting; its default is 32), llama.cpp of 32.
Weights have one scale for 128 numbers in Mainspring, one for 32 in llama.cpp (Q8_0, Q4_0), one a
row in OpenVINO's int8 and one for 128 numbers in its int4, with 8 bits for the embedding and the
head; Mainspring's int4 has a multiplier for 32 numbers besides. The KV cache is bf16 in Mainspring,
8 bits in OpenVINO, 16 in the others. transformers runs one static batch; vLLM is the CPU build of a
third party, its own wheels being for GPUs, with 2 GiB of KV cache. llama.cpp keeps its weights
in the file's pages, which count as resident here; OpenVINO's KV cache is as large as its largest
cell needs, in all of them."""


def newest(kind: str) -> list[dict[str, Any]]:
    """The newest result of each name `<kind>-<shape>-<date>.json`, or `<kind>-<date>.json`."""
    paths = {path.stem.rpartition("-")[0]: path for path in sorted(RESULTS.glob(f"{kind}-*.json"))}
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths.values()]


def table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def by_weights(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one format together, in the order in which they were measured."""
    return sorted(rows, key=lambda row: ("int8", "int4", "bf16").index(row["precision"]))


def errors() -> dict[str, str]:
    """By format, Mainspring's error of a product: with normal activations / with outliers."""
    rows = newest("accuracy")[0]["rows"]
    kinds = ("normal", "outliers")
    return {
        row["format"]: " / ".join(f"{row['product'][kind]:.1%}" for kind in kinds) for row in rows
    }


def engine_table(result: dict[str, Any]) -> str:
    """One result of engine.py: a row a cell, every side's speed, our ratio, and memory."""
    rows, machine = by_weights(result["rows"]), result["machine"]
    sides = [name for name in NAMES if any(name in row["tokens_per_second"] for row in rows)]
    versions = {name: row["about"][name]["version"] for row in rows for name in row["about"]}
    error = errors()
    lines = []
    for row in rows:
        speeds, memory = row["tokens_per_second"], row["resident_mb"]
        lines.append(
            [row["cell"], row["precision"], error[row["precision"]]]
            + [
                round(statistics.median(speeds[side]), 1) if side in speeds else ""
                for side in sides
            ]
            + [row["ratio"], " / ".join(str(sum(memory[s].values())) for s in sides if s in memory)]
        )
    head = [
        "cell",
        "weights",
        "our error",
        *(NAMES[side] for side in sides),
        "ratio",
        "resident, MB",
    ]
    return "\n".join(
        [
            f"## Engine, {rows[0]['shape']} shape, {result['threads']} threads",
            "",
            f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, commit "
            f"{machine['commit']}, {machine['date']}; "
            f"{', '.join(versions[side] for side in sides if side != 'mainspring')}.",
            "",
            table(head, lines),
        ]
    )


def streams_table(result: dict[str, Any]) -> str:
    """One result of streams.py: a row a server."""
    row = result["rows"][0]
    figures = [name for name, value in row.items() if name.endswith(("_second", "_ms"))]
    head = ["server", *(name.replace("_", " ") for name in figures), "memory, MB"]
    rows = [
        [NAMES[side]] + [statistics.median(row[name][side]) for name in figures] + [memory]
        for side, memory in row["pss_mb"].items()
    ]
    return (
        f"## {row['clients']} streaming clients, {row['shape']} shape, {row['precision']}\n\n"
        f"128 tokens in and 128 out each, over HTTP; {row['ratio']} times the tokens a second.\n"
        "Mainspring's memory is that of all its processes.\n\n" + table(head, rows)
    )


def speculation_table(result: dict[str, Any]) -> str:
    """One result of speculation.py: the time off over the time on."""
    rows = [
        [
            row["text"],
            "none" if row["agreement"] is None else f"right at {row['agreement']:.0%}",
            row["temperature"],
            row["sequences"],
            row["ratio"],
            f"{row['steps_off']} / {row['steps_on']}",
        ]
        for row in result["rows"]
    ]
    head = ["text", "draft model", "temperature", "sequences", "ratio", "steps off / on"]
    return "## Speculation\n\n" + table(head, rows)


def start_table(result: dict[str, Any]) -> str:
    """One result of start.py: seconds from the command to ready."""
    rows = [
        [row["cell"], row["shape"], row["precision"], round(statistics.median(row["seconds"]), 2)]
        for row in result["rows"]
    ]
    return "## Start to ready\n\n" + table(["start", "shape", "weights", "seconds"], rows)


def prefix_table(result: dict[str, Any]) -> str:
    """One result of prefix.py: milliseconds to the first token."""
    rows = [[row["cell"], round(statistics.median(row["ms"]), 1)] for row in result["rows"]]
    return "## First token with a shared prefix\n\n" + table(["prefix", "ms"], rows)


def accuracy_table(result: dict[str, Any]) -> str:
    """One result of accuracy.py."""
    rows = result["rows"]
    lines = [
        "## Accuracy",
        "",
        "Relative error (RMS) of one product of 896 numbers against float64, with normal",
        "activations and with four channels 100 times the rest, as trained models have them; and",
        f"of the embedded model over {rows[0]['tokens']} tokens of the manual: divergence from",
        "float32 in nats a token, and how often the likeliest token is the same.",
        "",
    ]
    cells = [
        [
            row["format"],
            f"{row['product']['normal']:.2%}",
            f"{row['product']['outliers']:.2%}",
            f"{row['kl']:.5f}",
            f"{row['agreement']:.1%}",
        ]
        for row in rows
    ]
    columns = ["weights", "product", "with outliers", "KL", "same choice"]
    return "\n".join(lines) + "\n" + table(columns, cells) + kv_table(result.get("kv", []))


def kv_table(rows: list[dict[str, Any]]) -> str:
    """What accuracy.py says of the KV cache; nothing in results of before it did."""
    if not rows:
        return ""
    text = (
        "\n\nRelative error (RMS) of attention over a context of 2,048 tokens against float64,\n"
        "with normal keys and with four channels of the keys 100 times the rest.\n\n"
    )
    cells = [[row["format"], f"{row['normal']:.2%}", f"{row['outliers']:.2%}"] for row in rows]
    return text + table(["KV cache", "error", "with outliers"], cells)


def grammar_table(result: dict[str, Any]) -> str:
    """One result of grammar.py: microseconds."""
    fields = ("grammar", "compile", "first", "mask", "apply", "push", "token", "p99", "worst")
    rows = [[row[field] for field in fields] for row in result["rows"]]
    text = (
        f"A vocabulary of {result['vocabulary']:,} tokens, read once in {result['learn']} ms.\n"
        "Microseconds: compiling and the first mask, once for a grammar; then for each token the\n"
        "medians of finding what may come, forbidding the rest and following the token drawn, of\n"
        "all three, their 99th percentile and the worst of 300.\n\n"
    )
    return f"## Structured output\n\n{text}{table(list(fields), rows)}"


TABLES = {
    "grammar": grammar_table,
    "accuracy": accuracy_table,
    "streams": streams_table,
    "start": start_table,
    "prefix": prefix_table,
    "speculation": speculation_table,
}


def page() -> str:
    """The whole page."""
    engines = [engine_table(result) for result in newest("engine")]
    others = [render(result) for kind, render in TABLES.items() for result in newest(kind)]
    return "\n\n".join([HEAD, *engines, NOTES, *others]) + "\n"


def readme() -> str:
    """The project's README with its table between the marks written anew."""
    result = next(r for r in newest("engine") if r["rows"][0]["shape"] == SHAPE)
    error = errors()
    rows = []
    for row in by_weights(result["rows"]):
        speeds = {
            name: round(statistics.median(runs), 1)
            for name, runs in row["tokens_per_second"].items()
        }
        best = row["best"]
        ratio = row["ratio"]
        weights = row["precision"]
        mine = [row["cell"], weights, error[weights], speeds["mainspring"]]
        rows.append([*mine, NAMES[best], speeds[best], ratio])
    columns = ["cell", "weights", "error", "Mainspring", "best peer", "its figure", "ratio"]
    ran = {name for row in result["rows"] for name in row["tokens_per_second"]} - {"mainspring"}
    peers = ", ".join(NAMES[name] for name in NAMES if name in ran)
    block = (
        f"<!-- measured -->\nPeers in this run: {peers}.\n\n{table(columns, rows)}\n<!-- end -->"
    )
    text = README.read_text(encoding="utf-8")
    return re.sub(r"<!-- measured -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
