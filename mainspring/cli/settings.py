"""Flags made from the settings table, so that the two cannot differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import click
import msgspec
from msgspec import Struct

from mainspring.config import Config, ModelConfig, help_of, load_config

__all__ = ["client_options", "config_from", "setting_options"]

NEVER_FLAGS = {"api_keys", "models"}
"""A key would show in the process list; models are the arguments of `serve`."""
SIZES = {"kv_memory", "body_limit", "adapter_memory"}
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


class Setting(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Text checked against one row of the table, with the bounds written there."""

    def __init__(self, kind: type[Struct], field: str) -> None:
        self.field = field
        self.hint = get_type_hints(kind, include_extras=True)[field]
        self.choices = choices_of(kind, field)
        self.name = "|".join(self.choices) if self.choices else type_name(kind, field)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{self.name}]" if self.choices else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        read: Any = value
        if self.field in SIZES:
            read = bytes_of(value)
        elif self.name == "list":
            read = [part.strip() for part in value.split(",") if part.strip()]
        try:
            return msgspec.convert(read, self.hint, strict=False)
        except msgspec.ValidationError as error:
            expected = f"one of {', '.join(self.choices)}" if self.choices else str(error)
            text = expected.replace("`", "").replace("Expected", "expected")
            self.fail(f"{value!r}: {text}", param, ctx)


def bytes_of(text: str) -> str:
    """'2GiB', '1.5G', '4096' -> bytes as digits; anything else unchanged, to be refused."""
    if (match := SIZE.fullmatch(text.strip())) is None:
        return text
    return str(int(float(match[1]) * (1 << UNITS[match[2].lower()])))


def choices_of(kind: type[Struct], field: str) -> tuple[str, ...]:
    found = plain_type(kind, field)
    pattern = getattr(found, "pattern", None) or ""
    match = re.fullmatch(r"\^\(([a-z0-9|]+)\)\$", pattern)
    return tuple(match[1].split("|")) if match else ()


def type_name(kind: type[Struct], field: str) -> str:
    if field in SIZES:
        return "bytes"
    names = {"IntType": "integer", "FloatType": "number", "VarTupleType": "list"}
    return names.get(type(plain_type(kind, field)).__name__, "text")


def plain_type(kind: type[Struct], field: str) -> Any:
    found = next(f.type for f in fields_of(kind) if f.name == field)
    return found.type if isinstance(found, msgspec.inspect.Metadata) else found


def fields_of(kind: type[Struct]) -> Iterable[msgspec.inspect.Field]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def option_of(kind: type[Struct], field: str) -> click.Option:
    default = next(f.default for f in fields_of(kind) if f.name == field)
    text = help_of(kind)[field]
    flag = "--" + field.replace("_", "-")
    if isinstance(plain_type(kind, field), msgspec.inspect.BoolType):
        shown = "on" if default else "off"
        return click.Option(
            [f"{flag}/--no-{flag[2:]}"], default=None, help=f"{text} [default: {shown}]"
        )
    if default not in ((), None, msgspec.NODEFAULT):
        text = f"{text} [default: {default}]"
    return click.Option([flag], type=Setting(kind, field), default=None, help=text)


def setting_options(kind: type[Struct], *names: str) -> list[click.Parameter]:
    """Options for the named settings of the table; for all that may be flags without names."""
    wanted = names or tuple(name for name in help_of(kind) if name not in NEVER_FLAGS)
    return [option_of(kind, name) for name in wanted]


def client_options() -> list[click.Parameter]:
    """--host and --port of a server that runs already."""
    host, port = option_of(Config, "host"), option_of(Config, "port")
    host.help = "Where the server listens. [default: 127.0.0.1]"
    port.help = "Its port. [default: 8000]"
    return [host, port]


def config_from(flags: Mapping[str, Any], *, file: str | None = None) -> Config:
    """The Config of environment and file, with the flags that were given over it."""
    given = {name: value for name, value in flags.items() if value is not None}
    top: dict[str, Any] = {n: v for n, v in given.items() if n not in help_of(ModelConfig)}
    if model := {n: v for n, v in given.items() if n in help_of(ModelConfig)}:
        top["defaults"] = model
    return load_config(top, file=file)
