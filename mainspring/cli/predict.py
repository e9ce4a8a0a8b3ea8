"""What a model will need and how fast it will be, from its shape and the measured machine.

For a step that computes `rows` tokens of `streams` sequences with `c` tokens of context each:

    weights    bytes of all weights the step reads (a table of embeddings of its own is not read;
               of experts, the share that `rows` tokens are expected to choose)
    read       weights / bandwidth
    compute    2 * active parameters * rows / measured linear speed
    linear     (read^p + compute^p)^(1/p): the two overlap, but not wholly; p is OVERLAP
    attention  of a prompt: operations / measured speed; of single tokens: streams * c * KV bytes
               / the smaller of bandwidth and what attention was measured to get through
    calls      layers * CALLS * measured cost of a kernel call + STEP + streams * SEQUENCE
    step       linear + attention + calls

First token of a 512-token prompt: one such step of 512 rows. Tokens a second: streams / step, at
512 tokens of context. The measured speeds are the kernels' own, so a prediction is what the engine
can reach when the machine does nothing else; other load, and heat, make it less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct

from mainspring.cli.probe import Speed
from mainspring.config import ModelConfig
from mainspring.engine.weights import CheckpointInfo
from mainspring.errors import InsufficientMemory
from mainspring.kernels import BLOCK, Format
from mainspring.runtimes.memory import kv_token_bytes, plan_memory

__all__ = ["PROMPT", "STREAMS", "Prediction", "Work", "predict", "work_of"]

PROMPT = 512
STREAMS = 16
OVERLAP = 1.5
"""how well memory and arithmetic run side by side: 1 is not at all, infinity wholly; measured with
`mainspring bench` on 1 and 16 streams in every format"""
CALLS = 12
"""kernel calls of one layer"""
STEP = 40e-6
SEQUENCE = 12e-6
"""seconds of Python around the kernels, for a step and for each of its sequences"""


class Work(Struct, frozen=True, kw_only=True):
    """What a model's shape makes the machine do."""

    layers: int
    width: int
    """heads * head"""
    table: int
    """parameters of an embedding table that is only looked up in"""
    head: int
    """parameters of the output head; computed for the last token of a prompt only"""
    dense: int
    """all other parameters that every token uses"""
    expert: int
    """parameters of all experts; 0 without any"""
    experts: int
    chosen: int
    """experts that a token uses"""

    def active(self, rows: int) -> float:
        """Parameters that a step with `rows` tokens reads, without the head."""
        if not self.expert:
            return float(self.dense)
        missed = (1 - self.chosen / self.experts) ** rows
        return self.dense + self.expert * (1 - missed)

    @property
    def used(self) -> float:
        """Parameters that one token is multiplied with, without the head."""
        return self.dense + (self.expert * self.chosen / self.experts if self.expert else 0.0)


class Prediction(Struct, frozen=True, kw_only=True):
    """One format of one model. Seconds, bytes, tokens a second."""

    format: str
    weight_bytes: int
    kv_bytes_per_token: int
    fits: bool
    advice: str = ""
    """what to do when it does not fit"""
    kv_bytes: int = 0
    """what the server would take for the KV cache"""
    sequences_full: int = 0
    """that fit at once with the whole context"""
    sequences_1k: int = 0
    """that fit at once with 1,000 tokens each"""
    first_token_seconds: float = 0.0
    tokens_per_second: float = 0.0
    tokens_per_second_16: float = 0.0


