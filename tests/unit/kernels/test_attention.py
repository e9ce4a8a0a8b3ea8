"""Paged attention against the reference, and its independence of chunks, batch and threads."""

from __future__ import annotations

import resource
import sys
from typing import Any

import numpy as np
import pytest

from mainspring.kernels import BLOCK, Array, Cache, Kernels

SHAPES = [(16, 4, 2), (64, 14, 2), (80, 4, 4), (96, 3, 1), (128, 8, 2), (256, 2, 1), (6, 100, 1)]
DTYPES = ["float32", "bf16", "int8"]
LIMIT = {"float32": 2e-5, "bf16": 1e-2, "int8": 5e-3}
"""bf16: one unit in the last place of a number up to 4, 2^-7, of a token that has all the weight.

int8: both sides round the same numbers but for the order of the Hadamard transform's sums, so one
that lies between two integers may go either way. That is one step of its head, largest / 127 =
0.03 for normal numbers, and turned back a number of a head of 64 gets 1 / sqrt(64) of it: 4e-3.
The weights of 15 bits leave less than 1e-4.
"""
SEGMENT = 1024
"""Tokens that are walked by themselves, in native/attention.cc."""


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sinks(heads: int) -> Array:
    """Some far above all scores, some far below, most among them."""
    return 5 * numbers(30, heads)


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
@pytest.mark.parametrize(("head", "heads", "kv"), [(64, 14, 2), (80, 4, 4), (576, 16, 1)])
def test_sinks_and_latent_heads(
    kernels: Kernels, reference: Kernels, dtype: Any, head: int, heads: int, kv: int
) -> None:
    tables = np.arange(6, dtype=np.int32).reshape(2, 3)
    qkv = numbers(28, 95, (heads + 2 * kv) * head)
    options: dict[str, Any] = {"heads": heads, "scale": head**-0.5, "sinks": sinks(heads)}
    pieces = [(70, 70), (25, 25)]
    ours, theirs = (
        run(k, k.cache(2, 6, kv, head, dtype), qkv, pieces, tables, window=40, **options)
        for k in (kernels, reference)
    )
    np.testing.assert_allclose(ours, theirs, atol=LIMIT[dtype])


def test_a_sink_takes_its_share(kernels: Kernels) -> None:
    """Of one token with score 0 whose value is 1; a sink of any size makes no other number."""
    qkv = np.repeat(np.array([[0, 0, 0, 0, 1]], np.float32), 16, axis=1)
    share = np.array([np.log(3), 200.0, -200.0], np.float32)
    one = run(
        kernels,
        kernels.cache(2, 1, 1, 16, "float32"),
        qkv,
        [(1, 1)],
        ints(0).reshape(1, 1),
        heads=3,
        scale=1.0,
        sinks=share,
    )
    np.testing.assert_allclose(one.reshape(3, 16), [[0.25] * 16, [0] * 16, [1] * 16], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 50])
def test_chunks_do_not_change_a_bit(
    kernels: Kernels, alone: Kernels, dtype: Any, window: int
) -> None:
    head, heads, kv, length = 64, 6, 2, 203
    qkv = numbers(3, length, (heads + 2 * kv) * head)
    tables = np.random.default_rng(4).permutation(8).reshape(1, 8).astype(np.int32)[:, :7]
    options: dict[str, Any] = {"heads": heads, "scale": 0.2, "window": window}
    options["sinks"] = sinks(heads) if window else None
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


def with_context(
    kernels: Kernels, dtype: Any, lengths: list[int], heads: int, kv: int, head: int
) -> tuple[Cache, Array]:
    """A cache with contexts of these lengths, and their tables. A window of 1 fills it fast."""
    per = -(-(max(lengths) + BLOCK) // BLOCK)
    count = len(lengths) * per
    tables = np.random.default_rng(9).permutation(count).astype(np.int32).reshape(-1, per)
    cache = kernels.cache(2, count, kv, head, dtype)
    for i, length in enumerate(lengths):
        past = numbers(10 + i, length, (heads + 2 * kv) * head)
        options: dict[str, Any] = {"heads": heads, "scale": 1.0, "window": 1}
        run(kernels, cache, past, [(length, length)], tables[i : i + 1], **options)
    return cache, tables


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, SEGMENT + 200])
def test_segments_of_a_long_context(
    kernels: Kernels, alone: Kernels, reference: Kernels, dtype: Any, window: int
) -> None:
    """Cut for threads or walked in one part, alone or beside others: the same bits."""
    heads, kv, head, length = 6, 2, 32, 2 * SEGMENT + 90
    qkv = numbers(20, 12, (heads + 2 * kv) * head)
    options: dict[str, Any] = {"heads": heads, "scale": head**-0.5, "window": window}
    options["sinks"] = sinks(heads) if window else None
    sizes = {"heads": heads, "kv": kv, "head": head}
    cache, tables = with_context(kernels, dtype, [length], **sizes)
    whole = run(kernels, cache, qkv, [(12, length + 12)], tables, **options)
    for k in (kernels, alone):
        cache, tables = with_context(k, dtype, [length, 70, SEGMENT - 1], **sizes)
        for row in range(12):
            pieces = [(1, length + 1 + row), (1, 71 + row), (1, SEGMENT + row)]
            batch = run(k, cache, qkv[[row] * 3], pieces, tables, **options)
            np.testing.assert_array_equal(batch[0], whole[row])
    cache, tables = with_context(reference, dtype, [length], **sizes)
    expected = run(reference, cache, qkv, [(12, length + 12)], tables, **options)
    np.testing.assert_allclose(whole, expected, atol=LIMIT[dtype])


