"""What llama.cpp writes of each family, in the words of Hugging Face's config.json.

A row of `LAYOUTS` is one `general.architecture`. The keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mainspring.engine.gguf.header import Header, Metadata
from mainspring.errors import ModelError

__all__ = ["EXPERT", "FACTORS", "Layout", "find_layout"]

Config = dict[str, Any]

EXPERT = "{expert}"
"""in a name, for the number of an expert"""
OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.gate_proj",
    "ffn_up_exps": f"mlp.experts.{EXPERT}.up_proj",
    "ffn_down_exps": f"mlp.experts.{EXPERT}.down_proj",
}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
MIXTRAL = {
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.w1",
    "ffn_up_exps": f"mlp.experts.{EXPERT}.w3",
    "ffn_down_exps": f"mlp.experts.{EXPERT}.w2",
}
LAYER = re.compile(r"blk\.(\d{1,4})\.(.+)")
FACTORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
"""tensors that become a part of the configuration"""
ENDS = {
    "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>",
    "<|eom_id|>", "<|end_of_turn|>", "<|endofturn|>", "<EOT>", "<|end_of_role|>", "<|return|>",
}  # fmt: skip
"""texts of control tokens that end a turn whatever the file says of them"""
CONTROL = 3


class Facts(Metadata):
    """The metadata of one file. A name without a dot is the architecture's own."""

    def __init__(self, header: Header, file: str) -> None:
        super().__init__(header, file)
        self.architecture = self.choice("general.architecture", None, LAYOUTS)

    def own(self, name: str) -> str:
        """The key of the architecture's `name`. A list of equal numbers, one a layer, is one."""
        key = f"{self.architecture}.{name}"
        value = self.values.get(key)
        if isinstance(value, np.ndarray):
            if not len(value) or (value != value[0]).any():
                raise self.refuse(key, "differs from layer to layer, which is not supported")
            self.values[key] = value[0].item()
        return key

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.values

    def count(self, name: str, default: int | None = None, high: int = 1 << 31) -> int:
        return self.integer(self.own(name), default, high=high)

    def amount(self, name: str, default: float | None = None) -> float:
        return self.number(self.own(name), default, high=1e15)


