"""Llama 1 to 3.3, and the many models that save themselves as llama."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {"max_position_embeddings": 2048}


def build(source: Source) -> Architecture:
    """Attention may have biases (on all four products), and so may the feed-forward layer."""
    fields = source.fields
    rope = Rope.of(fields, source.sizes, source.context)
    attention_bias, mlp_bias = fields.flag("attention_bias"), fields.flag("mlp_bias")

    def block(layer: int) -> Block:
        attention = Attention.load(
            source, layer, rope, qkv_bias=attention_bias, output_bias=attention_bias
        )
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp", bias=mlp_bias)
        return PreNormBlock.load(source, attention, mixer)

    return Decoder(source, block, [rope])
