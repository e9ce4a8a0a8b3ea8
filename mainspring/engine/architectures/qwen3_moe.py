"""Qwen 3 with experts in all or some layers."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.architectures.qwen3 import attention
from mainspring.engine.layers.block import Block, Mixer, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.moe import Experts
from mainspring.engine.layers.rope import Rope
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "sliding_window": 4096,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def build(source: Source) -> Architecture:
    fields = source.fields
    rope = Rope.of(fields, source.sizes, source.context)
    window = 0
    if fields.flag("use_sliding_window"):
        window = fields.integer("sliding_window", high=1 << 24)

    def block(layer: int) -> Block:
        mixed = attention(source, layer, rope, window)
        return PreNormBlock.load(source, mixed, _mixer(source, layer))

    return Decoder(source, block, [rope])


def _mixer(source: Source, layer: int) -> Mixer:
    """Experts in every `decoder_sparse_step`-th layer, but not in `mlp_only_layers`."""
    fields, prefix = source.fields, f"model.layers.{layer}.mlp"
    dense = fields.integers("mlp_only_layers", high=1024)
    count = fields.integer("num_experts", low=0, high=4096)
    step = fields.integer("decoder_sparse_step", 1)
    if layer in dense or count == 0 or (layer + 1) % step:
        return FeedForward.load(source, prefix)
    router = Router.load(
        source,
        f"{prefix}.gate",
        count=count,
        top=fields.integer("num_experts_per_tok", high=count),
        normalize=fields.flag("norm_topk_prob"),
    )
    inner = fields.integer("moe_intermediate_size", high=1 << 20)
    return Experts.load(source, prefix, ("gate_proj", "up_proj", "down_proj"), router, inner=inner)