def _nothing(facts: Facts, config: Config) -> Config:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One family as llama.cpp writes it."""

    model_type: str
    inside: Mapping[str, str] = field(default_factory=dict)
    """names within a layer where they differ from INSIDE"""
    interleaved: bool = False
    """the rows of q and k are in the order of a rotation of neighbours, not of halves"""
    raised: bool = False
    """norms are stored with the 1 added that the family adds itself"""
    more: Callable[[Facts, Config], Config] = _nothing
    """further fields of the configuration"""

    def name(self, stored: str) -> str:
        """The family's name of a tensor, with EXPERT in it where it holds all experts.

        A tensor that llama.cpp does not write for it keeps its name, and is refused by it.
        """
        base, dot, kind = stored.rpartition(".")
        if found := LAYER.fullmatch(base):
            name = {**INSIDE, **self.inside}.get(found[2])
            return f"model.layers.{int(found[1])}.{name}{dot}{kind}" if name else stored
        return f"{OUTSIDE[base]}{dot}{kind}" if base in OUTSIDE else stored


def find_layout(header: Header, file: str, factors: Mapping[str, list[float]]) -> tuple[
    Layout, Config
]:  # fmt: skip
    """The layout of a file's family and its configuration. Raises ModelError naming the key.

    `factors` are the values of the tensors of FACTORS that are there.
    """
    facts = Facts(header, file)
    layout = LAYOUTS[facts.architecture]
    if facts.architecture == "llama" and facts.has("expert_count"):
        layout = LAYOUTS["mixtral"]
    config = _config(facts)
    if scaling := _scaling(facts, config, factors):
        config["rope_scaling"] = scaling
    config |= layout.more(facts, config)
    return layout, {**config, "model_type": layout.model_type}


def _config(facts: Facts) -> Config:
    tensors = facts.header.tensors
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{facts.where}: token_embd.weight is missing: this is no language model")
    hidden = facts.count("embedding_length", high=1 << 16)
    heads = facts.count("attention.head_count", high=1024)
    head = facts.count("attention.key_length", max(1, hidden // heads), high=1024)
    if (value := facts.count("attention.value_length", head)) != head:
        raise facts.refuse(
            facts.own("attention.value_length"), f"is {value}, the keys' {head}; they must be equal"
        )
    rotated = facts.count("rope.dimension_count", head, high=head)
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count("attention.head_count_kv", heads, high=1024),
        "head_dim": head,
        "num_hidden_layers": facts.count("block_count", high=1024),
        "intermediate_size": facts.count("feed_forward_length", high=1 << 20),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": facts.count("context_length", high=1 << 24),
        "rms_norm_eps": facts.amount("attention.layer_norm_rms_epsilon"),
        "rope_theta": facts.amount("rope.freq_base", 10_000.0),
        "partial_rotary_factor": rotated / head,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "eos_token_id": _ends(facts),
    }


def _ends(facts: Facts) -> list[int]:
    """Ids that end a text: those the file names, and control tokens known for it."""
    last = facts.header.tensors["token_embd.weight"].shape[0] - 1
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    found = [facts.integer(key, low=0, high=last) for key in keys if key in facts]
    if "tokenizer.ggml.tokens" in facts:
        kinds = facts.array("tokenizer.ggml.token_type")
        control = np.flatnonzero(kinds == CONTROL)
        tokens = facts.strings("tokenizer.ggml.tokens") if len(control) else []
        found += [int(i) for i in control if i < min(len(tokens), last) and tokens[i] in ENDS]
    return sorted(set(found))


def _scaling(facts: Facts, config: Config, factors: Mapping[str, list[float]]) -> Config | None:
    """`rope_scaling`, None without one."""
    kind = facts.choice(
        facts.own("rope.scaling.type"), "none", ("none", "linear", "yarn", "longrope")
    )
    trained = facts.count(
        "rope.scaling.original_context_length", config["max_position_embeddings"], high=1 << 24
    )
    if long := factors.get("rope_factors_long.weight"):
        scaling: Config = {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": factors.get("rope_factors_short.weight"),
        }
        config["original_max_position_embeddings"] = trained
        if facts.has("rope.scaling.attn_factor"):
            scaling["attention_factor"] = facts.amount("rope.scaling.attn_factor")
        return scaling
    if short := factors.get("rope_freqs.weight"):
        # Llama 3's stretched wavelengths, worked out by the converter: longrope of one length.
        return {"rope_type": "longrope", "short_factor": short, "attention_factor": 1.0}
    if kind in ("none", "longrope"):
        return None
    scaling = {"rope_type": kind, "factor": facts.amount("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = trained
        for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if facts.has(f"rope.scaling.{key}"):
                scaling[name] = facts.amount(f"rope.scaling.{key}")
    return scaling


def _gemma_scalar(config: Config, largest: int) -> int:
    """What scores are divided by the root of: another number in the 27B model, which is known by
    its count of layers, because the file does not say."""
    if config["num_hidden_layers"] != largest:
        return int(config["head_dim"])
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def _gemma2(facts: Facts, config: Config) -> Config:
    return {
        "query_pre_attn_scalar": _gemma_scalar(config, 46),
        "sliding_window": facts.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": facts.amount("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.amount("final_logit_softcapping", 30.0),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _gemma3(facts: Facts, config: Config) -> Config:
    return {
        "query_pre_attn_scalar": _gemma_scalar(config, 62),
        "sliding_window": facts.count("attention.sliding_window"),
        "rope_theta": facts.amount("rope.freq_base", 1e6),
        "rope_local_base_freq": facts.amount("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": facts.amount("final_logit_softcapping", 0.0),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _phi3(facts: Facts, config: Config) -> Config:
    window = facts.own("attention.sliding_window")
    return {"sliding_window": facts.integer(window, 0, low=0, high=1 << 24)}


def _mixtral(facts: Facts, config: Config) -> Config:
    count = facts.count("expert_count", high=4096)
    return {
        "num_local_experts": count,
        "num_experts_per_tok": facts.count("expert_used_count", high=count),
    }


def _qwen3_moe(facts: Facts, config: Config) -> Config:
    count = facts.count("expert_count", high=4096)
    return {
        "num_experts": count,
        "num_experts_per_tok": facts.count("expert_used_count", high=count),
        "moe_intermediate_size": facts.count("expert_feed_forward_length", high=1 << 20),
        "norm_topk_prob": True,
    }


LAYOUTS = {
    "llama": Layout(model_type="llama", interleaved=True),
    "mixtral": Layout(model_type="mixtral", inside=MIXTRAL, interleaved=True, more=_mixtral),
    "qwen2": Layout(model_type="qwen2"),
    "qwen3": Layout(model_type="qwen3"),
    "qwen3moe": Layout(model_type="qwen3_moe", more=_qwen3_moe),
    "phi3": Layout(model_type="phi3", inside={"ffn_up": "mlp.gate_up_proj"}, more=_phi3),
    "gemma2": Layout(model_type="gemma2", inside=SANDWICH, raised=True, more=_gemma2),
    "gemma3": Layout(model_type="gemma3_text", inside=SANDWICH, raised=True, more=_gemma3),
}
