"""config.json is arithmetic to be checked, not a promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mainspring.engine.weights import inspect_checkpoint, load_model, random_model
from mainspring.errors import InsufficientMemory, ModelError, UnknownArchitecture
from mainspring.kernels import load_kernels
from tests.tiny import tiny_checkpoint, tiny_config

ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 2**31}, "hidden_size is 2147483648; the limits are 1 to 65536"),
    ({"hidden_size": -1}, "hidden_size is -1"),
    ({"hidden_size": "64"}, "hidden_size must be an integer"),
    ({"hidden_size": True}, "hidden_size must be an integer"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"hidden_size": 10**4000}, "hidden_size is a number of 13288 bits"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 3, "head_dim": None}, "hidden_size is 64, not a multiple of 3"),
    ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of 3"),
    ({"head_dim": 15}, "head_dim is 15"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vocab_size": 2**40}, "vocab_size"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; known: gelu_new"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"eos_token_id": 260}, "eos_token_id holds 260; the limits are 0 to 259"),
    ({"eos_token_id": [1, [2]]}, "eos_token_id holds [2]"),
    ({"rope_theta": 0}, "rope_theta is 0"),
    ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
    ({"rope_scaling": {"type": "mystery"}}, "rope_type is 'mystery'; known: default"),
    ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "must be a list of 8 numbers"),
    ({"partial_rotary_factor": 0.07}, "partial_rotary_factor leaves 1 of 16"),
    ({"quantization_config": {"quant_method": "gptq"}}, "give the checkpoint's directory"),
    ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map asks for"),
    ({"auto_map": "evil"}, "auto_map asks for"),
    ({"model_type": None}, "model_type is missing"),
    ({"model_type": ["llama"]}, "model_type is missing"),
]


@pytest.mark.parametrize(("changes", "message"), ABSURD)
def test_absurd_fields_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        random_model(tiny_config(**changes), load_kernels("reference"), "bf16")
    assert message in refused.value.message


@pytest.mark.parametrize("name", ["gpt2", "../llama", "os", "__init__", "llama.py", ""])
def test_unknown_architecture_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownArchitecture) as refused:
        random_model(tiny_config(model_type=name), load_kernels("reference"), "bf16")
    assert repr(name) in refused.value.message
    assert "gemma2, gemma3" in refused.value.message


def test_custom_code_of_the_same_family_is_ignored_not_run() -> None:
    config = tiny_config(
        model_type="phi3",
        head_dim=None,
        auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    )
    assert random_model(config, load_kernels("reference"), "bf16").shape.family == "phi3"


def test_a_model_larger_than_the_machine_is_refused_before_allocation() -> None:
    config = tiny_config(
        hidden_size=65536, intermediate_size=1 << 20, num_hidden_layers=1024, head_dim=1024
    )
    with pytest.raises(InsufficientMemory, match=r"the weights need .* GiB in bf16"):
        random_model(config, load_kernels("reference"), "bf16")


def test_more_context_than_positions_is_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m")
    with pytest.raises(ModelError, match="context 513 is more than the model's 512 positions"):
        load_model(path, load_kernels("reference"), format="bf16", context=513)
    assert (
        load_model(path, load_kernels("reference"), format="bf16", context=100).shape.context == 100
    )


def test_inspection_predicts_what_loading_takes(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m", attention_bias=False)
    info = inspect_checkpoint(path)
    assert (info.family, info.context, info.vocabulary, info.dtype) == ("llama", 512, 260, "F32")
    assert info.kv_bytes == {
        "float32": 2 * 2 * 2 * 16 * 4,
        "bf16": 2 * 2 * 2 * 16 * 2,
        "int8": 2 * 2 * (2 * 16 + 8),
    }
    model = load_model(path, load_kernels("reference"), format="float32")
    assert model.shape.parameters == info.parameters
    assert model.shape.weight_bytes == info.weight_bytes["float32"] == info.file_bytes
    sizes = list(info.weight_bytes.values())
    assert sizes == sorted(sizes, reverse=True)


def test_ends_of_sequence_come_from_both_files(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m", eos_token_id=[256, 3])
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    model = load_model(path, load_kernels("reference"), format="float32")
    assert model.shape.eos == (256, 3, 7)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = tiny_checkpoint(tmp_path / "m")
    load_model(
        path, load_kernels("reference"), format="int8", progress=lambda *at: calls.append(at)
    )
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] == inspect_checkpoint(path).file_bytes
