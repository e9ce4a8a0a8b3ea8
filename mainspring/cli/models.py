"""`mainspring list`, `show` and `rm`: the models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.command import command
from mainspring.cli.render import ago, count, facts, heading, print_json, size, table
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config
from mainspring.errors import BadRequest, MainspringError, ModelError, ModelNotFound
from mainspring.registry import EMBEDDED, ModelPath, resolve
from mainspring.registry.catalog import Catalog
from mainspring.registry.files import directory_of
from mainspring.registry.manifest import Manifest

if TYPE_CHECKING:
    from mainspring.engine.weights import CheckpointInfo

__all__ = ["list_", "rm", "show"]

HOME = setting_options(Config, "home")
TEMPLATE_LINES = 6


@command(
    "list",
    params=HOME,
    examples="""
    mainspring list
    mainspring list --json | jq -r '.[].name'
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def list_(as_json: bool, home: str | None) -> None:
    """List the models on this machine: the embedded one and the pulled ones."""
    place = Path(config_from({"home": home}).home)
    rows = [row_of(name, place) for name in (EMBEDDED, *Catalog(place).names())]
    if as_json:
        print_json(rows)
        return
    table(
        ("NAME", "FAMILY", "PARAMETERS", "SIZE", "PREPARED", "PULLED"),
        [
            (
                row["name"],
                row["family"] or row["error"],
                count(row["parameters"]) if row["parameters"] else "-",
                size(row["size"]) if row["size"] else "-",
                ", ".join(row["prepared"]) or "-",
                ago(row["pulled"]) if row["pulled"] else row["source"],
            )
            for row in rows
        ],
        right=(2, 3),
    )


def row_of(name: str, home: Path) -> dict[str, Any]:
    """One model for the list; a model that cannot be read is a row with `error`."""
    row: dict[str, Any] = {
        "name": name, "family": "", "parameters": 0, "size": 0, "digest": "", "source": "",
        "revision": "", "pulled": "", "path": "", "prepared": [], "error": "",
    }  # fmt: skip
    try:
        manifest = manifest_of(name, home)
        if manifest is not None:
            row |= {"source": manifest.source, "revision": manifest.revision}
            row["pulled"] = manifest.pulled
        else:
            row["source"] = "in the package" if name == EMBEDDED else "put there"
        found = resolve(name, home)
        row |= {"path": str(found.path), "digest": found.digest}
        row["size"] = sum(files_of(found.path).values())
        row["prepared"] = [file.stem.rpartition(".")[2] for file in prepared_of(found.path)]
        info = inspect(found)
        row |= {"family": info.family, "parameters": info.parameters}
    except MainspringError as error:
        row["error"] = error.message
    return row


def manifest_of(name: str, home: Path) -> Manifest | None:
    entry = Catalog(home).get(name)
    return entry.manifest if entry else None


def prepared_of(path: Path) -> list[Path]:
    """The files that `mainspring prepare` made of a checkpoint, whether they still fit or not."""
    from mainspring.engine.prepared import prepared_path
    from mainspring.engine.quantize import FORMATS

    paths = (prepared_path(path, format) for format in FORMATS)
    return [path for path in paths if path.is_file()]


def files_of(path: Path) -> dict[str, int]:
    """The sizes of a checkpoint's files, and of those made of it."""
    files = [path, *prepared_of(path)] if path.is_file() else path.iterdir()
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def inspect(found: ModelPath) -> CheckpointInfo:
    from mainspring.engine.weights import inspect_checkpoint

    return inspect_checkpoint(found.path)


@command(
    "show",
    params=HOME,
    examples="""
    mainspring show mainspring-guide
    mainspring show ./checkpoint
    mainspring show Qwen/Qwen2.5-0.5B-Instruct --verify     hash every file again
    """,
)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--verify", is_flag=True, help="Compare every file with the digest it came with.")
def show(model: str, as_json: bool, verify: bool, home: str | None) -> None:
    """Show what is known of MODEL: shape, digest, source, files, memory in each format."""
    place = Path(config_from({"home": home}).home)
    found = resolve(model, place)
    manifest = manifest_of(found.name, place) if found.digest else None
    if verify:
        check(found, manifest)
    known = describe(found, manifest, inspect(found))
    if as_json:
        print_json(known)
    else:
        print_model(known, verified=verify)


def check(found: ModelPath, manifest: Manifest | None) -> None:
    if manifest is None:
        raise BadRequest(
            f"{found.name!r} has no recorded digests to verify: `mainspring pull` records them"
        )
    if damage := manifest.damage(directory_of(found.path), contents=True):
        raise BadRequest(
            f"{found.name!r}: {'; '.join(damage)}: `mainspring rm {found.name}` and pull it again"
        )


