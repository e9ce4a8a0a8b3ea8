"""A GGUF file of random weights: SHAPE PRECISION FILE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.shapes import SHAPES

TYPES = {
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
    "bf16": gguf.GGMLQuantizationType.BF16,
}


def write_gguf(path: Path, shape: dict[str, Any], precision: str) -> None:
    """A GGUF file of random weights: one quantized million repeated, norms of one."""
    arch = shape["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    heads, kv = shape["num_attention_heads"], shape["num_key_value_heads"]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = shape.get("head_dim") or hidden // heads
    vocabulary = shape["vocab_size"]
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)

    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    blocks = {
        kind: gguf.quants.quantize(values.reshape(-1, 1 << 10), kind)
        for kind in {TYPES[precision], gguf.GGMLQuantizationType.Q8_0}
    }

    def matrix(name: str, n: int, k: int, kind: gguf.GGMLQuantizationType) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row = k // block * size
        data = np.resize(blocks[kind].view(np.uint8).reshape(-1), n * row).reshape(n, row)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    def vector(name: str, n: int, value: float = 1.0) -> None:
        writer.add_tensor(name, np.full(n, value, np.float32))

    kind = TYPES[precision]
    # llama.cpp's own quantizer keeps a tied embedding in 8 bits when the rest is Q4_0.
    embedding = gguf.GGMLQuantizationType.Q8_0 if precision == "int4" else kind
    matrix("token_embd", vocabulary, hidden, embedding)
    vector("output_norm.weight", hidden)
    for i in range(shape["num_hidden_layers"]):
        b = f"blk.{i}"
        vector(f"{b}.attn_norm.weight", hidden)
        vector(f"{b}.ffn_norm.weight", hidden)
        for name, n in (("attn_q", heads * head), ("attn_k", kv * head), ("attn_v", kv * head)):
            matrix(f"{b}.{name}", n, hidden, kind)
            if arch == "qwen2":
                vector(f"{b}.{name}.bias", n, 0.0)
        matrix(f"{b}.attn_output", hidden, heads * head, kind)
        matrix(f"{b}.ffn_gate", inner, hidden, kind)
        matrix(f"{b}.ffn_up", inner, hidden, kind)
        matrix(f"{b}.ffn_down", hidden, inner, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_gguf(Path(sys.argv[3]), SHAPES[sys.argv[1]], sys.argv[2])
