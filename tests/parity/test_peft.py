"""An adapter that the PEFT library itself made and saved; needs torch and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.batch import Batch
from mainspring.engine.lora import load_adapter
from mainspring.engine.weights import load_model
from mainspring.kernels import load_kernels
from tests.adapters import TARGETS
from tests.tiny import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize(
    "change",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"k_proj": 2}}],
)
def test_equals_peft(tmp_path: Path, change: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    path = tiny_checkpoint(tmp_path / "base")
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6, lora_alpha=24, target_modules=list(TARGETS), init_lora_weights=False, **change
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = np.random.default_rng(0).integers(0, 250, 30).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    kernels = load_kernels("auto", threads=2)
    model = load_model(path, kernels, format="float32")
    adapter = load_adapter(tmp_path / "adapter", model, kernels, limit=1 << 30)
    shape = model.shape
    cache = kernels.cache(shape.layers, 1, shape.kv_heads, shape.head, "float32")
    table = np.zeros(1, np.int32)
    ours = model.forward(Batch.of([(tokens, 0, table)], list(range(30)), [adapter]), cache)
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()
