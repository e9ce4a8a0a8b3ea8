"""Rotary position embedding: frequencies from config.json, and the table the kernel reads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mainspring.engine.fields import Fields
from mainspring.engine.sizes import Sizes
from mainspring.errors import ModelError
from mainspring.kernels import Array

__all__ = ["Rope", "rope_fields"]

FIRST = 4096
"""positions in the first table; it doubles when a sequence grows past it"""


class Rope:
    """Cosines and sines of one rotary embedding.

    `table` float32 [positions, 2, r/2] is what `Kernels.rope` takes; r numbers of a head are
    rotated. It holds positions 0 .. `positions` - 1 and grows on demand, since most sequences end
    long before the longest context. `limit` positions are meaningful at most.
    """

    def __init__(self, frequencies: Array, scale: float, limit: int) -> None:
        self.frequencies = frequencies.astype(np.float32)
        self.scale = scale
        self.limit = limit
        self.table = self._table(0, min(FIRST, limit))

    @classmethod
    def of(
        cls, fields: Fields, sizes: Sizes, context: int = 0, layers: str = "full_attention"
    ) -> Rope:
        """The embedding config.json describes, in the old and in the new spelling.

        `context` is the number of positions wanted, 0: as many as there are. `layers` chooses
        where layer types have embeddings of their own.
        """
        table = rope_fields(fields, layers)
        kind = table.choice("rope_type", "default", KINDS)
        share = table.number("partial_rotary_factor", 1.0, low=0.01, high=1.0)
        width = int(sizes.head * share)
        if width < 2 or width % 2:
            raise table.refuse("partial_rotary_factor", f"leaves {width} of {sizes.head} to rotate")
        base = table.number("rope_theta", 10_000.0, low=1.0, high=1e15)
        powers = (base ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
        frequencies, scale, limit = KINDS[kind](table, sizes, powers, context)
        if not np.isfinite(frequencies).all() or not math.isfinite(scale):
            raise table.refuse("rope_type", f"{kind}: the numbers given make no finite angles")
        if context > limit:
            raise ModelError(
                f"context {context} is more than the model's {limit} positions", param="context"
            )
        return cls(frequencies, scale, context or limit)

    @classmethod
    def local(cls, fields: Fields, sizes: Sizes, context: int, base: float) -> Rope:
        """The embedding of layers with a window, where it is another one than that of the rest.

        `sliding_attention` under the newer `rope_parameters`; otherwise `base`, not scaled.
        """
        values = {"rope_theta": base}
        newer = fields.table("rope_parameters")
        if newer is not None and (given := newer.table("sliding_attention")) is not None:
            values.update(given.values)
        return cls.of(Fields(values, where=f"{fields.where}: local"), sizes, context)

    def reach(self, positions: int) -> None:
        """Make `table` hold at least `positions` positions."""
        have = len(self.table)
        if positions > have:
            new = self._table(have, max(positions, min(2 * have, self.limit)))
            self.table = np.concatenate([self.table, new])

    def _table(self, first: int, last: int) -> Array:
        # The angle is a float32 product, as the models were trained with.
        angles = np.arange(first, last, dtype=np.float32)[:, None] * self.frequencies
        both = np.stack([np.cos(angles.astype(float)), np.sin(angles.astype(float))], axis=1)
        return np.ascontiguousarray(both * self.scale, np.float32)


def rope_fields(fields: Fields, layers: str = "full_attention") -> Fields:
    """One table out of `rope_parameters` (newer) or `rope_theta` and `rope_scaling` (older)."""
    values = {
        name: fields.values[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if name in fields
    }
    given = fields.table("rope_parameters") or fields.table("rope_scaling")
    if given is not None and (nested := given.table(layers)) is not None:
        given = nested
    if given is not None:
        values.update(given.values)
    if "original_max_position_embeddings" in fields:  # phi3 keeps it outside, and means it
        values["original_max_position_embeddings"] = fields.values[
            "original_max_position_embeddings"
        ]
    if "type" in values:
        values.setdefault("rope_type", values["type"])
    return Fields(values, where=f"{fields.where}: rope")


def _default(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    return 1 / powers, 1.0, sizes.context


def _linear(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    return 1 / powers / table.number("factor", low=1e-3, high=1e6), 1.0, sizes.context


def _llama3(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, between blended."""
    factor = table.number("factor", low=1e-3, high=1e6)
    low = table.number("low_freq_factor", low=1e-3, high=1e6)
    high = table.number("high_freq_factor", low=1e-3, high=1e6)
    if high <= low:
        raise table.refuse("high_freq_factor", f"is {high:g}; it must be above {low:g}")
    trained = table.integer("original_max_position_embeddings", high=1 << 24)
    turns = trained / (2 * math.pi * powers)  # rotations within the trained context
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - keep) / (factor * powers) + keep / powers, 1.0, sizes.context


def _yarn(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    """YaRN (arXiv 2309.00071): a ramp over dimensions instead of llama3's over wavelengths."""
    trained = table.integer("original_max_position_embeddings", sizes.context, high=1 << 24)
    factor = table.number("factor", sizes.context / trained, low=1e-3, high=1e6)
    width, base = 2 * len(powers), table.number("rope_theta", 10_000.0, low=1.0001, high=1e15)

    def dimension(rotations: float) -> float:
        return width * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(table.number("beta_fast", 32, low=1e-3, high=1e6))
    high = dimension(table.number("beta_slow", 1, low=1e-3, high=1e6))
    if table.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(len(powers)) - low) / ((high - low) or 0.001), 0, 1)
    frequencies = ramp / (factor * powers) + (1 - ramp) / powers
    return frequencies, _yarn_scale(table, factor), max(sizes.context, int(factor * trained))


def _yarn_scale(table: Fields, factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if "attention_factor" in table:
        return table.number("attention_factor", high=1e3)
    if "mscale" in table and "mscale_all_dim" in table:
        one, all_ = table.number("mscale", high=1e3), table.number("mscale_all_dim", high=1e3)
        if one and all_:
            return magnitude(one) / magnitude(all_)
    return magnitude(1.0)


def _longrope(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    """LongRoPE (arXiv 2402.13753): one set of factors up to the trained context, one beyond.

    Keys in the cache cannot change their angles when a sequence crosses that line, so one set
    serves all: the long factors only where the operator asks for a longer context.
    """
    trained = table.integer("original_max_position_embeddings", sizes.context, high=1 << 24)
    which = "long_factor" if context > trained else "short_factor"
    factors = np.array(table.numbers(which, len(powers), low=1e-3, high=1e6), np.float32)
    factor = sizes.context / trained
    if "attention_factor" in table:
        scale = table.number("attention_factor", high=1e3)
    else:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    limit = sizes.context if context > trained else min(trained, sizes.context)
    return 1 / (factors * powers), scale, limit


def _dynamic(table: Fields, sizes: Sizes, powers: Array, context: int) -> tuple[Array, float, int]:
    # Its angles change with the sequence's length, so cached keys would be wrong. Up to the trained
    # context it is the default embedding.
    return 1 / powers, 1.0, sizes.context


Kind = Callable[[Fields, Sizes, Array, int], tuple[Array, float, int]]
KINDS: dict[str, Kind] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "dynamic": _dynamic,
}
