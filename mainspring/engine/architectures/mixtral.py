"""Mixtral: mistral with experts in place of the feed-forward layer."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.moe import Experts
from mainspring.engine.layers.rope import Rope
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build", "rename"]

DEFAULTS = {
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def build(source: Source) -> Architecture:
    fields = source.fields
    rope = Rope.of(fields, source.sizes, source.context)
    window = fields.integer("sliding_window", 0, low=0, high=1 << 24)
    count = fields.integer("num_local_experts", high=4096)

    def block(layer: int) -> Block:
        attention = Attention.load(source, layer, rope, window=window)
        prefix = f"model.layers.{layer}.mlp"
        top = fields.integer("num_experts_per_tok", high=count)
        router = Router.load(source, f"{prefix}.gate", count=count, top=top, normalize=True)
        experts = Experts.load(source, prefix, ("w1", "w3", "w2"), router, inner=source.sizes.inner)
        return PreNormBlock.load(source, attention, experts)

    return Decoder(source, block, [rope])


def rename(name: str) -> str | None:
    """Published checkpoints say `block_sparse_moe` where newer ones say `mlp`."""
    return name.replace(".block_sparse_moe.", ".mlp.")
