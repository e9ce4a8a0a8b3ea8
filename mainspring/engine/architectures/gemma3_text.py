"""Gemma 3's text model: gemma2 with norms on q and k and two rotary bases, without caps."""

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
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
}


def build(source: Source) -> Architecture:
    """Layers with a window rotate by the local base, the others by the global one."""
    fields, sizes = source.fields, source.sizes
    if fields.flag("use_bidirectional_attention"):
        raise fields.refuse("use_bidirectional_attention", "is true; only causal models are run")
    base = fields.number("rope_local_base_freq", low=1.0, high=1e15)
    everywhere = Rope.of(fields, sizes, source.context)
    local = Rope.local(fields, sizes, source.context, base)
    pattern = fields.integer("sliding_window_pattern")
    windows = layer_windows(fields, sizes.layers, lambda layer: (layer + 1) % pattern != 0)

    def block(layer: int) -> Block:
        rope = local if windows[layer] else everywhere
        attention = _attention(source, layer, rope, windows[layer])
        mixer = FeedForward.load(source, f"model.layers.{layer}.mlp")
        return SandwichBlock.load(source, attention, mixer)

    return Decoder(
        source,
        block,
        [everywhere, local],
        norm=1 + source.vector("model.norm.weight", sizes.hidden),
        embedding_scale=sizes.hidden**0.5,
        softcap=fields.number("final_logit_softcapping", 0.0, high=1e6),
    )


def _attention(source: Source, layer: int, rope: Rope, window: int) -> Attention:
    fields, head = source.fields, source.sizes.head
    prefix = f"model.layers.{layer}.self_attn."
    bias = fields.flag("attention_bias")
    return Attention.load(
        source,
        layer,
        rope,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
        scale=fields.number("query_pre_attn_scalar", low=1e-3, high=1e6) ** -0.5,
        head_norms=(
            1 + source.vector(prefix + "q_norm.weight", head),
            1 + source.vector(prefix + "k_norm.weight", head),
        ),
    )
