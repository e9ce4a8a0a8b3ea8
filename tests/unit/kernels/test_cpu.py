"""Choosing instruction sets and threads, and what the pool and the results promise."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from mainspring.errors import BadRequest
from mainspring.kernels import Kernels, load_kernels
from mainspring.kernels.cpu import machine, measure


def test_the_best_set_is_chosen() -> None:
    here = machine()
    assert here.isas[-1] == "portable"
    kernels = load_kernels()
    assert (kernels.name, kernels.threads) == (here.isas[0], here.cores)
    assert isinstance(kernels, Kernels)


def test_unknown_sets_are_refused_with_what_there_is() -> None:
    with pytest.raises(BadRequest, match="portable") as refusal:
        load_kernels("avx1024")
    assert refusal.value.param == "isa"
    with pytest.raises(BadRequest, match="threads"):
        load_kernels("portable", threads=-1)
    with pytest.raises(BadRequest, match="threads"):
        load_kernels("portable", threads=100_000)


def test_the_probe_measures(kernels: Kernels) -> None:
    speed = measure(kernels)
    assert speed.read > 1e8
    assert speed.int8 > 1e8


def test_results_own_their_memory(kernels: Kernels) -> None:
    """An array stays as it is while later results are computed, and outlives its kernels."""
    rng = np.random.default_rng(0)
    own = load_kernels(kernels.name, threads=2)
    weight = own.weight(rng.standard_normal((64, 64), np.float32), format="float32")
    inputs = [rng.standard_normal((50, 64), np.float32) for _ in range(20)]
    results = [own.linear(x, weight) for x in inputs]
    copies = [y.copy() for y in results]
    for x in inputs:
        own.linear(x, weight)
    del own
    gc.collect()
    for y, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(y, copy)
        y += 1  # writable


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_many_small_regions(kernels: Kernels, threads: int) -> None:
    """More threads than cores, regions that end before a worker wakes."""
    pool = load_kernels(kernels.name, threads=threads)
    rng = np.random.default_rng(1)
    weight = pool.weight(rng.standard_normal((640, 32), np.float32), format="int8")
    x = rng.standard_normal((3, 32), np.float32)
    expected = pool.linear(x, weight)
    for _ in range(3000):
        np.testing.assert_array_equal(pool.linear(x, weight), expected)


def test_callers_in_several_threads(kernels: Kernels) -> None:
    rng = np.random.default_rng(2)
    weight = kernels.weight(rng.standard_normal((300, 200), np.float32), format="int8")
    x = rng.standard_normal((40, 200), np.float32)
    expected = kernels.linear(x, weight)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(
            i for i in range(200) if not np.array_equal(kernels.linear(x, weight), expected)
        )

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_instruction_sets_agree() -> None:
    """Integers exactly, floats to rounding."""
    rng = np.random.default_rng(3)
    matrix, x = (
        rng.standard_normal((100, 300), np.float32),
        rng.standard_normal((9, 300), np.float32),
    )
    results = []
    for isa in machine().isas:
        kernels = load_kernels(isa, threads=1)
        results.append(kernels.linear(x, kernels.weight(matrix, format="int4")))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-5)
