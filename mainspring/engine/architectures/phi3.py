"""Phi 3, 3.5 and 4: q, k, v and gate, up are stored fused; part of a head may be rotated."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["CLASSES", "DEFAULTS", "build"]

DEFAULTS = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
CLASSES = ("Phi3ForCausalLM",)


def build(source: Source) -> Architecture:
    """With LongRoPE the trained context is served, and a longer one where it is asked for."""
    rope = Rope.of(source.fields, source.sizes, source.context)
    window = source.fields.integer("sliding_window", 0, low=0, high=1 << 24)

    def block(layer: int) -> Block:
        attention = Attention.load(source, layer, rope, qkv_names=["qkv_proj"], window=window)
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp", names=["gate_up_proj"])
        return PreNormBlock.load(source, attention, mixer)

    return Decoder(source, block, [rope])
