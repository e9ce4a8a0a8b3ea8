"""Quantized checkpoints against the live transformers library; needs torch: `make parity`.

Of AWQ and GPTQ transformers only reads what a GPU's packages unpack, so they are compared with
tests/quantized.py alone (tests/unit/weights/test_quantized.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainspring.engine.weights import load_model
from mainspring.kernels import load_kernels
from tests.parity.loop import Loop
from tests.quantized import LAYOUTS, quantized_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROMPT = list(range(1, 80))
# Of the logits: what int8 activations cost where the matrices are kept, and where the library
# rounds activations too, what its own rounding costs (to fp8 it is coarse).
LIMITS = {
    "fp8-blocks": 1e-5,
    "compressed-4-128": 0.03,
    "compressed-8-32": 0.03,
    "compressed-8-row": 0.03,
    "compressed-int8-row": 0.05,
    "compressed-int8-row-zeros": 0.05,
    "compressed-fp8-row": 0.12,
}


@pytest.mark.parametrize("name", LIMITS)
def test_equals_the_live_library(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    path = quantized_checkpoint(tmp_path / name, LAYOUTS[name])
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([PROMPT])).logits[0].numpy()
    kernels = load_kernels("auto", threads=2)
    model = load_model(path, kernels, format="float32")
    ours = Loop(model, kernels, 1).feed([PROMPT], all_logits=True)
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < LIMITS[name]
