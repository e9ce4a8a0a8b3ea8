"""A trained model as a Hugging Face directory, and the proof that others read it alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.model import Llama
from training.tokenizer import END, write_tokenizer_config

__all__ = ["check_export", "export"]


def export(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """Write config, generation config, bf16 weights and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes files only their owner can read
    files = {
        "config.json": model.shape.hugging_face(end, "bfloat16"),
        "generation_config.json": {"do_sample": False, "eos_token_id": end, "pad_token_id": end},
    }
    for name, table in files.items():
        (directory / name).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))
    write_tokenizer_config(directory, model.shape.context)


def check_export(model: Llama, directory: Path, prompts: list[list[int]]) -> float:
    """The largest relative difference of float32 logits between transformers and `model`.

    Raises RuntimeError above 1e-3: then the export is wrong. `model` is rounded to bf16 first,
    so that both sides compute with the weights of the file.
    """
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = Llama(model.shape).eval()
    rounded = {k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()}
    ours.load_state_dict(rounded)
    worst = 0.0
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            a, b = ours(ids), theirs(ids).logits
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    if worst > 1e-3:
        raise RuntimeError(f"transformers reads the export differently: {worst:.2e}")
    return worst
