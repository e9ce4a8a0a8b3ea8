"""Greedy text through the real Engine, cramped so that it has to cut, wait and preempt."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.engine.architectures import Architecture
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.kernels import Kernels
from mainspring.types import Sampling

__all__ = ["greedy"]


def greedy(
    model: Architecture, kernels: Kernels, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """`count` tokens after each prompt; the cache holds about a quarter of what all need."""
    config = EngineConfig(blocks=16, max_running=12, dtype="float32")
    engine = Engine(model, kernels, config)
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0.0, max_tokens=count, ignore_eos=True)
        engine.add(str(number), prompt, sampling)
        found[str(number)] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found[output.id].extend(output.tokens)
    assert engine.stats().preemptions > 0, "the cache was not cramped enough to test preemption"
    return list(found.values())
