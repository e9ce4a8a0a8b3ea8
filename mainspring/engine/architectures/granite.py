"""Granite 3 and 4 (dense): llama whose embedding, scores, residuals and logits are scaled."""

from __future__ import annotations

import numpy as np

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def build(source: Source) -> Architecture:
    """The logits are divided by `logits_scaling`; the final norm's gain already is."""
    fields = source.fields
    rope = Rope.of(fields, source.sizes, source.context)
    attention_bias, mlp_bias = fields.flag("attention_bias"), fields.flag("mlp_bias")
    norm = source.vector("model.norm.weight", source.sizes.hidden)

    def block(layer: int) -> Block:
        attention = Attention.load(
            source,
            layer,
            rope,
            qkv_bias=attention_bias,
            output_bias=attention_bias,
            scale=fields.number("attention_multiplier", low=1e-6, high=1e6),
        )
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp", bias=mlp_bias)
        scale = fields.number("residual_multiplier", high=1e6)
        return PreNormBlock.load(source, attention, mixer, scale=scale)

    return Decoder(
        source,
        block,
        [rope],
        norm=norm / np.float32(fields.number("logits_scaling", low=1e-6, high=1e6)),
        embedding_scale=fields.number("embedding_multiplier", high=1e6),
    )
