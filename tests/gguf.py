"""GGUF files written on the spot: the format, and what llama.cpp's converter makes of a model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.tiny import CHAT_TEMPLATE, tiny_config, tiny_tensors, tiny_tokenizer

__all__ = ["U32", "convert", "dump", "tiny_gguf", "tokenizer_pairs", "write_gguf"]

TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
Stored = tuple[str, tuple[int, ...], bytes]
"""type, shape with the rows first, data"""


class U32(int):
    """Written as uint32, like every count in real files; a plain int is an int32."""


def write_gguf(path: Path, pairs: dict[str, Any], tensors: dict[str, np.ndarray | Stored]) -> Path:
    """A file with float32 arrays, or tensors that are encoded already."""
    path.write_bytes(dump(pairs, tensors))
    return path


def dump(
    pairs: dict[str, Any], tensors: dict[str, np.ndarray | Stored], alignment: int = 32
) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for key, value in pairs.items():
        kind, data = _value(value)
        parts += [_string(key), struct.pack("<I", kind), data]
    datas, end = [], 0
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            tensor = "F32", tensor.shape, np.ascontiguousarray(tensor, "<f4").tobytes()
        kind, shape, data = tensor
        parts += [_string(name), struct.pack("<I", len(shape))]
        parts += [struct.pack("<Q", n) for n in reversed(shape)]
        parts.append(struct.pack("<IQ", TYPE_IDS[kind], end))
        padding = -len(data) % alignment
        datas.append(data + b"\0" * padding)
        end += len(datas[-1])
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % alignment) + b"".join(datas)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, U32):
        return 4, struct.pack("<I", value)
    if isinstance(value, int):
        return 5, struct.pack("<i", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _string(value)
    kind = _value(value[0])[0] if len(value) else 5
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(_value(v)[1] for v in value)


def tiny_gguf(path: Path, **changes: Any) -> Path:
    """What `tests.tiny.tiny_checkpoint` writes, as a GGUF file."""
    config = tiny_config(**changes)
    pairs, tensors = convert(config, tiny_tensors(config))
    return write_gguf(path, {**pairs, **tokenizer_pairs(tiny_tokenizer(), CHAT_TEMPLATE)}, tensors)


def tokenizer_pairs(tokenizer: Tokenizer, template: str = "", way: str = "gpt-2") -> dict[str, Any]:
    """Of a byte-level tokenizer; `<|end|>` ends a text."""
    file = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = [1] * len(tokens)
    for added in file["added_tokens"]:
        kinds[added["id"]] = 3 if added["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in file["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": way,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": U32(tokens.index("<|end|>")),
        "tokenizer.ggml.add_bos_token": False,
        **({"tokenizer.chat_template": template} if template else {}),
    }


# From Hugging Face to llama.cpp -------------------------------------------------------------------

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "phi3": "phi3", "gemma2": "gemma2", "gemma3_text": "gemma3",
}  # fmt: skip
KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length", "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count", "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}  # fmt: skip
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
EXPERTS = {
    "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps",
}  # fmt: skip


def convert(
    config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of the model that config.json and safetensors files hold."""
    family = config["model_type"]
    architecture = ARCHITECTURES[family]
    pairs: dict[str, Any] = {"general.architecture": architecture, "general.alignment": U32(32)}
    for field, key in KEYS.items():
        if (value := config.get(field)) is not None:
            value = U32(value) if isinstance(value, int) else value
            pairs[f"{architecture}.{key}"] = value
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    theta = rope.get("rope_theta", config.get("rope_theta", 1e4))
    pairs |= {
        f"{architecture}.attention.key_length": U32(head),
        f"{architecture}.attention.value_length": U32(head),
        f"{architecture}.rope.dimension_count": U32(head * share),
        f"{architecture}.rope.freq_base": float(theta),
    }
    out: dict[str, np.ndarray] = {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        pairs[f"{architecture}.rope.scaling.type"] = kind
        pairs[f"{architecture}.rope.scaling.factor"] = float(rope["factor"])
        if trained := rope.get("original_max_position_embeddings"):
            pairs[f"{architecture}.rope.scaling.original_context_length"] = U32(trained)
    elif kind == "llama3":
        out["rope_freqs.weight"] = _llama3(rope, theta, head)
    elif kind in ("longrope", "su"):
        trained = config["original_max_position_embeddings"]
        pairs[f"{architecture}.rope.scaling.original_context_length"] = U32(trained)
        out["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
        out["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
    names = {**NAMES, **SANDWICH} if family.startswith("gemma") else NAMES
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        base, _, suffix = name.rpartition(".")
        if family.startswith("gemma") and base.endswith("norm"):
            array = array + 1
        if architecture == "llama" and base.endswith(("q_proj", "k_proj")):
            heads = "num_attention_heads" if base.endswith("q_proj") else "num_key_value_heads"
            array = _interleaved(array, config[heads])
        if not base.startswith("model.layers."):
            out[f"{names[base]}.{suffix}"] = array
            continue
        _, _, layer, inner = base.split(".", 3)
        if ".experts." in inner:
            _, _, number, product = inner.split(".")
            stacked = f"blk.{layer}.{EXPERTS[product]}.{suffix}"
            experts.setdefault(stacked, {})[int(number)] = array
        else:
            out[f"blk.{layer}.{names[inner]}.{suffix}"] = array
    for name, parts in experts.items():
        out[name] = np.stack([parts[i] for i in range(len(parts))])
    return pairs, out


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + half of each head become neighbours."""
    halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _llama3(rope: dict[str, Any], theta: float, head: int) -> np.ndarray:
    """By how much each frequency is divided, from the description of Llama 3.1."""
    trained, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head, 2):
        wavelength = 2 * np.pi * theta ** (i / head)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)
