"""Runs an Engine with random weights and times it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct

from mainspring.engine.architectures import Architecture
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import random_model
from mainspring.errors import BadRequest, InternalError
from mainspring.kernels import Format, Kernels, blocks_of
from mainspring.types import Sampling

__all__ = ["Load", "Measured", "measure_format"]

WARM_UP = 8
"""tokens in and out before anything is timed, so that memory is touched and caches are warm"""


class Load(Struct, frozen=True, kw_only=True):
    """What is asked of the Engine."""

    prompt: int
    output: int
    sequences: int
    seed: int = 0


class Measured(Struct, frozen=True, kw_only=True):
    """One format's times. Tokens a second are over the whole phase they name."""

    format: str
    isa: str
    threads: int
    weight_bytes: int
    load_seconds: float
    """making and packing the random weights"""
    first_token_seconds: float
    """of one prompt of `Load.prompt` tokens, alone"""
    prompt_tokens_per_second: float
    tokens_per_second: float
    """output of one stream after its first token, its prompt before it"""
    batch_tokens_per_second: float
    """output of `Load.sequences` streams together, their prompts' time included"""
    batch_decode_tokens_per_second: float
    """of steps in which every stream got a token and no prompt was computed; 0: there were none"""
    batch_seconds: float


UNHURRIED = 3600.0
"""seconds a step may take: the batch is offline work, nobody watches a stream"""
PROMPTS = 2
"""times a prompt is measured; the better counts"""
Tell = Callable[[str, int, int], None]
"""Called with what is being done, how far it is and where it ends."""


def measure_format(
    config: Mapping[str, Any], kernels: Kernels, format: Format, load: Load, tell: Tell
) -> Measured:
    """Time prompt, one stream and a batch. Raises BadRequest when the context is too short."""
    tell(f"{format}: making random weights", 0, 0)
    start = time.perf_counter()
    model = random_model(dict(config), kernels, format, load.seed)
    loaded = time.perf_counter() - start
    if (length := load.prompt + load.output) > model.shape.context:
        raise BadRequest(
            f"--prompt and --output are {length} tokens, the model's context is "
            f"{model.shape.context}: make them smaller"
        )
    bench = Bench(model, kernels, load, tell)
    bench.run("warming up", 1, WARM_UP, WARM_UP)
    prompt = min(bench.run(f"{format}: prompt", 1, load.prompt, 1).end for _ in range(PROMPTS))
    alone = bench.run(f"{format}: 1 stream", 1, load.prompt, load.output)
    streams = f"{format}: {load.sequences} streams"
    together = bench.run(streams, load.sequences, load.prompt, load.output)
    return Measured(
        format=format,
        isa=kernels.name,
        threads=kernels.threads,
        weight_bytes=model.shape.weight_bytes,
        load_seconds=loaded,
        first_token_seconds=prompt,
        prompt_tokens_per_second=load.prompt / prompt,
        tokens_per_second=(load.output - 1) / (alone.end - alone.first),
        batch_tokens_per_second=load.sequences * load.output / together.end,
        batch_decode_tokens_per_second=together.decode_rate,
        batch_seconds=together.end,
    )


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds since a run began, and its speed once all streams were running."""

    first: float
    end: float
    decode_rate: float


class Bench:
    """One Engine and the sequences sent through it."""

    def __init__(self, model: Architecture, kernels: Kernels, load: Load, tell: Tell) -> None:
        self.load, self.tell = load, tell
        self.vocabulary = model.shape.vocabulary
        length = max(load.prompt + load.output, 2 * WARM_UP)
        blocks = load.sequences * (blocks_of(length) + 1)
        # Random tokens share no beginnings; without the prefix cache no run helps the next. Random
        # weights soon repeat themselves: what guesses gain there is no measure of anything.
        config = EngineConfig(
            blocks=blocks,
            max_running=load.sequences,
            step_seconds=UNHURRIED,
            prefix_cache=False,
            speculation=False,
        )
        self.engine = Engine(model, kernels, config)
        self.random = np.random.default_rng(load.seed)

    def run(self, what: str, sequences: int, prompt: int, output: int) -> Times:
        """Send `sequences` prompts at once and step until all have ended."""
        sampling = Sampling(temperature=0.0, max_tokens=output, ignore_eos=True)
        for i in range(sequences):
            tokens = self.random.integers(self.vocabulary, size=prompt).tolist()
            self.engine.add(f"{what} {i}", tokens, sampling)
        done, first, full_tokens, full_seconds = 0, 0.0, 0, 0.0
        start = now = time.perf_counter()
        while self.engine.has_work:
            before, full = now, False
            for answer in self.engine.step():
                if answer.error is not None:
                    raise InternalError(f"{what} failed: {answer.error[1]}: report it, please")
                done += len(answer.tokens)
                full = answer.times[0].batch == sequences and not answer.times[0].prefill
            now = time.perf_counter()
            first = first or (now - start if done else 0.0)
            if full:
                full_tokens, full_seconds = full_tokens + sequences, full_seconds + now - before
            self.tell(what, done, sequences * output)
        return Times(first, now - start, full_tokens / full_seconds if full_seconds else 0.0)
