"""The command line: find the command, run it, turn every failure into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from mainspring import __version__
from mainspring.cli.command import Group, Lazy
from mainspring.errors import MainspringError

__all__ = ["main"]

COMMANDS = {
    "serve": Lazy("mainspring.cli.serve", "serve", "Serve models over HTTP."),
    "run": Lazy("mainspring.cli.run", "run", "Talk to a model in the terminal."),
    "pull": Lazy("mainspring.cli.pull", "pull", "Bring a model from a hub or a directory."),
    "prepare": Lazy("mainspring.cli.prepare", "prepare", "Make a model start faster."),
    "list": Lazy("mainspring.cli.models", "list_", "List the models on this machine."),
    "show": Lazy("mainspring.cli.models", "show", "Show what is known of a model."),
    "ps": Lazy("mainspring.cli.server", "ps", "List the models that the server has loaded."),
    "stop": Lazy("mainspring.cli.server", "stop", "Unload a model from the server."),
    "rm": Lazy("mainspring.cli.models", "rm", "Delete pulled models."),
    "bench": Lazy("mainspring.cli.bench", "bench", "Measure a model's shape on this machine."),
    "doctor": Lazy(
        "mainspring.cli.doctor", "doctor", "Say what this machine can do, and predict a model."
    ),
}

EXAMPLES = """
mainspring serve                                serve the embedded model on 127.0.0.1:8000
mainspring run mainspring-guide                 talk to it
mainspring pull Qwen/Qwen2.5-0.5B-Instruct      bring another one
mainspring doctor Qwen/Qwen2.5-0.5B-Instruct    predict its memory and speed here
"""

ERROR, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def build_group() -> Group:
    """The whole command line."""
    group = Group(
        name="mainspring",
        lazy=COMMANDS,
        examples=EXAMPLES,
        help="The application server for AI models: runs them, serves them, and shows where every "
        "token's time went.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        invoke_without_command=True,
        no_args_is_help=False,
        callback=help_when_alone,
    )
    return click.version_option(
        __version__, prog_name="mainspring", message="%(prog)s %(version)s"
    )(group)


@click.pass_context
def help_when_alone(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 error, 2 usage, 130 ctrl-c."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    state: dict[str, bool] = {}
    try:
        code = build_group().main(
            list(arguments), prog_name="mainspring", standalone_mode=False, obj=state
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`| head`): the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return INTERRUPTED
    except Exception as error:
        if state.get("debug") and not isinstance(error, click.ClickException):
            raise
        click.echo(f"mainspring: {one_line(explain(error))}", err=True)
        return USAGE if isinstance(error, click.UsageError) else ERROR
    return code if isinstance(code, int) else 0


def explain(error: Exception) -> str:
    """What went wrong and what to do."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "mainspring"
        text = error.format_message().rstrip(".")
        if text.endswith("?") or "mainspring" in text:
            return text[:1].lower() + text[1:]
        return f"{text[:1].lower()}{text[1:]}: see `{path} --help`"
    if isinstance(error, MainspringError):
        return error.message
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: check the path and what you may do there"
    return f"{type(error).__name__}: {error}: this is a bug in Mainspring; --debug shows where"


def one_line(text: str) -> str:
    """`text` without line breaks and without control characters (a name may hold any byte)."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in joined)
