"""The fields of a checkpoint's config.json, read with types and limits checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mainspring.errors import ModelError

__all__ = ["Fields"]


class Fields:
    """A JSON object whose values are asked for by name, type and limits.

    `defaults` stand in for fields that are absent; null says there is no value. Then the default of
    the call counts, and without one the field is required. Every refusal is a ModelError that names
    the field, the value found and the limit.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        *,
        where: str = "config.json",
    ) -> None:
        merged = {**(defaults or {}), **values}
        self.values: dict[str, Any] = {k: v for k, v in merged.items() if v is not None}
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def refuse(self, name: str, reason: str) -> ModelError:
        """The error for field `name`; `reason` says what is wrong and what would be right."""
        return ModelError(f"{self.where}: {name} {reason}", param=name)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None:
            raise self.refuse(name, "is missing")
        return value

    def integer(
        self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, f"must be an integer, not {_shown(value)}")
        if not low <= value <= high:
            raise self.refuse(name, f"is {_shown(value)}; the limits are {low} to {high}")
        return value

    def number(
        self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12
    ) -> float:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, f"must be a number, not {_shown(value)}")
        if not (math.isfinite(value) and low <= value <= high):
            raise self.refuse(name, f"is {_shown(value)}; the limits are {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, not {_shown(value)}")
        return value

    def choice(self, name: str, default: str | None, choices: Iterable[str]) -> str:
        value = self._value(name, default)
        known = sorted(choices)
        if not isinstance(value, str) or value not in known:
            raise self.refuse(name, f"is {_shown(value)}; known: {', '.join(known)}")
        return value

    def integers(self, name: str, *, high: int) -> tuple[int, ...]:
        """One integer or a list of them, each 0 to `high`; absent: none."""
        value = self.values.get(name, [])
        found = value if isinstance(value, list) else [value]
        for item in found:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= high:
                raise self.refuse(name, f"holds {_shown(item)}; the limits are 0 to {high}")
        return tuple(found)

    def numbers(self, name: str, count: int, *, low: float, high: float) -> tuple[float, ...]:
        value = self._value(name, None)
        if not isinstance(value, list) or len(value) != count:
            size = f"{len(value)} values" if isinstance(value, list) else _shown(value)
            raise self.refuse(name, f"must be a list of {count} numbers, not {size}")
        one = Fields(dict.fromkeys(("item",)), where=f"{self.where}: {name}")
        numbers = []
        for item in value:
            one.values["item"] = item
            numbers.append(one.number("item", low=low, high=high))
        return tuple(numbers)

    def names(self, name: str, count: int, choices: Iterable[str]) -> tuple[str, ...] | None:
        """A list of `count` strings out of `choices`; absent: None."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self.refuse(name, f"must be a list of {count}, one for each layer")
        known = sorted(choices)
        for item in value:
            if item not in known:
                raise self.refuse(name, f"holds {_shown(item)}; known: {', '.join(known)}")
        return tuple(value)

    def table(self, name: str) -> Fields | None:
        """A nested object; absent: None."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(name, f"must be an object, not {_shown(value)}")
        return Fields(value, where=f"{self.where}: {name}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