def describe(found: ModelPath, manifest: Manifest | None, info: CheckpointInfo) -> dict[str, Any]:
    """Everything `show` says, as JSON has it."""
    from mainspring.engine.weights import rounding_error
    from mainspring.runtimes.template import read_template

    files = files_of(found.path)
    sums = {file.name: file.sha256 for file in manifest.files} if manifest else {}
    return {
        "name": found.name,
        "family": info.family,
        "parameters": info.parameters,
        "context": info.context,
        "vocabulary": info.vocabulary,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "rounding_error": rounding_error(found.path) if info.quantization else {},
        "weight_bytes": dict(info.weight_bytes),
        "kv_bytes_per_token": dict(info.kv_bytes),
        "path": str(found.path),
        "source": manifest.source if manifest else "",
        "revision": manifest.revision if manifest else "",
        "pulled": manifest.pulled if manifest else "",
        "digest": found.digest,
        "files": [
            {"name": name, "size": files[name], "sha256": sums.get(name, "")}
            for name in sorted(files)
        ],
        "chat_template": read_template(found.path).source or "",
    }


def print_model(known: dict[str, Any], *, verified: bool) -> None:
    click.echo(heading(known["name"]))
    rows = [
        ("family", known["family"]),
        ("parameters", f"{count(known['parameters'])} ({known['parameters']:,})"),
        ("context", f"{known['context']:,} tokens"),
        ("vocabulary", f"{known['vocabulary']:,}"),
        ("stored as", known["dtype"]),
        ("directory", known["path"]),
    ]
    if known["quantization"]:
        rows.insert(5, ("quantized by", known["quantization"]))
    if errors := known["rounding_error"]:
        lost = ", ".join(f"{format} {error:.2%}" for format, error in errors.items())
        rows.insert(6, ("rounding loses", lost))
    if known["source"]:
        at = f" at {known['revision']}" if known["revision"] else ""
        rows.append(("source", f"{known['source']}{at}, {ago(known['pulled'])}"))
    if known["digest"]:
        rows.append(("digest", f"sha256:{known['digest']}{' (verified)' if verified else ''}"))
    facts(rows)
    kv = known["kv_bytes_per_token"]
    click.echo(heading("\nMemory"))
    facts([(name, size(value)) for name, value in known["weight_bytes"].items()])
    each = ", ".join(f"{size(value * 1000)} in {name}" for name, value in kv.items())
    click.echo(f"  and for each 1,000 tokens of context {each}")
    click.echo(heading("\nFiles"))
    facts([(file["name"], size(file["size"])) for file in known["files"]])
    print_template(known["chat_template"])


def print_template(template: str) -> None:
    if not template:
        click.echo("\nNo chat template: `mainspring run` and chat completions need one.")
        return
    lines = template.strip().splitlines()
    click.echo(heading("\nChat template"))
    for line in lines[:TEMPLATE_LINES]:
        shown = "".join(c if c.isprintable() else " " for c in line)
        click.echo(f"  {shown if len(shown) <= 96 else shown[:93] + '...'}")
    if len(lines) > TEMPLATE_LINES:
        click.echo(f"  ... {len(lines) - TEMPLATE_LINES} more lines")


@command(
    "rm",
    params=HOME,
    examples="""
    mainspring rm Qwen/Qwen2.5-0.5B-Instruct
    """,
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
def rm(models: tuple[str, ...], home: str | None) -> None:
    """Delete pulled models from the home, prepared forms and prompts on disk included.

    Of a linked model the directory stays as it was before.
    """
    place = Path(config_from({"home": home}).home)
    catalog = Catalog(place)
    for name in models:
        if name == EMBEDDED:
            raise BadRequest(f"{EMBEDDED} is part of the package: it goes with `pip uninstall`")
        if name not in catalog:
            resolve(name, place)  # raises with the nearest names when it is unknown
            raise ModelNotFound(f"{name!r} is not a pulled model: delete its directory yourself")
        freed = forget(catalog, name)
        freed += catalog.remove(name)
        click.echo(f"removed {name}, {size(freed)} freed")


def forget(catalog: Catalog, name: str) -> int:
    """Delete what was made of a model outside its place in the home; its bytes.

    That is what it kept of prompts and, in a linked model's directory, its prepared forms.
    """
    from mainspring.runtimes.disk import delete_blocks

    place = catalog.path(name)
    freed = delete_blocks(place, catalog.home)
    try:
        entry = catalog.get(name)
    except ModelError:
        return freed  # what cannot be read can still be removed
    if entry is None or entry.path == place:
        return freed
    files = prepared_of(entry.path)
    freed += delete_blocks(entry.path, catalog.home)
    freed += sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    return freed
