"""`mainspring ps` and `mainspring stop`: the models of the running server."""

from __future__ import annotations

from typing import Any

import click

from mainspring.cli.client import Client
from mainspring.cli.command import command
from mainspring.cli.render import print_json, since, size, table
from mainspring.cli.settings import client_options, config_from

__all__ = ["ps", "stop"]

SERVER = client_options()


@command(
    "ps",
    params=SERVER,
    examples="""
    mainspring ps
    mainspring ps --port 8001 --json
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def ps(as_json: bool, **flags: Any) -> None:
    """List the models that the running server has loaded, and what they do now.

    A server with API keys wants one in MAINSPRING_API_KEY.
    """
    client = Client(config_from(flags))
    models = client.models()
    if as_json:
        print_json(models)
    elif not models:
        click.echo(f"{client.address} has no model loaded")
    else:
        head = ("NAME", "STATE", "FORMAT", "MEMORY", "CONTEXT", "RUNNING", "WAITING", "LOADED")
        table(head, [line_of(model) for model in models], right=(3, 4, 5, 6))


def line_of(model: dict[str, Any]) -> tuple[str, ...]:
    stats = model.get("stats") or {}
    memory = (model.get("weight_bytes") or 0) + (model.get("kv_bytes") or 0)
    created = model.get("created")
    return (
        str(model.get("name", "-")),
        state_of(model),
        str(model.get("format", "-")),
        size(memory) if memory else "-",
        f"{model['context']:,}" if model.get("context") else "-",
        str(stats.get("running", "-")),
        str(stats.get("waiting", "-")),
        since(created) if created else "-",
    )


def state_of(model: dict[str, Any]) -> str:
    """ready, or why not: loading, unloading, or what ails its Worker."""
    return "ready" if model.get("unready") is None else str(model["unready"])


@command(
    "stop",
    params=SERVER,
    examples="""
    mainspring stop chat
    MAINSPRING_API_KEY=secret mainspring stop chat --port 8001
    """,
)
@click.argument("model")
def stop(model: str, **flags: Any) -> None:
    """Unload MODEL from the running server: its Worker ends, its memory is free.

    The server goes on with its other models; ctrl-c or SIGTERM ends the server itself.
    """
    config = config_from(flags)
    # The server answers when the model's requests have ended, at the latest after its drain time.
    client = Client(config, timeout=config.drain_seconds + 30)
    client.post("/admin/models/unload", {"model": model})
    click.echo(f"{model} is unloaded")
