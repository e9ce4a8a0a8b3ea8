"""OLMo 2: norms after attention and feed-forward only, and one norm over all heads of q, of k."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PostNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "attention", "build"]

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def build(source: Source) -> Architecture:
    rope = Rope.of(source.fields, source.sizes, source.context)

    def block(layer: int) -> Block:
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return PostNormBlock.load(source, attention(source, layer, rope, 0), mixer)

    return Decoder(source, block, [rope])


def attention(source: Source, layer: int, rope: Rope, window: int) -> Attention:
    """The attention of OLMo 2 and 3."""
    bias = source.fields.flag("attention_bias")
    prefix, sizes = f"model.layers.{layer}.self_attn.", source.sizes
    q_norm = source.vector(prefix + "q_norm.weight", sizes.heads * sizes.head)
    k_norm = source.vector(prefix + "k_norm.weight", sizes.kv_heads * sizes.head)
    return Attention.load(
        source,
        layer,
        rope,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
        head_norms=(q_norm, k_norm),
    )
