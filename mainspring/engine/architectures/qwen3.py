"""Qwen 3: norms on the heads of q and k in place of qwen2's biases."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.architectures.qwen2 import upper_windows
from mainspring.engine.layers.attention import Attention
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "attention", "build"]

DEFAULTS = {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}


def build(source: Source) -> Architecture:
    rope = Rope.of(source.fields, source.sizes, source.context)
    windows = upper_windows(source.fields, source.sizes.layers)

    def block(layer: int) -> Block:
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return PreNormBlock.load(source, attention(source, layer, rope, windows[layer]), mixer)

    return Decoder(source, block, [rope])


def attention(source: Source, layer: int, rope: Rope, window: int) -> Attention:
    """Qwen 3's attention, with experts after it or without."""
    bias = source.fields.flag("attention_bias")
    prefix, head = f"model.layers.{layer}.self_attn.", source.sizes.head
    q_norm = source.vector(prefix + "q_norm.weight", head)
    k_norm = source.vector(prefix + "k_norm.weight", head)
    return Attention.load(
        source,
        layer,
        rope,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
        head_norms=(q_norm, k_norm),
    )
