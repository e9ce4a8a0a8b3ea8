"""OLMo 3: olmo2 with a sliding window in three of four layers, which are rotated unscaled."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.architectures.olmo2 import attention
from mainspring.engine.layers.attention import layer_windows
from mainspring.engine.layers.block import Block, PostNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 5e5,
    "sliding_window": 4096,
}


def build(source: Source) -> Architecture:
    fields, sizes = source.fields, source.sizes
    base = fields.number("rope_theta", low=1.0, high=1e15)
    everywhere = Rope.of(fields, sizes, source.context)
    local = Rope.local(fields, sizes, source.context, base)
    windows = layer_windows(fields, sizes.layers, lambda layer: (layer + 1) % 4 != 0)

    def block(layer: int) -> Block:
        rope = local if windows[layer] else everywhere
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return PostNormBlock.load(source, attention(source, layer, rope, windows[layer]), mixer)

    return Decoder(source, block, [everywhere, local])
