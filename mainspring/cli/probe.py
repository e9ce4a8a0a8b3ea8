"""How fast this machine's kernels are: about a third of a second of real work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from msgspec import Struct

from mainspring.kernels import BLOCK, Format, Kernels

__all__ = ["FORMATS", "ROWS", "Speed", "measure"]

FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
ROWS = (1, 16, 256)
"""one stream, a batch, a piece of a prompt"""
BIG = (8192, 8192)
"""128 MiB in bf16: far more than the caches hold"""
SMALL = (1024, 2048)
"""4 MiB in bf16, 2 in int8: stays in a cache, so that arithmetic is what is timed"""
ATTENTION_ROWS, ATTENTION_HEADS, ATTENTION_HEAD = 256, 16, 64


class Speed(Struct, frozen=True, kw_only=True):
    """What was measured, with all of the kernels' threads."""

    isa: str
    threads: int
    bandwidth: float
    """bytes a second, reading weights"""
    linear: dict[str, dict[int, float]]
    """format -> rows -> multiply-add operations a second (a multiply-add counts as 2)"""
    attention: float
    """the same for attention over a prompt"""
    call: float
    """seconds that any kernel call costs, however small"""


def measure(
    kernels: Kernels,
    *,
    budget: float = 0.3,
    big: tuple[int, int] = BIG,
    small: tuple[int, int] = SMALL,
) -> Speed:
    """Time the kernels that a model runs on. `budget` seconds are spent on timing, best of each.

    `big` and `small` are the shapes of the matrices that measure memory and arithmetic.
    """
    each = budget / (len(FORMATS) * len(ROWS) + 3)
    linear: dict[str, dict[int, float]] = {}
    n, k = small
    matrix = np.random.default_rng(0).standard_normal(small, np.float32)
    for format in FORMATS:
        weight = kernels.weight(matrix, format=format)
        linear[format] = {}
        for rows in ROWS:
            x = np.ones((rows, k), np.float32)
            seconds = best(partial(kernels.linear, x, weight), each)
            linear[format][rows] = 2.0 * rows * n * k / seconds
    return Speed(
        isa=kernels.name,
        threads=kernels.threads,
        bandwidth=bandwidth(kernels, big, each),
        linear=linear,
        attention=attention(kernels, each),
        call=call(kernels, each),
    )


def best(function: Callable[[], object], budget: float) -> float:
    """The shortest of at least two timed calls within `budget` seconds, after one untimed."""
    function()
    shortest, start, calls = float("inf"), time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - start < budget:
        before = time.perf_counter()
        function()
        shortest = min(shortest, time.perf_counter() - before)
        calls += 1
    return shortest


def bandwidth(kernels: Kernels, big: tuple[int, int], budget: float) -> float:
    """Bytes a second while one row is multiplied with more bf16 weights than any cache holds."""
    weight = kernels.weight(np.zeros(big, np.uint16), format="bf16")
    x = np.ones((1, big[1]), np.float32)
    return weight.nbytes / best(lambda: kernels.linear(x, weight), budget)


def attention(kernels: Kernels, budget: float) -> float:
    rows, heads, head = ATTENTION_ROWS, ATTENTION_HEADS, ATTENTION_HEAD
    blocks = rows // BLOCK
    cache = kernels.cache(1, blocks, heads, head, "bf16")
    qkv = np.ones((rows, 3 * heads * head), np.float32)
    starts, lengths = np.array([0, rows], np.int32), np.array([rows], np.int32)
    tables = np.arange(blocks, dtype=np.int32)[None]
    seconds = best(
        lambda: kernels.attention(
            qkv, cache, 0, starts, lengths, tables, heads=heads, scale=1.0
        ),
        budget,
    )  # fmt: skip
    return attention_operations(rows, heads * head) / seconds


def attention_operations(tokens: int, width: int) -> float:
    """Causal attention of one layer: two products, each over half of tokens * tokens."""
    return 2.0 * tokens * tokens * width


def call(kernels: Kernels, budget: float) -> float:
    gain, x = np.ones(64, np.float32), np.ones((1, 64), np.float32)
    return best(lambda: kernels.rms_norm(x, gain, 1e-5), budget)
