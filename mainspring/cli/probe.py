"""How fast this machine's kernels are: about a third of a second of real work."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from msgspec import Struct

from mainspring.kernels import BLOCK, Cache, Format, Kernels

__all__ = ["FORMATS", "ROWS", "Speed", "measure"]

FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
ROWS = (1, 16, 256)
"""one stream, a batch, a piece of a prompt"""
BIG = (8192, 8192)
"""128 MiB in bf16: far more than the caches hold"""
SMALL = (1024, 2048)
"""4 MiB in bf16, 2 in int8: stays in a cache, so that arithmetic is what is timed"""
HEADS, KV_HEADS, HEAD = 16, 4, 64
"""shape of the layer that measures attention"""
CACHED = 2 * 2 * KV_HEADS * HEAD
"""bytes of that layer's keys and values for each token, in bf16"""
LAYERS, BLOCKS = 8, 256
"""64 MiB of KV cache"""
STREAMS = (1, 16)


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
    cache: dict[int, float]
    """streams -> bytes of keys and values a second that attention gets through, a token each"""
    call: float
    """seconds that any kernel call costs, however small"""


def measure(
    kernels: Kernels,
    *,
    budget: float = 0.3,
    big: tuple[int, int] = BIG,
    small: tuple[int, int] = SMALL,
    tokens: int = 512,
    layers: int = LAYERS,
    blocks: int = BLOCKS,
) -> Speed:
    """Time the kernels that a model runs on. `budget` seconds are spent on timing, best of each.

    `big` and `small` are the shapes of the matrices that measure memory and arithmetic; `tokens`
    is the prompt that measures attention, `layers` and `blocks` the size of a KV cache.
    """
    each = budget / (len(FORMATS) * len(ROWS) + 5)
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
        attention=attention(kernels, tokens, each),
        cache=cache_speed(kernels, layers, blocks, each),
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


def attention(kernels: Kernels, tokens: int, budget: float) -> float:
    """Operations a second of one layer's causal attention over a prompt of `tokens`."""
    blocks = tokens // BLOCK
    cache = kernels.cache(1, blocks, KV_HEADS, HEAD, "bf16")
    seconds = best(partial(attend, kernels, cache, 0, 1, blocks, tokens), budget)
    return 2.0 * tokens * tokens * HEADS * HEAD / seconds


def cache_speed(kernels: Kernels, layers: int, blocks: int, budget: float) -> dict[int, float]:
    """Bytes a second of a cache too large for the processor's own, one new token a stream."""
    cache = kernels.cache(layers, blocks, KV_HEADS, HEAD, "bf16")
    for layer in range(layers):  # memory that was never written is not read from memory either
        attend(kernels, cache, layer, blocks, 1, BLOCK)
    turns = itertools.cycle(range(layers))

    def step(streams: int) -> None:
        attend(kernels, cache, next(turns), streams, blocks // streams, 1)

    size = blocks * BLOCK * CACHED
    return {streams: size / best(partial(step, streams), budget) for streams in STREAMS}


def attend(
    kernels: Kernels, cache: Cache, layer: int, streams: int, blocks: int, tokens: int
) -> None:
    """Attention of the last `tokens` of `streams` sequences of `blocks` full blocks each."""
    qkv = np.ones((streams * tokens, (HEADS + 2 * KV_HEADS) * HEAD), np.float32)
    starts = np.arange(0, streams * tokens + 1, tokens, dtype=np.int32)
    lengths = np.full(streams, blocks * BLOCK, np.int32)
    tables = np.arange(streams * blocks, dtype=np.int32).reshape(streams, blocks)
    kernels.attention(qkv, cache, layer, starts, lengths, tables, heads=HEADS, scale=1.0)


def call(kernels: Kernels, budget: float) -> float:
    gain, x = np.ones(64, np.float32), np.ones((1, 64), np.float32)
    return best(lambda: kernels.rms_norm(x, gain, 1e-5), budget)
