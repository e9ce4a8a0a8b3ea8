"""Paged attention against the reference, and its independence of chunks, batch and threads."""

from __future__ import annotations

import resource
import sys
from typing import Any

import numpy as np
import pytest

from mainspring.kernels import BLOCK, Array, Cache, Kernels

SHAPES = [(16, 4, 2), (64, 14, 2), (80, 4, 4), (96, 3, 1), (128, 8, 2), (256, 2, 1), (6, 40, 1)]
DTYPES = ["float32", "bf16", "int8"]
LIMIT = {"float32": 2e-5, "bf16": 1e-2, "int8": 5e-3}


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def run(
    kernels: Kernels,
    cache: Cache,
    qkv: Array,
    pieces: list[tuple[int, int]],
    tables: Array,
    **options: Any,
) -> Array:
    """One call for sequences that each bring (new tokens, length)."""
    starts = np.cumsum([0, *(new for new, _ in pieces)]).astype(np.int32)
    lengths = ints(*(length for _, length in pieces))
    return kernels.attention(qkv, cache, 1, starts, lengths, tables, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head", "heads", "kv"), SHAPES)
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (1, 0.0), (40, 0.0), (0, 5.0)])
def test_equals_the_reference(
    kernels: Kernels,
    reference: Kernels,
    dtype: Any,
    head: int,
    heads: int,
    kv: int,
    window: int,
    softcap: float,
) -> None:
    tables = np.random.default_rng(0).permutation(20)[:12].reshape(3, 4).astype(np.int32)
    width = (heads + 2 * kv) * head
    past, qkv = numbers(1, 99 + 31, width), numbers(2, 70 + 1 + 29, width)
    results = []
    for k in (kernels, reference):
        cache = k.cache(2, 20, kv, head, dtype)
        options = {"heads": heads, "scale": head**-0.5, "window": window, "softcap": softcap}
        run(k, cache, past, [(99, 99), (31, 31)], tables[1:], **options)
        results.append(run(k, cache, qkv, [(70, 70), (1, 100), (29, 60)], tables, **options))
    np.testing.assert_allclose(results[0], results[1], atol=LIMIT[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 50])
def test_chunks_do_not_change_a_bit(
    kernels: Kernels, alone: Kernels, dtype: Any, window: int
) -> None:
    head, heads, kv, length = 64, 6, 2, 203
    qkv = numbers(3, length, (heads + 2 * kv) * head)
    tables = np.random.default_rng(4).permutation(8).reshape(1, 8).astype(np.int32)[:, :7]
    options: dict[str, Any] = {"heads": heads, "scale": 0.2, "window": window}
    whole = run(
        kernels, kernels.cache(2, 8, kv, head, dtype), qkv, [(length, length)], tables, **options
    )
    for k, cuts in (
        (kernels, range(1, 204)),
        (kernels, (1, 33, 64, 65, 200, 203)),
        (alone, (203,)),
    ):
        cache, first = k.cache(2, 8, kv, head, dtype), 0
        for cut in cuts:
            piece = run(k, cache, qkv[first:cut], [(cut - first, cut)], tables, **options)
            np.testing.assert_array_equal(piece, whole[first:cut])
            first = cut


