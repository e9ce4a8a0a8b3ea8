"""DeepSeek V3 and R1, and what is made like them: latent attention, experts chosen by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mainspring.engine.architectures import Architecture
from mainspring.engine.layers.block import Block, Mixer, PreNormBlock
from mainspring.engine.layers.decoder import Decoder
from mainspring.engine.layers.feedforward import FeedForward
from mainspring.engine.layers.latent import LatentAttention, LatentSizes
from mainspring.engine.layers.moe import Experts
from mainspring.engine.layers.rope import Rope
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source

__all__ = ["CLASSES", "DEFAULTS", "build", "latent_decoder"]

DEFAULTS = {
    "max_position_embeddings": 4096,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "rope_interleave": True,
    "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
CLASSES = ("DeepseekV3ForCausalLM",)


def build(source: Source) -> Architecture:
    """The layers after the last, which guess more tokens at once, are left out."""
    fields = source.fields
    fields.choice("scoring_func", None, ("sigmoid",))
    fields.choice("topk_method", None, ("noaux_tc",))
    source.leave_out(f"model.layers.{source.sizes.layers}.")

    def router(name: str) -> Router:
        count = fields.integer("n_routed_experts", high=4096)
        groups = fields.integer("n_group", 1, high=count)
        return Router.load(
            source,
            name,
            count=count,
            top=fields.integer("num_experts_per_tok", high=count),
            normalize=fields.flag("norm_topk_prob"),
            sigmoid=True,
            correction=source.vector(f"{name}.e_score_correction_bias", count),
            groups=groups,
            best=fields.integer("topk_group", 1, high=groups),
            scale=fields.number("routed_scaling_factor", high=1e6),
        )

    return latent_decoder(source, router, paired=fields.flag("rope_interleave"))


def latent_decoder(
    source: Source, router: Callable[[str], Router], *, paired: bool
) -> Architecture:
    """DeepSeek V2 and V3; `router` loads the one of a name."""
    fields = source.fields
    sizes = LatentSizes.of(fields)
    rope = Rope.of(fields, replace(source.sizes, head=sizes.rotated), source.context)
    dense = fields.integer("first_k_dense_replace", low=0)
    if fields.integer("moe_layer_freq", 1) != 1:
        raise fields.refuse("moe_layer_freq", "must be 1: experts in every layer after the dense")

    def mixer(prefix: str) -> Mixer:
        inner = fields.integer("moe_intermediate_size", high=1 << 20)
        count = fields.integer("n_shared_experts", 0, low=0, high=1024)
        shared = None
        if count:
            shared = FeedForward.load(source, f"{prefix}.shared_experts", inner=count * inner)
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts.load(
            source, prefix, names, router(f"{prefix}.gate"), inner=inner, shared=shared
        )

    def block(layer: int) -> Block:
        prefix = f"model.layers.{layer}.mlp"
        attention = LatentAttention.load(source, layer, rope, sizes, paired=paired)
        mixed = mixer(prefix) if layer >= dense else FeedForward.load(source, prefix)
        return PreNormBlock.load(source, attention, mixed)

    cached = replace(source.sizes, kv_heads=1, head=sizes.cached)
    return Decoder(source, block, [rope], sizes=cached)
