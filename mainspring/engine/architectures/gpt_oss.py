"""gpt-oss: experts with biases and a bounded gate; sinks; a window in every other layer."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention, layer_windows
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.linear import Linear
from mainspring.engine.layers.moe import Experts
from mainspring.engine.layers.rope import Rope
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "sliding_window": 128,
    "attention_bias": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
}
GATE = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}
"""the numbers of `clamped_silu`, which all published models have"""


def build(source: Source) -> Architecture:
    fields, layers = source.fields, source.sizes.layers
    for name, known in GATE.items():
        if (found := fields.number(name, known)) != known:
            raise fields.refuse(name, f"is {found:g}; only {known:g} is computed")
    rope = Rope.of(fields, source.sizes, source.context)
    windows = layer_windows(fields, layers, lambda layer: layer % 2 == 0)
    bias = fields.flag("attention_bias")

    def block(layer: int) -> Block:
        prefix = f"model.layers.{layer}"
        attention = Attention.load(
            source,
            layer,
            rope,
            qkv_bias=bias,
            output_bias=bias,
            window=windows[layer],
            sinks=source.vector(f"{prefix}.self_attn.sinks", source.sizes.heads),
        )
        return PreNormBlock.load(source, attention, _experts(source, f"{prefix}.mlp"))

    return Decoder(source, block, [rope])


def _experts(source: Source, prefix: str) -> Experts:
    """As published one matrix an expert (see mxfp4.py), otherwise all together."""
    fields, hidden, inner = source.fields, source.sizes.hidden, source.sizes.inner
    count = fields.integer("num_local_experts", high=4096)
    router = Router.load(
        source,
        f"{prefix}.router",
        count=count,
        top=fields.integer("num_experts_per_tok", high=count),
        normalize=True,
        bias=True,
    )
    first, last = f"{prefix}.experts.gate_up_proj", f"{prefix}.experts.down_proj"
    if first in source:
        gates_ups = source.turned_stack(first, count, 2 * inner, hidden, paired=True)
        downs = source.turned_stack(last, count, hidden, inner)
    else:
        paths = [f"{prefix}.experts.{expert}." for expert in range(count)]
        gates_ups = [
            source.weight([path + "gate_up_proj"], (2 * inner,), hidden, bias=True)
            for path in paths
        ]
        downs = [source.weight([path + "down_proj"], (hidden,), inner, bias=True) for path in paths]
    experts = tuple(
        FeedForward(Linear(source.kernels, gate_up), Linear(source.kernels, down), "clamped_silu")
        for gate_up, down in zip(gates_ups, downs, strict=True)
    )
    return Experts(router, experts)
