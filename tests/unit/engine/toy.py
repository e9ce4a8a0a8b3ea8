"""A small deterministic Architecture: wrong tables, positions or chunks change its output."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.engine.adapter import Slot
from mainspring.engine.architectures import ModelShape
from mainspring.engine.batch import Batch
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.sequence import Output
from mainspring.kernels import Array, Cache, Kernels, load_kernels
from mainspring.types import Event, Sampling

LAYERS, HEADS, KV, HEAD, HIDDEN = 2, 4, 2, 8, 32
VOCABULARY = 97
EOS = 96
ROW_SECONDS = 1e-3


class Toy:
    """Two layers of attention over the paged cache, with learned-looking positions."""

    def __init__(self, kernels: Kernels, *, context: int = 512, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def matrix(n: int, k: int, gain: float = 1.0) -> Array:
            values: Array = rng.standard_normal((n, k)) * gain / np.sqrt(k)
            return values.astype(np.float32)

        def weight(n: int, k: int, gain: float = 1.0) -> Any:
            return kernels.weight(matrix(n, k, gain), format="float32")

        self._kernels = kernels
        self._embedding = matrix(VOCABULARY, HIDDEN, 6.0)
        self._positions = matrix(context, HIDDEN, 2.0)
        self._qkv = [weight((HEADS + 2 * KV) * HEAD, HIDDEN) for _ in range(LAYERS)]
        self._out = [weight(HIDDEN, HEADS * HEAD, 2.0) for _ in range(LAYERS)]
        self._head = weight(VOCABULARY, HIDDEN, 3.0)
        self.slots: dict[str, Slot] = {}
        self.forwards = 0
        self.progress = 0
        self.clock: Clock | None = None
        self.step_seconds = 0.0
        """what a step takes besides its rows; when nothing, a guess never pays"""
        self.row_seconds = ROW_SECONDS
        self.shape = ModelShape(
            family="toy",
            layers=LAYERS,
            hidden=HIDDEN,
            heads=HEADS,
            kv_heads=KV,
            head=HEAD,
            vocabulary=VOCABULARY,
            context=context,
            parameters=10_000_000,
            eos=(EOS,),
            weight_bytes=1_000_000,
            format="float32",
        )

    def forward(self, batch: Batch, cache: Cache) -> Array:
        self.forwards += 1
        if self.clock is not None:
            self.clock.now += self.step_seconds + self.row_seconds * len(batch.tokens)
        x = self._embedding[batch.tokens] + self._positions[batch.positions]
        for layer in range(LAYERS):
            qkv = self._kernels.linear(x, self._qkv[layer])
            mixed = self._kernels.attention(
                qkv,
                cache,
                layer,
                batch.starts,
                batch.lengths,
                batch.tables,
                heads=HEADS,
                scale=HEAD**-0.5,
            )
            x = x + self._kernels.linear(mixed, self._out[layer])
            self.progress += 1
        return self._kernels.linear(x[batch.logit_rows], self._head)


class Clock:
    """Time that passes by 10 us on every reading, and by a Toy's seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-5
        return self.now


def toy_engine(
    *,
    model: Any = None,
    kernels: Kernels | None = None,
    **config: Any,
) -> Engine:
    kernels = kernels or load_kernels("reference")
    settings = {"blocks": 32, "dtype": "float32", **config}
    model = model or Toy(kernels)
    model.clock = Clock()
    return Engine(model, kernels, EngineConfig(**settings), model.clock)


def finish_all(engine: Engine, limit: int = 5000) -> dict[str, list[Output]]:
    """Step until there is no work; every sequence's Outputs by id."""
    outputs: dict[str, list[Output]] = {}
    for _ in range(limit):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    raise AssertionError(f"still working after {limit} steps")


def story_of(outputs: list[Output]) -> list[Event]:
    return [event for output in outputs for event in output.events]


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def run_one(engine: Engine, tokens: list[int], sampling: Sampling, **add: Any) -> list[Output]:
    engine.add("one", tokens, sampling, **add)
    return finish_all(engine)["one"]


def prompt(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, EOS, length).tolist()
    return tokens


GREEDY = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)


def greedy(count: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=count, ignore_eos=True)
