"""Adapters equal the merged model, and sequences of different ones share batches and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.adapter import Adapter
from mainspring.engine.architectures import Architecture
from mainspring.engine.batch import Batch
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.lora import load_adapter
from mainspring.engine.reference import generate
from mainspring.engine.weights import load_model
from mainspring.errors import InsufficientMemory, ModelError
from mainspring.kernels import Array, Kernels, load_kernels
from mainspring.kernels.cpu import machine
from mainspring.types import Sampling
from tests.adapters import adapter_tensors, merged, tiny_adapter
from tests.tiny import tiny_checkpoint
from tests.unit.engine.toy import finish_all, greedy, prompt, tokens_of

LIMIT = 1 << 30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("adapter") / "base")


@pytest.fixture(scope="module", params=[*machine().isas, "reference"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(request.param, threads=2)


def logits(model: Architecture, kernels: Kernels, adapter: Adapter | None = None) -> Array:
    shape = model.shape
    cache = kernels.cache(shape.layers, 1, shape.kv_heads, shape.head, "float32")
    table = np.zeros(1, np.int32)
    batch = Batch.of([(prompt(20), 0, table)], list(range(20)), [adapter])
    return model.forward(batch, cache)


@pytest.mark.parametrize("change", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 4}}])
def test_equals_the_merged_model(
    base: Path, kernels: Kernels, tmp_path: Path, change: dict[str, Any]
) -> None:
    only_q = "alpha_pattern" in change
    tensors = adapter_tensors(base, 1, targets=("q_proj",)) if only_q else None
    place = tiny_adapter(tmp_path / "a", base, 1, tensors=tensors, **change)
    scale = 1.0 if only_q else 4.0 if change else 2.0
    model = load_model(base, kernels, format="float32")
    whole = load_model(merged(tmp_path / "m", base, place, scale), kernels, format="float32")
    adapter = load_adapter(place, model, kernels, limit=LIMIT)
    ours, theirs = logits(model, kernels, adapter), logits(whole, kernels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3)
    assert np.abs(theirs - logits(model, kernels)).max() > 1
    asked = greedy(12)
    text = generate(model, kernels, prompt(9), asked, dtype="float32", adapter=adapter)
    assert text == generate(whole, kernels, prompt(9), asked, dtype="float32")


class Several:
    """A model with three adapters, and what each says alone."""

    def __init__(self, base: Path, folder: Path, kernels: Kernels, format: Any) -> None:
        self.kernels = kernels
        self.model = load_model(base, kernels, format=format)
        self.adapters: list[Adapter | None] = [None]
        for seed, rank in ((1, 4), (2, 1), (3, 19)):
            place = tiny_adapter(folder / str(seed), base, seed, rank)
            self.adapters.append(load_adapter(place, self.model, kernels, limit=LIMIT))

    def engine(self, **config: Any) -> Engine:
        return Engine(self.model, self.kernels, EngineConfig(blocks=64, dtype="bf16", **config))

    def alone(self, tokens: list[int], sampling: Sampling, adapter: Adapter | None) -> list[int]:
        return generate(self.model, self.kernels, tokens, sampling, adapter=adapter)


@pytest.mark.parametrize("format", ["bf16", "int4"])
@pytest.mark.parametrize("isa", machine().isas)
def test_together_as_alone(base: Path, tmp_path: Path, isa: str, format: str) -> None:
    """One prompt through the base and three adapters at once: no block is shared among them."""
    several = Several(base, tmp_path, load_kernels(isa, threads=2), format)
    engine = several.engine(max_running=6, step_seconds=1e-9)
    asked = {}
    for number in range(12):
        adapter = several.adapters[number % 4]
        sampling = Sampling(temperature=0.8, seed=number // 4, max_tokens=10, ignore_eos=True)
        tokens = prompt(70, number // 8)
        asked[str(number)] = (tokens, sampling, adapter)
        engine.add(str(number), tokens, sampling, adapter=adapter)
    outputs = finish_all(engine)
    answers = {id: tokens_of(outputs[id]) for id in asked}
    assert answers == {id: several.alone(*question) for id, question in asked.items()}
    assert len({tuple(answers[str(n)]) for n in range(4)}) == 4
    cached = [outputs[str(n)][-1].cached for n in range(12)]
    assert cached[:4] == [0] * 4 and min(cached[4:8]) >= 64


def test_replay_goes_on_with_the_adapter(base: Path, tmp_path: Path) -> None:
    several = Several(base, tmp_path, load_kernels("auto"), "bf16")
    adapter = several.adapters[1]
    whole = several.alone(prompt(40), greedy(20), adapter)
    engine = several.engine()
    engine.add("one", prompt(40), greedy(20), generated=whole[:7], adapter=adapter)
    assert tokens_of(finish_all(engine)["one"]) == whole[7:]


def test_poison_fails_only_its_own(base: Path, tmp_path: Path) -> None:
    several = Several(base, tmp_path, load_kernels("auto"), "bf16")
    tensors = {name: values * 1e37 for name, values in adapter_tensors(base, 4).items()}
    place = tiny_adapter(tmp_path / "poison", base, tensors=tensors)
    poison = load_adapter(place, several.model, several.kernels, limit=LIMIT)
    engine = several.engine()
    engine.add("bad", prompt(40), greedy(5), adapter=poison)
    engine.add("good", prompt(40), greedy(5), adapter=several.adapters[1])
    engine.add("base", prompt(40), greedy(5))
    outputs = finish_all(engine)
    assert outputs["bad"][-1].error is not None
    assert tokens_of(outputs["good"]) == several.alone(prompt(40), greedy(5), several.adapters[1])
    assert tokens_of(outputs["base"]) == several.alone(prompt(40), greedy(5), None)


# Refused ------------------------------------------------------------------------------------------


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 5}, "r is 5; model.layers.0.mlp.down_proj has rank 4"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "plain names"),
        ({"fan_in_fan_out": True}, "other way round"),
    ],
)
def test_refused_settings(base: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    place = tiny_adapter(tmp_path / "a", base, **change)
    check_refused(base, place, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({LAYER + ".lora_A.weight": None}, "has no lora_A"),
        ({LAYER + ".lora_A.weight": np.ones((4, 65), np.float32)}, "another model"),
        ({LAYER + ".lora_A.weight": np.ones((0, 64), np.float32)}, "another model"),
        ({LAYER + ".lora_A.weight": np.full((4, 64), np.nan, np.float32)}, "NaN"),
        ({LAYER + ".lora_A.weight": np.ones((4, 64), np.int32)}, "must be F32"),
        ({LAYER + ".lora_magnitude_vector": np.ones(64, np.float32)}, "no lora_A or lora_B"),
        ({"base_model.model.lm_head.lora_A.weight": np.ones((4, 64), np.float32)}, "lm_head"),
        ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": np.ones(2)}, "layers.9"),
    ],
)
def test_refused_tensors(base: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    tensors = {**adapter_tensors(base, 0), **change}
    tensors = {name: values for name, values in tensors.items() if values is not None}
    check_refused(base, tiny_adapter(tmp_path / "a", base, tensors=tensors), words)


def check_refused(base: Path, place: Path, words: str) -> None:
    kernels = load_kernels("auto", threads=1)
    model = load_model(base, kernels, format="bf16")
    with pytest.raises(ModelError) as refused:
        load_adapter(place, model, kernels, limit=LIMIT)
    assert words in refused.value.message and str(place) not in refused.value.message


def test_a_pickle_is_never_opened(base: Path, tmp_path: Path) -> None:
    place = tiny_adapter(tmp_path / "a", base)
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    check_refused(base, place, "may run code")


def test_too_large_is_refused_with_the_number(base: Path, tmp_path: Path) -> None:
    kernels = load_kernels("auto", threads=1)
    model = load_model(base, kernels, format="bf16")
    place = tiny_adapter(tmp_path / "a", base)
    adapter = load_adapter(place, model, kernels, limit=LIMIT)
    matrices = [matrix for parts in adapter.parts.values() for matrix, _ in parts]
    assert sum(matrix.nbytes for matrix in matrices) == adapter.nbytes
    with pytest.raises(InsufficientMemory, match=f"needs {adapter.nbytes} bytes, 99 are"):
        load_adapter(place, model, kernels, limit=99)


def test_equal_files_have_equal_digests(base: Path, tmp_path: Path) -> None:
    kernels = load_kernels("auto", threads=1)
    model = load_model(base, kernels, format="bf16")
    one, two = tiny_adapter(tmp_path / "a", base), tiny_adapter(tmp_path / "b", base)
    digests = [load_adapter(p, model, kernels, limit=LIMIT).digest for p in (one, two)]
    config = json.loads((two / "adapter_config.json").read_text())
    (two / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 3}))
    digests.append(load_adapter(two, model, kernels, limit=LIMIT).digest)
    assert digests[0] == digests[1] != digests[2]
