"""The slow, obviously right generator that the Engine equals token for token."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from mainspring.engine.adapter import Adapter
from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.kernels import Array, Kernels, KvFormat, blocks_of
from mainspring.types import Sampling, Thinking

__all__ = ["generate"]

MASK = 0xFFFF_FFFF_FFFF_FFFF


def generate(
    model: Architecture,
    kernels: Kernels,
    tokens: Items[int],
    sampling: Sampling,
    *,
    dtype: KvFormat = "bf16",
    adapter: Adapter | None = None,
) -> list[int]:
    """The output tokens for one prompt, the one that ends it included.

    Every token is computed from scratch, the whole context in one batch of one sequence with a
    new KV cache of `dtype`. Written apart from the Engine on purpose: it shares with it the model
    and the kernels alone.
    """
    stops = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stops |= set(model.shape.eos)
    most = model.shape.context - len(tokens)
    if sampling.max_tokens is not None:
        most = min(most, sampling.max_tokens)
    output: list[int] = []
    while len(output) < most:
        logits = _logits(model, kernels, [*tokens, *output], dtype, adapter)
        _penalize(logits, list(tokens), output, sampling)
        if len(output) < sampling.min_tokens:
            for stop in stops:
                logits[stop] = -np.inf
        if sampling.thinking is not None:
            _think(logits, output, sampling.thinking)
        output.append(_draw(kernels, logits, sampling, len(output)))
        if output[-1] in stops:
            break
    return output


def _logits(
    model: Architecture,
    kernels: Kernels,
    tokens: list[int],
    dtype: KvFormat,
    adapter: Adapter | None,
) -> Array:
    """Of the last token, [vocabulary]."""
    shape, count = model.shape, len(tokens)
    blocks = blocks_of(count)
    cache = kernels.cache(shape.layers, blocks, shape.kv_heads, shape.head, dtype)
    batch = Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(count, dtype=np.int32),
        starts=np.array([0, count], np.int32),
        lengths=np.array([count], np.int32),
        tables=np.arange(blocks, dtype=np.int32)[None, :],
        logit_rows=np.array([count - 1], np.int32),
        adapted=() if adapter is None else ((np.arange(count, dtype=np.int32), adapter),),
    )
    row: Array = model.forward(batch, cache)[0]
    return row


def _think(logits: Array, output: list[int], thinking: Thinking) -> None:
    begun = output if thinking.begin is None else output[1:]
    if thinking.begin is not None and output[:1] != [thinking.begin]:
        return
    if len(begun) == thinking.budget and thinking.end not in begun:
        logits[:] = np.where(np.arange(len(logits)) == thinking.end, np.float32(0), -np.inf)


def _penalize(logits: Array, prompt: list[int], output: list[int], sampling: Sampling) -> None:
    repetition = np.float32(sampling.repetition_penalty)
    for token in {*prompt, *output}:
        value = logits[token]
        logits[token] = value / repetition if value > 0 else value * repetition
    for token in set(output):
        penalty = sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
        logits[token] -= np.float32(penalty)
    for token, bias in sampling.logit_bias.items():
        logits[token] += np.float32(bias)


def _draw(kernels: Kernels, logits: Array, sampling: Sampling, position: int) -> int:
    chosen = kernels.sample(
        logits[None, :],
        np.array([sampling.temperature], np.float32),
        np.array([sampling.top_k], np.int32),
        np.array([sampling.top_p], np.float32),
        np.array([sampling.min_p], np.float32),
        np.array([_uniform(sampling.seed, position)], np.float64),
    )
    return int(chosen[0])


def _uniform(seed: int, position: int) -> float:
    """SplitMix64, see `sampler.uniforms`, in plain integers."""
    gamma = 0x9E37_79B9_7F4A_7C15
    return (_mix(_mix(seed + gamma) + (position + 1) * gamma) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & MASK
    return z ^ (z >> 31)