def work_of(info: CheckpointInfo, config: Mapping[str, Any]) -> Work:
    """From the shape and, for experts, the fields of config.json."""
    shape = info.shape
    fields = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(fields, Mapping)
    table = shape.vocabulary * shape.hidden
    tied = bool(fields.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    experts = number(fields, "num_experts", "num_local_experts")
    inner = number(fields, "moe_intermediate_size", "intermediate_size")
    expert = 3 * shape.hidden * inner * experts * shape.layers if experts else 0
    rest = shape.parameters - table * (1 if tied else 2)
    expert = min(expert, max(0, rest))
    return Work(
        layers=shape.layers,
        width=shape.heads * shape.head,
        table=0 if tied else table,
        head=table,
        dense=max(0, rest - expert),
        expert=expert,
        experts=experts,
        chosen=max(1, number(fields, "num_experts_per_tok")),
    )


def number(fields: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := fields.get(name), int) and value > 0:
            return value
    return 0


def predict(
    info: CheckpointInfo,
    config: Mapping[str, Any],
    speed: Speed,
    free: int,
    settings: ModelConfig,
    draft: CheckpointInfo | None = None,
) -> list[Prediction]:
    """One Prediction for each format that was measured, the largest first.

    A draft model counts in memory; its guesses do not count in speed.
    """
    both = info.beside(draft) if draft else info
    return [
        predict_format(info, work_of(info, config), cast(Format, name), speed, free, settings, both)
        for name in speed.linear
    ]


def predict_format(
    info: CheckpointInfo,
    work: Work,
    format: Format,
    speed: Speed,
    free: int,
    settings: ModelConfig,
    both: CheckpointInfo,
) -> Prediction:
    """`both` has the bytes of the draft model too."""
    kv = kv_token_bytes(info, settings, format)
    per_parameter = info.weight_bytes[format] / info.parameters
    prediction = Prediction(
        format=format,
        weight_bytes=both.weight_bytes[format],
        kv_bytes_per_token=kv_token_bytes(both, settings, format),
        fits=True,
        first_token_seconds=prompt_seconds(work, per_parameter, format, speed),
        tokens_per_second=1 / decode_seconds(work, per_parameter, kv, format, speed, 1),
        tokens_per_second_16=(
            STREAMS / decode_seconds(work, per_parameter, kv, format, speed, STREAMS)
        ),
    )
    quantize = "none" if format == "bf16" else format
    try:
        plan = plan_memory(both, msgspec.structs.replace(settings, quantize=quantize), format, free)
    except InsufficientMemory as error:
        return msgspec.structs.replace(prediction, fits=False, advice=error.message)
    tokens = plan.blocks * BLOCK
    context = settings.context or info.context
    return msgspec.structs.replace(
        prediction,
        kv_bytes=plan.kv_bytes,
        sequences_full=min(settings.max_running, tokens // context),
        sequences_1k=min(settings.max_running, tokens // min(1000, context)),
    )


def prompt_seconds(work: Work, per_parameter: float, format: str, speed: Speed) -> float:
    """One step over a prompt of PROMPT tokens."""
    read = (work.active(PROMPT) + work.head) * per_parameter / speed.bandwidth
    compute = 2 * work.used * PROMPT / speed.linear[format][256]
    compute += 2 * work.head / speed.linear[format][1]
    attention = work.layers * 2 * PROMPT * PROMPT * work.width / speed.attention
    return overlapped(read, compute) + attention + calls(work, speed, 1)


def decode_seconds(
    work: Work, per_parameter: float, kv: int, format: str, speed: Speed, streams: int
) -> float:
    """One step of `streams` sequences, one token each, at PROMPT tokens of context."""
    read = (work.active(streams) + work.head) * per_parameter / speed.bandwidth
    compute = 2 * (work.used + work.head) * streams / speed.linear[format][streams]
    keys = streams * PROMPT * kv / min(speed.bandwidth, speed.cache[streams])
    return overlapped(read, compute) + keys + calls(work, speed, streams)


def overlapped(read: float, compute: float) -> float:
    """Seconds of products that read and compute so long: less than the sum, more than either."""
    return float((read**OVERLAP + compute**OVERLAP) ** (1 / OVERLAP))


def calls(work: Work, speed: Speed, streams: int) -> float:
    return work.layers * CALLS * speed.call + STEP + streams * SEQUENCE
