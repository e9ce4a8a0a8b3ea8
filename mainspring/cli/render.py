"""How numbers, tables and JSON are printed. Plain text; bold headings on a terminal only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

__all__ = ["ago", "count", "facts", "heading", "print_json", "seconds", "since", "size", "table"]

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(number: float) -> str:
    """Bytes for people: 398.4 MiB."""
    unit = 0
    while abs(number) >= 1024 and unit < len(UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {UNITS[unit]}"


def count(number: float) -> str:
    """A number of parameters for people: 494M, 3.4M, 8.0B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"
    return str(int(number))


def seconds(value: float) -> str:
    """A duration for people: 850 us, 12.3 ms, 4.2 s, 3 min 20 s."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.1f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def ago(moment: str) -> str:
    """An RFC 3339 time as its distance from now; the text itself if it is none."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return moment or "-"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return since(then.timestamp())


def since(moment: float) -> str:
    """A Unix time as its distance from now."""
    passed = max(0.0, time.time() - moment)
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= length:
            number = int(passed // length)
            return f"{number} {unit}{'s' if number != 1 else ''} ago"
    return "just now"


def styled() -> bool:
    """Whether standard output may be coloured."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def heading(text: str) -> str:
    return click.style(text, bold=True) if styled() else text


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print aligned columns; those in `right` are numbers and end at the same column."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    click.echo(heading(line(head)))
    for row in rows:
        click.echo(line(row))


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line, values in one column."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"  {name.ljust(width)}  {value}")


def print_json(value: Any) -> None:
    """Print one JSON document for programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
