"""Mistral: llama whose layers may all see a sliding window only."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "sliding_window": 4096,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}


def build(source: Source) -> Architecture:
    """`sliding_window` null: full attention, as from version 0.2 on."""
    rope = Rope.of(source.fields, source.sizes, source.context)
    window = source.fields.integer("sliding_window", 0, low=0, high=1 << 24)

    def block(layer: int) -> Block:
        attention = Attention.load(source, layer, rope, window=window)
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return PreNormBlock.load(source, attention, mixer)

    return Decoder(source, block, [rope])