def test_batch_mates_do_not_change_a_bit(kernels: Kernels) -> None:
    head, heads, kv = 32, 4, 2
    qkv = numbers(5, 100, (heads + 2 * kv) * head)
    tables = np.arange(9, dtype=np.int32).reshape(3, 3)
    options: dict[str, Any] = {"heads": heads, "scale": 0.2}
    cache = kernels.cache(2, 9, kv, head, "bf16")
    pieces = [(50, 50), (20, 20), (30, 30)]
    together = run(kernels, cache, qkv, pieces, tables, **options)
    for i, first in ((2, 70), (0, 0), (1, 50)):
        count = pieces[i][0]
        cache = kernels.cache(2, 9, kv, head, "bf16")
        single = run(
            kernels, cache, qkv[first : first + count], [pieces[i]], tables[i : i + 1], **options
        )
        np.testing.assert_array_equal(single, together[first : first + count])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_former_owner_left_in_a_block_does_not_matter(kernels: Kernels, dtype: Any) -> None:
    head, heads, kv = 16, 2, 1
    options: dict[str, Any] = {"heads": heads, "scale": 0.25}
    qkv = numbers(6, 40, (heads + 2 * kv) * head)
    tables = ints(0, 1).reshape(1, 2)
    clean = run(kernels, kernels.cache(2, 2, kv, head, dtype), qkv, [(40, 40)], tables, **options)
    cache = kernels.cache(2, 2, kv, head, dtype)
    poison = np.full((64, (heads + 2 * kv) * head), np.nan, np.float32)
    run(kernels, cache, poison, [(64, 64)], tables, **options)
    for first in range(40):
        row = run(kernels, cache, qkv[first : first + 1], [(1, first + 1)], tables, **options)
        np.testing.assert_array_equal(row[0], clean[first])


def test_layers_and_blocks_are_apart(kernels: Kernels) -> None:
    cache = kernels.cache(3, 4, 2, 16, "bf16")
    qkv = numbers(7, 5, 6 * 16)
    options: dict[str, Any] = {"heads": 2, "scale": 0.25}
    first = kernels.attention(qkv, cache, 0, ints(0, 5), ints(5), ints(2).reshape(1, 1), **options)
    kernels.attention(-qkv, cache, 1, ints(0, 5), ints(5), ints(2).reshape(1, 1), **options)
    kernels.attention(-qkv, cache, 0, ints(0, 5), ints(5), ints(3).reshape(1, 1), **options)
    again = kernels.attention(
        qkv[4:], cache, 0, ints(0, 1), ints(5), ints(2).reshape(1, 1), **options
    )
    np.testing.assert_array_equal(again[0], first[4])


def test_cache_memory_is_touched_on_use(kernels: Kernels) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = kernels.cache(32, 512, 8, 128, "bf16")
    assert cache.blocks == 512
    assert cache.nbytes == 32 * 512 * BLOCK * 8 * 128 * 2 * 2 == 2 << 30
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 1 << 30


def test_wrong_arguments(kernels: Kernels) -> None:
    cache = kernels.cache(2, 4, 2, 16, "bf16")
    qkv, tables = numbers(8, 5, 8 * 16), ints(0, 1).reshape(1, 2)
    options: dict[str, Any] = {"heads": 4, "scale": 0.25}

    def refused(match: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {
            "qkv": qkv,
            "layer": 0,
            "starts": ints(0, 5),
            "lengths": ints(40),
            "tables": tables,
            **options,
            **changes,
        }
        with pytest.raises(ValueError, match=match):
            kernels.attention(cache=cache, **arguments)

    refused("layer", layer=2)
    refused("layer", layer=-1)
    refused("starts", starts=ints(0, 4))
    refused("starts", starts=ints(1, 5))
    refused("starts", starts=ints(0, 5), lengths=ints(4))
    refused("too narrow", lengths=ints(65))
    refused("tables", tables=ints(0, 4).reshape(1, 2))
    refused("tables", tables=ints(-1, 1).reshape(1, 2))
    refused("tables", tables=ints(0, 1, 0, 1).reshape(2, 2))
    refused("qkv", qkv=qkv[:, :100].copy())
    refused("heads", heads=3)
    refused("window", window=-1)
    refused("starts", starts=ints(0, 6, 5), lengths=ints(40, 40), tables=np.zeros((2, 2), np.int32))
    for arguments in (
        (1, 1, 1, 3, "bf16"),
        (1, 1, 1, 258, "bf16"),
        (0, 1, 1, 2, "bf16"),
        (1, 1, 1, 16, "int4"),
        (2**30, 2**30, 2**30, 256, "bf16"),
    ):
        with pytest.raises(ValueError, match=r"head|positive|dtype|large"):
            kernels.cache(*arguments)  # type: ignore[arg-type]
