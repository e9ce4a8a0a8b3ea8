"""Checkpoints of the measured shapes as a hub has them: bf16 safetensors, and a large tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
LONGEST = 16
"""letters of a token"""
CHUNK = 1 << 22
"""random numbers that are repeated"""


def write_checkpoint(directory: Path, config: dict[str, Any]) -> Path:
    """A whole directory of the llama-like shape `config` with random weights."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    large_tokenizer(config["vocab_size"]).save(str(directory / "tokenizer.json"))
    write_tensors(directory / "model.safetensors", dict(tensors(config)))
    return directory


def large_tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE of `vocabulary` tokens in all: what a start has to read is like a real one."""
    rng = random.Random(0)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = set(tokens)
    merges = []
    while len(tokens) < vocabulary - len(SPECIAL):
        # The earlier half is chosen more often, as common pieces are part of more words.
        pair = tuple(tokens[int(len(tokens) * rng.random() ** 2)] for _ in range(2))
        token = "".join(pair)
        if len(token) <= LONGEST and token not in known:
            known.add(token)
            tokens.append(token)
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a qwen2 or a llama with a tied head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            yield f"{prefix}self_attn.{name}.weight", (rows, hidden)
            if config["model_type"] == "qwen2":
                yield f"{prefix}self_attn.{name}.bias", (rows,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, q)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)


def write_tensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16, filled from one buffer of small normal numbers."""
    normal = np.random.default_rng(0).standard_normal(CHUNK, np.float32) * np.float32(0.02)
    bits = (normal.view(np.uint32) >> 16).astype("<u2").tobytes()
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(bits)):
            out.write(bits[: end - start])
