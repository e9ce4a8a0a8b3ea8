"""`mainspring prepare`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mainspring.cli.command import command
from mainspring.cli.render import seconds, size
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config, ModelConfig
from mainspring.registry import resolve

__all__ = ["prepare"]


@command(
    "prepare",
    params=[*setting_options(ModelConfig, "quantize", "threads"), *setting_options(Config, "home")],
    examples="""
    mainspring prepare Qwen/Qwen2.5-0.5B-Instruct --quantize int4
    mainspring prepare ./checkpoint
    """,
)
@click.argument("model")
def prepare(model: str, **flags: Any) -> None:
    """Keep the weights of MODEL as they will be in memory, so that it starts faster.

    The file lies beside the model's own and is used by itself whenever the model is loaded with
    the same --quantize. It is for this machine; when the model's files change, prepare it again.
    """
    from mainspring.engine.weights import inspect_checkpoint, prepare_model
    from mainspring.kernels import load_kernels
    from mainspring.runtimes.loading import format_of

    config = config_from(flags)
    found = resolve(model, Path(config.home))
    begin = time.monotonic()
    with shown_progress(found.name) as progress:
        file = prepare_model(
            found.path,
            load_kernels(threads=config.defaults.threads),
            format=format_of(config.defaults, inspect_checkpoint(found.path)),
            progress=progress,
        )
    taken = seconds(time.monotonic() - begin)
    click.echo(f"prepared {found.name} in {taken}: {size(file.stat().st_size)} in {file}")


@contextmanager
def shown_progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, silence otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(f"preparing {name}", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