def test_a_chunk_of_many_items_crosses_segments(kernels: Kernels) -> None:
    heads, kv, head, length = 4, 1, 16, SEGMENT - 30
    qkv = numbers(21, 60, (heads + 2 * kv) * head)
    options: dict[str, Any] = {"heads": heads, "scale": head**-0.5}
    cache, tables = with_context(kernels, "bf16", [length], heads, kv, head)
    whole = run(kernels, cache, qkv, [(60, length + 60)], tables, **options)
    for row in range(60):
        one = run(kernels, cache, qkv[row : row + 1], [(1, length + 1 + row)], tables, **options)
        np.testing.assert_array_equal(one[0], whole[row])


def test_poison_in_an_early_segment_stays_visible(kernels: Kernels) -> None:
    heads, kv, head = 2, 1, 16
    width = (heads + 2 * kv) * head
    for part in (slice(heads * head, (heads + kv) * head), slice((heads + kv) * head, width)):
        past, qkv = numbers(22, 2 * SEGMENT, width), numbers(23, 1, width)
        past[7, part] = np.nan
        tables = np.arange(65, dtype=np.int32).reshape(1, 65)
        options: dict[str, Any] = {"heads": heads, "scale": 0.25}
        for dtype in DTYPES:
            cache = kernels.cache(2, 65, kv, head, dtype)  # type: ignore[arg-type]
            run(kernels, cache, past, [(len(past),) * 2], tables, window=1, **options)
            one = run(kernels, cache, qkv, [(1, len(past) + 1)], tables, **options)
            assert np.isnan(one).all(), (dtype, part)


def test_int8_holds_keys_with_outlier_channels(kernels: Kernels, reference: Kernels) -> None:
    """Four channels of the keys 100 times the rest, as trained models have them.

    Without the Hadamard transform the other channels would all be rounded to zero.
    """
    heads, kv, head, length = 4, 2, 64, 300
    qkv = numbers(24, length, (heads + 2 * kv) * head)
    channels = np.array([3, 17, 40, 41])
    for h in range(heads):
        qkv[:, h * head + channels] /= 100
    for h in range(heads, heads + kv):
        qkv[:, h * head + channels] *= 100
    tables = np.arange(10, dtype=np.int32).reshape(1, 10)
    options: dict[str, Any] = {"heads": heads, "scale": head**-0.5}
    outputs = [
        run(k, k.cache(2, 10, kv, head, dtype), qkv, [(length, length)], tables, **options)
        for k, dtype in ((kernels, "int8"), (reference, "int8"), (reference, "float32"))
    ]
    off = outputs[0] - outputs[2]
    assert np.sqrt((off**2).mean() / (outputs[2] ** 2).mean()) < 0.2
    # A number that rounds the other way is a step 30 times that of normal keys.
    np.testing.assert_allclose(outputs[0], outputs[1], atol=30 * LIMIT["int8"])


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
    refused("sinks", sinks=numbers(1, 3))
    refused("starts", starts=ints(0, 6, 5), lengths=ints(40, 40), tables=np.zeros((2, 2), np.int32))
    for arguments in (
        (1, 1, 1, 3, "bf16"),
        (1, 1, 1, 642, "bf16"),
        (0, 1, 1, 2, "bf16"),
        (1, 1, 1, 16, "int4"),
        (2**30, 2**30, 2**30, 256, "bf16"),
    ):
        with pytest.raises(ValueError, match=r"head|positive|dtype|large"):
            kernels.cache(*arguments)  # type: ignore[arg-type]
