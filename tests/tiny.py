"""Tiny random checkpoints made on the spot: a llama with a byte-level tokenizer. No torch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SPECIAL_START = 258
"""the id of <|assistant|>"""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> Tokenizer:
    """One token a byte (ids 0-255), then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 260,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "eos_token_id": 256,
        "bos_token_id": None,
        "torch_dtype": "float32",
        **changes,
    }


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
        # Sharper than a real head, so that greedy choices are not near ties.
        "lm_head.weight": matrix(config["vocab_size"], hidden) * 4,
    }
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, (n, k) in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = matrix(n, k)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden, np.float32)
    return tensors


def tiny_checkpoint(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a whole Hugging Face directory of a random tiny llama and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "<|end|>"})
    )
    save_file(tiny_tensors(config, seed), directory / "model.safetensors")
    return directory


SCRIPT = (
    "<think>", "I need", " the\nweather.", "\n", "</think>", "\n\n", "Let me", " look", ".\n",
    "<tool_call>", '\n{"na', 'me": "get_', 'weather", ', '"argu', 'ments": {"ci', 'ty": "Zür',
    'ich } \\"', ' {"}}', "\n</tool", "_call>\n<tool_c", 'all>\n{"name": "add', '", "arguments":',
    ' {"a": 1', ', "b": [2]', "}}\n</tool_call>", "<|end|>",
)  # fmt: skip
SCRIPT_TEMPLATE = """
{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif -%}
{{ m.content or "" }}
{%- for c in m.tool_calls %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def scripted_checkpoint(directory: Path) -> Path:
    """A model that says SCRIPT, whatever it is asked: each token leads to the next one."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<think>", "</think>"])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in SCRIPT])
    ids = [tokenizer.token_to_id(piece) for piece in SCRIPT]
    size = tokenizer.get_vocab_size()
    tiny_checkpoint(directory, vocab_size=size, hidden_size=128)
    config = tiny_config(vocab_size=size, hidden_size=128)
    tensors = {
        name: tensor * (name.startswith("model.layers") is False or "layernorm" in name)
        for name, tensor in tiny_tensors(config).items()
    }
    head = np.zeros_like(tensors["lm_head.weight"])
    for before, after in itertools.pairwise([SPECIAL_START, *ids]):
        head[after] = tensors["model.embed_tokens.weight"][before]
    tensors["lm_head.weight"] = head
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": SCRIPT_TEMPLATE, "eos_token": "<|end|>"})
    )
    save_file(tensors, directory / "model.safetensors")
    return directory
