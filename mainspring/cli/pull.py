"""`mainspring pull`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.command import command
from mainspring.cli.render import size
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config
from mainspring.errors import BadRequest
from mainspring.registry.files import GGUF
from mainspring.registry.manifest import Manifest
from mainspring.registry.pull import Progress, pull_from_hub, pull_path

if TYPE_CHECKING:
    import rich.progress

__all__ = ["pull"]


@command(
    "pull",
    params=setting_options(Config, "home"),
    examples="""
    mainspring pull Qwen/Qwen2.5-0.5B-Instruct
    mainspring pull Qwen/Qwen2.5-0.5B-Instruct@main --name chat
    mainspring pull bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M    one of its GGUF files
    mainspring pull ./checkpoint --name mine          copy a directory or a GGUF file
    mainspring pull ./checkpoint --name mine --link   leave it where it is
    HF_ENDPOINT=https://hub.example HF_TOKEN=... mainspring pull team/private
    """,
)
@click.argument("source")
@click.option("--revision", help="Branch, tag or commit of the hub's repository. [default: main]")
@click.option("--name", default="", help="What to call it here. [default: the id]")
@click.option(
    "--link", is_flag=True, help="What is here stays in its place; only digests are kept."
)
def pull(source: str, revision: str | None, name: str, link: bool, home: str | None) -> None:
    """Bring SOURCE into the home: a Hugging Face id, OWNER/NAME[@REVISION], or a path.

    Of a repository of GGUF files OWNER/NAME:TAG names one, by how it is stored (Q4_K_M) or by the
    file's name. Only the files a model needs are fetched, each checked against the hub's digest,
    the revision pinned to its commit. An interrupted pull goes on where it stopped when the command
    is run again. Pickle weights are refused. HF_ENDPOINT names another hub, HF_TOKEN a token.
    """
    place = Path(config_from({"home": home}).home)
    with resumable(), shown_progress() as progress:
        if is_path(source):
            if revision:
                raise BadRequest(f"{source} is a path, which has no revision: leave it out")
            manifest = pull_path(
                Path(source).expanduser(), place, name=name, link=link, progress=progress,
                check=refuse_unknown_family,
            )  # fmt: skip
        else:
            manifest = from_hub(source, revision, name, link, place, progress)
    click.echo(summary(manifest))


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-c loses nothing: say so."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted: the same command goes on from here", err=True)
        raise


def is_path(source: str) -> bool:
    """A path by its form is never looked up on a hub; OWNER/NAME is one if it exists here."""
    by_form = source.startswith((".", "/", "~"))
    path = Path(source.replace("\0", "")).expanduser()
    exists = path.is_dir() or (path.suffix == GGUF and path.is_file())
    if by_form and not exists:
        raise BadRequest(
            f"{source!r} is not a directory or a {GGUF} file: give one, or OWNER/NAME of a hub"
        )
    return exists


def from_hub(
    source: str, revision: str | None, name: str, link: bool, home: Path, progress: Progress
) -> Manifest:
    from mainspring.registry.hub import Hub

    source, _, tag = source.partition(":")
    id, _, after = source.partition("@")
    if after and revision and after != revision:
        raise BadRequest(f"two revisions, {after!r} and {revision!r}: give one")
    if link:
        raise BadRequest("--link is for directories and files: leave it out")
    return pull_from_hub(
        Hub.from_environment(), id, home, revision=revision or after or "main", tag=tag,
        name=name,
        progress=progress, check=refuse_unknown_family,
    )  # fmt: skip


def refuse_unknown_family(path: Path) -> None:
    """Look at config.json before gigabytes come; at a GGUF file when it has."""
    from mainspring.cli.checkpoint import inspect_config_file
    from mainspring.engine.weights import inspect_checkpoint

    if path.suffix == GGUF:
        inspect_checkpoint(path)
    else:
        inspect_config_file(path / "config.json")


def summary(manifest: Manifest) -> str:
    at = f" at {manifest.revision[:12]}" if manifest.revision else ""
    kind = "linked" if manifest.linked else "pulled"
    return (
        f"{kind} {manifest.name} ({size(manifest.size)}, {len(manifest.files)} files) from "
        f"{manifest.source}{at}\ntry: mainspring run {manifest.name}"
    )


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Bars on a terminal, a line for each finished file otherwise."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Speed(ProgressColumn):
        """In the units of the sizes beside it, which rich's own column does not take."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{size(speed)}/s" if speed else "")

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        yield Bars(bars)


class Bars:
    def __init__(self, bars: rich.progress.Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, rich.progress.TaskID] = {}

    def files(self, sizes: Mapping[str, int]) -> None:
        for name, total in sizes.items():
            self.tasks[name] = self.bars.add_task(name, total=total)

    def moved(self, name: str, size: int) -> None:
        self.bars.advance(self.tasks[name], size)


class Lines:
    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def files(self, sizes: Mapping[str, int]) -> None:
        self.left |= sizes
        self.sizes = {**getattr(self, "sizes", {}), **sizes}

    def moved(self, name: str, size_: int) -> None:
        self.left[name] -= size_
        if self.left[name] == 0:
            click.echo(f"{name}  {size(self.sizes[name])}", err=True)
