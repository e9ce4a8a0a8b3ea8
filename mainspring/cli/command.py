"""What all commands share: examples in their help, `--debug`, and loading only when called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["Command", "Group", "Lazy", "command"]


class Command(click.Command):
    """A click command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


def debug_option() -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        root = ctx.find_root()
        root.ensure_object(dict)
        root.obj["debug"] = root.obj.get("debug", False) or value

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )


def write_examples(formatter: click.HelpFormatter, examples: str) -> None:
    if not examples:
        return
    with formatter.section("Examples"):
        for line in examples.strip().splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


def command(
    name: str, *, examples: str, params: Sequence[click.Parameter] = ()
) -> Callable[[Callable[..., None]], Command]:
    """A command of that name; its help text is the function's docstring."""

    def decorate(function: Callable[..., None]) -> Command:
        return click.command(name, cls=Command, examples=examples, params=[*params])(function)

    return decorate


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is and what it does, known without importing it."""

    module: str
    attribute: str
    help: str


class Group(click.Group):
    """A group that imports a command's module when the command is called, not before."""

    def __init__(self, *, lazy: Mapping[str, Lazy], examples: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lazy = lazy
        self.examples = examples
        self.params.append(debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (place := self.lazy.get(cmd_name)) is None:
            return None
        found = getattr(importlib.import_module(place.module), place.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.lazy:
            near = difflib.get_close_matches(args[0], self.lazy, n=1)
            hint = f"did you mean `mainspring {near[0]}`?" if near else "see `mainspring --help`"
            raise click.UsageError(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in self.lazy.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
