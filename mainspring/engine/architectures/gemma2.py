"""Gemma 2: norms around each part, soft caps, every other layer with a sliding window."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.attention import Attention, layer_windows
from mainspring.engine.layers.block import Block, SandwichBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source

__all__ = ["DEFAULTS", "build"]

DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def build(source: Source) -> Architecture:
    fields, sizes = source.fields, source.sizes
    rope = Rope.of(fields, sizes, source.context)
    bias = fields.flag("attention_bias")
    windows = layer_windows(fields, sizes.layers, lambda layer: layer % 2 == 0)

    def block(layer: int) -> Block:
        attention = Attention.load(
            source,
            layer,
            rope,
            qkv_bias=bias,
            output_bias=bias,
            window=windows[layer],
            scale=fields.number("query_pre_attn_scalar", low=1e-3, high=1e6) ** -0.5,
            softcap=fields.number("attn_logit_softcapping", 0.0, high=1e6),
        )
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return SandwichBlock.load(source, attention, mixer)

    return Decoder(
        source,
        block,
        [rope],
        norm=1 + source.vector("model.norm.weight", sizes.hidden),
        embedding_scale=sizes.hidden**0.5,
        softcap=fields.number("final_logit_softcapping", 0.0, high=1e6),
    )
