"""`mainspring doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mainspring.cli import predict as formulas
from mainspring.cli.checkpoint import Subject, subject_of
from mainspring.cli.command import command
from mainspring.cli.machine import Machine, describe_machine
from mainspring.cli.predict import Prediction, predict
from mainspring.cli.probe import STREAMS, Speed, measure
from mainspring.cli.render import count, facts, heading, print_json, seconds, size, table
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config, ModelConfig
from mainspring.errors import MainspringError
from mainspring.kernels import load_kernels

__all__ = ["doctor"]


@command(
    "doctor",
    params=[
        *setting_options(Config, "home"),
        *setting_options(
            ModelConfig, "context", "kv_memory", "max_running", "draft", "threads", "isa"
        ),
    ],
    examples="""
    mainspring doctor
    mainspring doctor Qwen/Qwen2.5-0.5B-Instruct
    mainspring doctor ./config.json --context 4096    no weights needed
    mainspring doctor chat --json --explain
    """,
)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--explain", is_flag=True, help="Print the formulas of the prediction too.")
def doctor(model: str | None, as_json: bool, explain: bool, **flags: Any) -> None:
    """Say what this machine can do, from a short measurement with the real kernels.

    With MODEL (a name, a directory, or the path of a config.json) also predict, before anything is
    loaded: memory, how many sequences fit, time to the first token of a 512-token prompt, and
    tokens a second for 1 and 16 streams, in each format.
    """
    config = config_from(flags)
    home, name = Path(config.home), config.defaults.draft
    subject = subject_of(model, home) if model else None
    draft = subject_of(name, home).info if subject and name else None
    machine = describe_machine()
    speed, trouble = measured(config.defaults)
    predictions = (
        predict(subject.info, subject.config, speed, machine.free_bytes, config.defaults, draft)
        if subject and speed
        else []
    )
    if as_json:
        print_json(as_document(machine, speed, trouble, subject, predictions, explain))
        return
    print_machine(machine)
    print_speed(speed, trouble)
    if subject is not None:
        print_predictions(subject, predictions)
    if explain:
        click.echo(f"\n{formulas.__doc__}")


def measured(settings: ModelConfig) -> tuple[Speed | None, str]:
    """The kernels' speed, or why they cannot be used here."""
    try:
        return measure(load_kernels(settings.isa, settings.threads)), ""
    except MainspringError as error:
        return None, error.message
    except ImportError as error:
        return None, f"the compiled kernels are missing ({error}): install Mainspring again"


def as_document(
    machine: Machine,
    speed: Speed | None,
    trouble: str,
    subject: Subject | None,
    predictions: list[Prediction],
    explain: bool,
) -> dict[str, Any]:
    document: dict[str, Any] = {"machine": machine, "speed": speed, "trouble": trouble}
    if subject is not None:
        shape = subject.info.shape
        document["model"] = {
            "name": subject.name,
            "family": shape.family,
            "parameters": shape.parameters,
            "context": shape.context,
        }
        document["predictions"] = predictions
    if explain:
        document["formulas"] = formulas.__doc__
    return document


def print_machine(machine: Machine) -> None:
    click.echo(heading("Machine"))
    total = f" of {size(machine.memory_bytes)}" if machine.memory_bytes else ""
    facts(
        [
            ("processor", f"{machine.processor} ({machine.architecture})"),
            ("instruction sets", ", ".join(machine.instruction_sets) or "none that matter here"),
            ("cores", f"{machine.cores} usable of {machine.cores_present}"),
            ("memory", f"{size(machine.free_bytes)} free{total}"),
        ]
    )


def print_speed(speed: Speed | None, trouble: str) -> None:
    click.echo(heading("\nKernels"))
    if speed is None:
        click.echo(f"  none: {trouble}")
        return
    rows = [
        ("chosen", f"{speed.isa}, {speed.threads} thread{'s' if speed.threads != 1 else ''}"),
        ("memory bandwidth", f"{speed.bandwidth / 1e9:.1f} GB/s"),
    ]
    for format, rates in speed.linear.items():
        parts = (f"{rate / 1e9:,.0f} for {rows}" for rows, rate in rates.items())
        rows.append((f"{format} products", f"{', '.join(parts)} rows (Gop/s)"))
    one, many = (speed.cache[streams] / 1e9 for streams in STREAMS)
    rows.append(("attention", f"{speed.attention / 1e9:,.0f} Gop/s of a prompt"))
    rows.append(("KV cache", f"{one:,.1f} GB/s for 1 stream, {many:,.1f} for 16"))
    rows.append(("a kernel call", seconds(speed.call)))
    facts(rows)


def print_predictions(subject: Subject, predictions: list[Prediction]) -> None:
    shape = subject.info.shape
    click.echo(
        heading(f"\n{subject.name}")
        + f": {shape.family}, {count(shape.parameters)} parameters, context {shape.context:,}\n"
    )
    head = ("FORMAT", "WEIGHTS", "KV FOR 1K", "FIT", "OF 1K", "FIRST TOKEN", "1 STREAM",
            "16 STREAMS")  # fmt: skip
    table(head, [line_of(found) for found in predictions], right=range(1, 8))
    for found in predictions:
        if not found.fits:
            click.echo(f"\n{found.format} does not fit: {found.advice}")
    click.echo(
        "\nFIT: sequences at once with the whole context, OF 1K with 1,000 tokens each. FIRST\n"
        "TOKEN is of a 512-token prompt; STREAMS are tokens a second, all together.\n"
        "--explain prints the formulas."
    )


def line_of(found: Prediction) -> tuple[str, ...]:
    return (
        found.format,
        size(found.weight_bytes),
        size(found.kv_bytes_per_token * 1000),
        f"{found.sequences_full:,}" if found.fits else "none",
        f"{found.sequences_1k:,}" if found.fits else "none",
        seconds(found.first_token_seconds),
        f"{found.tokens_per_second:,.1f}",
        f"{found.tokens_per_second_16:,.1f}",
    )
