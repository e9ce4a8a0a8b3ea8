"""`mainspring bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mainspring.cli.checkpoint import config_of
from mainspring.cli.command import command
from mainspring.cli.machine import describe_machine
from mainspring.cli.measure import Load, Measured, Tell, measure_format
from mainspring.cli.render import heading, print_json, seconds, size, table
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config, ModelConfig
from mainspring.kernels import Format, load_kernels
from mainspring.registry import EMBEDDED

__all__ = ["bench"]

FORMATS: dict[str, Format] = {
    "none": "bf16", "int8": "int8", "int4": "int4", "float32": "float32",
}  # fmt: skip


@command(
    "bench",
    params=[*setting_options(Config, "home"), *setting_options(ModelConfig, "threads", "isa")],
    examples="""
    mainspring bench
    mainspring bench Qwen/Qwen2.5-0.5B-Instruct --quantize int8 --quantize int4
    mainspring bench ./config.json --sequences 32 --prompt 128    a shape alone is enough
    mainspring bench --json > here.json
    """,
)
@click.argument("model", default=EMBEDDED)
@click.option(
    "--quantize", "quantize", type=click.Choice(list(FORMATS)), multiple=True, default=("none",),
    show_default=True, help="Format of the weights; give it again for more than one.",
)  # fmt: skip
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens in.")
@click.option(
    "--output", type=click.IntRange(2), default=128, show_default=True, help="Tokens out."
)
@click.option(
    "--sequences", type=click.IntRange(1, 1024), default=16, show_default=True,
    help="Streams of the batch.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of weights and prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def bench(
    model: str,
    quantize: tuple[str, ...],
    prompt: int,
    output: int,
    sequences: int,
    seed: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure the shape of MODEL on this machine: a name, a directory, or a config.json.

    The weights are random, so nothing is downloaded and the text means nothing; time does not
    depend on their values. The Engine runs in this process: no server, no HTTP.
    """
    config = config_from(flags)
    shape = config_of(model, Path(config.home))
    load = Load(prompt=prompt, output=output, sequences=sequences, seed=seed)
    kernels = load_kernels(config.defaults.isa, config.defaults.threads)
    with shown() as tell:
        results = [
            measure_format(shape, kernels, FORMATS[name], load, tell)
            for name in dict.fromkeys(quantize)
        ]
    if as_json:
        machine = describe_machine()
        print_json({"model": model, "machine": machine, "load": load, "results": results})
    else:
        print_results(model, load, results)


def print_results(model: str, load: Load, results: list[Measured]) -> None:
    one = results[0]
    click.echo(
        heading(model)
        + f"\nrandom weights, {one.isa} kernels, {one.threads} threads, {load.prompt} tokens in, "
        f"{load.output} out\n"
    )
    head = ("FORMAT", "WEIGHTS", "FIRST TOKEN", "PROMPT", "1 STREAM", f"{load.sequences} STREAMS",
            "ALL RUNNING")  # fmt: skip
    rows = [
        (
            found.format,
            size(found.weight_bytes),
            seconds(found.first_token_seconds),
            f"{found.prompt_tokens_per_second:,.0f}",
            f"{found.tokens_per_second:,.1f}",
            f"{found.batch_tokens_per_second:,.1f}",
            f"{found.batch_decode_tokens_per_second:,.1f}",
        )
        for found in results
    ]
    table(head, rows, right=range(1, 7))
    click.echo(
        "\nTokens a second. STREAMS counts from the first prompt's arrival to the last token,\n"
        "ALL RUNNING only steps in which every stream got a token. The batch has no step\n"
        "budget; a server has one."
    )


@contextmanager
def shown() -> Iterator[Tell]:
    """A bar on a terminal, silence otherwise."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield tell
