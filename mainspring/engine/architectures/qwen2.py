"""Qwen 2 and 2.5: biases on q, k and v; the upper layers may see a sliding window."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.fields import Fields
from mainspring.engine.layers.attention import Attention, layer_windows
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build", "upper_windows"]

DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}


def build(source: Source) -> Architecture:
    rope = Rope.of(source.fields, source.sizes, source.context)
    windows = upper_windows(source.fields, source.sizes.layers)

    def block(layer: int) -> Block:
        attention = Attention.load(source, layer, rope, qkv_bias=True, window=windows[layer])
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return PreNormBlock.load(source, attention, mixer)

    return Decoder(source, block, [rope])


def upper_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """Each layer's window: none without `use_sliding_window`, else from `max_window_layers` on."""
    if not fields.flag("use_sliding_window"):
        return (0,) * layers
    first = fields.integer("max_window_layers", low=0)
    return layer_windows(fields, layers, lambda layer: layer >= first)
