"""The table of tiny models that each family is compared on. A new family is one row here.

`config` is config.json as a checkpoint would have it, in the older or the newer spelling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ROWS", "Row"]

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    **SMALL,
    "num_hidden_layers": 3,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 24,
    "sliding_window": 9,
}
EXPERTS = {
    **SMALL,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
}
LATENT = {
    **SMALL,
    "head_dim": None,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0],
    "long_factor": [1.0, 1.3, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}


@dataclass(frozen=True)
class Row:
    """One tiny model."""

    family: str
    config: dict[str, Any]
    stored: Literal["F32", "F16", "BF16", "MXFP4"] = "F32"
    """dtype of the weights in the file; the computation is in float32 on both sides"""
    shortest: int = 3
    """tokens in the shortest prompt"""
    context: int = 0
    """as `load_model` takes it"""
    seed: int = 0
    """another one where a greedy choice happened to be a near tie"""
    fused_experts: bool = False
    """the file has one tensor for all experts of a layer"""


def _row(
    family: str, base: dict[str, Any], *, row: dict[str, Any] | None = None, **more: Any
) -> Row:
    config = {"model_type": family, **base, **more}
    if config["head_dim"] is None:
        del config["head_dim"]
    return Row(family, config, **(row or {}))


ROWS: dict[str, Row] = {
    "llama": _row(
        "llama", SMALL, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, row={"seed": 1}
    ),
    "llama_tied_bias": _row(
        "llama",
        SMALL,
        hidden_size=40,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=None,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
    ),
    "llama3": _row(
        "llama",
        SMALL,
        rope_theta=500_000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        row={"stored": "BF16", "seed": 1},
    ),
    "llama_linear": _row(
        "llama", SMALL, rope_theta=10_000.0, rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "llama_yarn": _row(
        "llama",
        SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        row={"seed": 1},
    ),
    "llama_dynamic": _row(
        "llama", SMALL, rope_theta=10_000.0, rope_scaling={"type": "dynamic", "factor": 2.0}
    ),
    "mistral": _row("mistral", SMALL, sliding_window=None, rope_theta=1e6, head_dim=20),
    "mistral_window": _row("mistral", SMALL, sliding_window=12, rope_theta=10_000.0),
    "qwen2": _row(
        "qwen2",
        SMALL,
        rope_theta=1e6,
        tie_word_embeddings=True,
        head_dim=None,
        row={"stored": "F16"},
    ),
    "qwen2_window": _row(
        "qwen2",
        SMALL,
        num_hidden_layers=3,
        head_dim=None,
        rope_theta=1e6,
        use_sliding_window=True,
        sliding_window=10,
        max_window_layers=1,
        row={"seed": 1},
    ),
    "qwen2_yarn": _row(
        "qwen2",
        SMALL,
        head_dim=None,
        max_position_embeddings=64,
        rope_theta=1e6,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "qwen3": _row("qwen3", SMALL, rope_theta=1e6, tie_word_embeddings=True),
    "gemma2": _row(
        "gemma2",
        GEMMA,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=10.0,
        rope_theta=10_000.0,
    ),
    "gemma3_text": _row(
        "gemma3_text",
        GEMMA,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3_text_older": _row(
        "gemma3_text",
        GEMMA,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=2,
        row={"stored": "BF16"},
    ),
    "gemma3": Row(
        "gemma3",
        {
            "model_type": "gemma3",
            "eos_token_id": None,
            "text_config": {
                "model_type": "gemma3_text",
                **GEMMA,
                "rope_theta": 1e6,
                "sliding_window_pattern": 3,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 1,
            "image_token_index": 159,
            "boi_token_index": 158,
            "eoi_token_index": 157,
        },
    ),
    "phi3": _row("phi3", SMALL, head_dim=None, rope_theta=10_000.0, sliding_window=20),
    "phi3_partial": _row(
        "phi3",
        SMALL,
        hidden_size=64,
        head_dim=None,
        partial_rotary_factor=0.75,
        rope_theta=10_000.0,
        row={"stored": "BF16"},
    ),
    "phi3_longrope_short": _row(
        "phi3",
        SMALL,
        hidden_size=64,
        head_dim=None,
        original_max_position_embeddings=160,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        rope_scaling=LONGROPE,
        row={"seed": 1},
    ),
    "phi3_longrope_long": _row(
        "phi3",
        SMALL,
        hidden_size=64,
        head_dim=None,
        original_max_position_embeddings=16,
        max_position_embeddings=256,
        rope_theta=10_000.0,
        rope_scaling=LONGROPE,
        row={"shortest": 17, "context": 256},
    ),
    "phi4": _row(  # as Phi 4 saves itself; vocabulary and widths alone are smaller
        "phi3",
        SMALL,
        hidden_size=80,
        num_attention_heads=8,
        head_dim=None,
        original_max_position_embeddings=256,
        rope_scaling=None,
        rope_theta=250_000,
        sliding_window=None,
        row={"stored": "BF16"},
    ),
    "phi4_mini": _row(
        "phi3",
        SMALL,
        hidden_size=96,
        num_attention_heads=6,
        head_dim=None,
        auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        partial_rotary_factor=0.75,
        original_max_position_embeddings=160,
        max_position_embeddings=5120,
        sliding_window=1024,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        rope_scaling={
            "type": "longrope",
            "short_factor": LONGROPE["short_factor"][:6],
            "long_factor": LONGROPE["long_factor"][:6],
        },
    ),
    "olmo2": _row(
        "olmo2", SMALL, head_dim=None, rope_theta=5e5, num_attention_heads=6, num_key_value_heads=3
    ),
    "olmo3": _row(
        "olmo3",
        SMALL,
        num_hidden_layers=4,
        head_dim=None,
        sliding_window=11,
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "yarn",
            **YARN,
            "attention_factor": 1.2079441541679836,
        },
    ),
    "granite": _row(
        "granite",
        SMALL,
        head_dim=None,
        rope_theta=1e7,
        attention_multiplier=0.125,
        embedding_multiplier=6.0,
        residual_multiplier=0.75,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    ),
    "smollm3": _row(
        "smollm3",
        SMALL,
        num_hidden_layers=3,
        head_dim=None,
        no_rope_layers=[1, 0, 1],
        rope_theta=5e6,
        tie_word_embeddings=True,
    ),
    "smollm3_window": _row(
        "smollm3",
        SMALL,
        num_hidden_layers=4,
        head_dim=None,
        use_sliding_window=True,
        sliding_window=13,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        row={"seed": 1},
    ),
    "gpt_oss": _row(
        "gpt_oss",
        SMALL,
        num_hidden_layers=3,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=10,
        attention_bias=True,
        rope_theta=150_000,
        rope_scaling={
            "rope_type": "yarn",
            **YARN,
            "truncate": False,
        },
    ),
    "gpt_oss_mxfp4": _row(
        "gpt_oss",
        SMALL,
        hidden_size=64,
        # `dequantize` is for the library, whose own kernels of MXFP4 would need more packages
        quantization_config={"quant_method": "mxfp4", "dequantize": True},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 150_000},
        row={"stored": "MXFP4"},
    ),
    "deepseek_v2": _row(
        "deepseek_v2",
        LATENT,
        q_lora_rank=None,
        n_shared_experts=2,
        topk_method="greedy",
        rope_scaling=None,
        rope_theta=10_000,
        row={"seed": 1},
    ),
    "deepseek_v2_groups": _row(
        "deepseek_v2",
        LATENT,
        q_lora_rank=24,
        n_shared_experts=1,
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        routed_scaling_factor=4.0,
        rope_theta=10_000,
        rope_scaling={
            "type": "yarn",
            **YARN,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
        row={"seed": 1},
    ),
    "deepseek_v3": _row(
        "deepseek_v3",
        LATENT,
        num_hidden_layers=3,
        q_lora_rank=24,
        n_shared_experts=1,
        n_group=3,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=0,
        rope_theta=10_000,
        rope_scaling={
            "type": "yarn",
            **YARN,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    ),
    "mixtral": _row(
        "mixtral",
        SMALL,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_theta=1e6,
        sliding_window=None,
        row={"seed": 1},
    ),
    "mixtral_fused": _row(
        "mixtral",
        SMALL,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_theta=1e6,
        sliding_window=14,
        row={"fused_experts": True},
    ),
    "qwen3_moe": _row(
        "qwen3_moe", EXPERTS, norm_topk_prob=True, mlp_only_layers=[1], rope_theta=1e6
    ),
    "qwen3_moe_sparse": _row(
        "qwen3_moe", EXPERTS, norm_topk_prob=False, decoder_sparse_step=2, rope_theta=1e6
    ),
}
