"""SmolLM 3: llama, every fourth layer of which does without positions (NoPE)."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.fields import Fields
from mainspring.engine.layers.attention import Attention, layer_windows
from mainspring.engine.layers.block import Block, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rope_theta": 2e6,
    "tie_word_embeddings": True,
    "no_rope_layer_interval": 4,
}


def build(source: Source) -> Architecture:
    """`no_rope_layers` has 1 for a layer with positions, in spite of its name, and 0 for one
    without. Where layers have a window, those without positions do.
    """
    fields, layers = source.fields, source.sizes.layers
    rope = Rope.of(fields, source.sizes, source.context)
    attention_bias, mlp_bias = fields.flag("attention_bias"), fields.flag("mlp_bias")
    rotated = _rotated(fields, layers)
    windows = (0,) * layers
    if fields.flag("use_sliding_window"):
        windows = layer_windows(fields, layers, lambda layer: not rotated[layer])

    def block(layer: int) -> Block:
        attention = Attention.load(
            source,
            layer,
            rope if rotated[layer] else None,
            qkv_bias=attention_bias,
            output_bias=attention_bias,
            window=windows[layer],
        )
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp", bias=mlp_bias)
        return PreNormBlock.load(source, attention, mixer)

    return Decoder(source, block, [rope])


def _rotated(fields: Fields, layers: int) -> tuple[int, ...]:
    if "no_rope_layers" not in fields:
        interval = fields.integer("no_rope_layer_interval")
        return tuple(int((layer + 1) % interval != 0) for layer in range(layers))
    given = fields.integers("no_rope_layers", high=1)
    if len(given) < layers:
        raise fields.refuse("no_rope_layers", f"has {len(given)} of {layers} layers")
    return given
