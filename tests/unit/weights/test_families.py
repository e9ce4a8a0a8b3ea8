"""Families are found by file name, or brought by a package through an entry point."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.architectures import find_family, known_families
from mainspring.engine.weights import inspect_checkpoint, inspect_config, random_model
from mainspring.errors import ModelError, UnknownArchitecture
from mainspring.kernels import load_kernels
from tests.parity.checkpoint import write_checkpoint
from tests.parity.rows import ROWS
from tests.tiny import tiny_config

RECORDED = Path(__file__).parents[2] / "parity" / "recorded"
GUIDE = Path(__file__).parents[3] / "docs/adding/architecture.md"


def test_every_file_is_a_family() -> None:
    folder = Path(__file__).parents[3] / "mainspring/engine/architectures"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert files <= set(known_families())
    assert [find_family(name).name for name in sorted(files)] == sorted(files)


def test_the_guides_example_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "outside_example.py").write_text(example[1])
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[mainspring.architectures]\nexample = outside_example\nllama = outside_example\n"
    )
    config = tiny_config(model_type="example")
    with pytest.raises(UnknownArchitecture):
        random_model(config, load_kernels("reference"), "bf16")

    monkeypatch.syspath_prepend(tmp_path)
    model = random_model(config, load_kernels("reference"), "bf16")
    assert model.shape.family == "example"
    assert find_family("llama").build.__module__ == "mainspring.engine.architectures.llama"
    sys.modules.pop("outside_example", None)


# What published config.json files say, without the fields no one reads, and how many parameters
# their model cards count (with tied embeddings once, without a vision tower).
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-3.2-1B": (
        1_235_814_400,
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": True,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32_000,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151_936,
            "max_position_embeddings": 32_768,
            "max_window_layers": 24,
            "sliding_window": 32_768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        {
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "tie_word_embeddings": False,
        },
    ),
    "Mixtral-8x7B": (
        46_702_792_704,
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32_000,
            "max_position_embeddings": 32_768,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
    "Phi-3-mini-4k": (
        3_821_079_552,
        {
            "model_type": "phi3",
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32_064,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
        },
    ),
    "Phi-4": (
        14_659_507_200,
        {
            "model_type": "phi3",
            "hidden_size": 5120,
            "intermediate_size": 17_920,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "vocab_size": 100_352,
            "max_position_embeddings": 16_384,
            "original_max_position_embeddings": 16_384,
            "rope_scaling": None,
            "rope_theta": 250_000,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
    "Phi-4-mini": (
        3_836_021_760,
        {
            "model_type": "phi3",
            "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "vocab_size": 200_064,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": [1.0] * 48,
            },
            "sliding_window": 262_144,
            "tie_word_embeddings": True,
        },
    ),
    "OLMo-2-0425-1B": (
        1_484_916_736,
        {
            "model_type": "olmo2",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 100_352,
            "max_position_embeddings": 4096,
            "rope_theta": 500_000,
            "tie_word_embeddings": False,
        },
    ),
    "granite-3.1-2b": (
        2_533_531_648,
        {
            "model_type": "granite",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 49_155,
            "max_position_embeddings": 131_072,
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "rope_theta": 5_000_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "SmolLM3-3B": (
        3_075_098_624,
        {
            "model_type": "smollm3",
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 128_256,
            "max_position_embeddings": 65_536,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "rope_theta": 5_000_000.0,
            "use_sliding_window": False,
            "sliding_window": None,
        },
    ),
    "gpt-oss-20b": (
        20_914_757_184,
        {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "vocab_size": 201_088,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
        },
    ),
    "DeepSeek-V2-Lite": (
        15_706_484_224,
        {
            "model_type": "deepseek_v2",
            "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
            "hidden_size": 2048,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 6,
            "q_lora_rank": None,
            "scoring_func": "softmax",
            "topk_group": 1,
            "topk_method": "greedy",
            "vocab_size": 102_400,
            "max_position_embeddings": 163_840,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "tie_word_embeddings": False,
        },
    ),
    "DeepSeek-V3": (
        671_026_419_200,
        {
            "model_type": "deepseek_v3",
            "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
            "hidden_size": 7168,
            "intermediate_size": 18_432,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "num_nextn_predict_layers": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "vocab_size": 129_280,
            "max_position_embeddings": 163_840,
            "tie_word_embeddings": False,
        },
    ),
    "gemma-2-2b": (
        2_614_341_888,
        {
            "model_type": "gemma2",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
        },
    ),
    "gemma-3-1b": (
        999_885_952,
        {
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262_144,
            "max_position_embeddings": 32_768,
            "sliding_window": 512,
        },
    ),
    "gemma-3-4b": (
        3_880_263_168,
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10_240,
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"model_type": "siglip_vision_model"},
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_counted_right(name: str) -> None:
    parameters, config = PUBLISHED[name]
    assert inspect_config(config).parameters == parameters


@pytest.mark.parametrize(
    ("row", "changes", "match"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 of 3 layers"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5; only 7 is computed"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob must be false"),
        ("deepseek_v2", {"kv_lora_rank": 638}, "make 646; they must be even and at most 640"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
        ("deepseek_v2_groups", {"n_group": 4}, "n_group is 4; 6 experts make no such groups"),
        ("deepseek_v3", {"n_group": 4}, "n_group is 4; 6 experts make no such groups"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'; known: sigmoid"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0; the limits are"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(
    row: str, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        inspect_config({**ROWS[row].config, **changes})


def test_layers_that_guess_ahead_are_left_out(tmp_path: Path) -> None:
    with np.load(RECORDED / "deepseek_v3.npz") as recorded:
        layout = json.loads(str(recorded["layout"]))
    layout["model.layers.3.eh_proj.weight"] = [48, 96]
    path = write_checkpoint(tmp_path / "m", ROWS["deepseek_v3"], layout)
    assert inspect_checkpoint(path).shape.layers == 3
    layout["model.layers.4.eh_proj.weight"] = [48, 96]
    path = write_checkpoint(tmp_path / "more", ROWS["deepseek_v3"], layout)
    with pytest.raises(ModelError, match=r"no use for: model\.layers\.4"):
        inspect_checkpoint(path)
