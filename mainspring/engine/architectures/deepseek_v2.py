"""DeepSeek V2 and V2-Lite: latent attention, experts chosen by their share of the softmax."""

from __future__ import annotations

from mainspring.engine.architectures import Architecture
from mainspring.engine.architectures.deepseek_v3 import latent_decoder
from mainspring.engine.layers.router import Router
from mainspring.engine.source import Source

__all__ = ["CLASSES", "DEFAULTS", "build"]

DEFAULTS = {
    "max_position_embeddings": 2048,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
}
CLASSES = ("DeepseekV2ForCausalLM",)


def build(source: Source) -> Architecture:
    fields = source.fields
    fields.choice("scoring_func", "softmax", ("softmax",))
    if fields.flag("norm_topk_prob"):
        raise fields.refuse("norm_topk_prob", "must be false, as in all published models")
    grouped = fields.choice("topk_method", None, ("greedy", "group_limited_greedy")) != "greedy"

    def router(name: str) -> Router:
        count = fields.integer("n_routed_experts", high=4096)
        groups = fields.integer("n_group", high=count) if grouped else 1
        return Router.load(
            source,
            name,
            count=count,
            top=fields.integer("num_experts_per_tok", high=count),
            normalize=False,
            groups=groups,
            best=fields.integer("topk_group", high=groups) if grouped else 1,
            scale=fields.number("routed_scaling_factor", high=1e6),
        )

    return latent_decoder(source, router, paired=True)
