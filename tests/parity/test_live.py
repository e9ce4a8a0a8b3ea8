"""Every family against the live transformers library; needs torch: `make parity`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainspring.engine.weights import load_model
from mainspring.kernels import load_kernels
from tests.parity.checkpoint import GREEDY, prompts, write_checkpoint
from tests.parity.generate import greedy
from tests.parity.loop import Loop
from tests.parity.rows import ROWS
from tests.parity.test_recorded import LOGITS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", ROWS)
def test_equals_the_live_library(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.parity.oracle import expectation, layout_of

    row = ROWS[name]
    layout = layout_of(row)
    expected = expectation(row, layout)
    kernels = load_kernels("auto", threads=2)
    path = write_checkpoint(tmp_path / "m", row, layout)
    model = load_model(path, kernels, format="float32", context=row.context)
    *short, long = prompts(row)
    ours = Loop(model, kernels, 1).feed([long], all_logits=True)
    logits = expected["logits"]
    ours = ours[np.linspace(0, len(long) - 1, len(logits)).astype(int)]
    assert np.abs(ours - logits).max() <= LOGITS * np.abs(logits).max()
    assert greedy(model, kernels, short, GREEDY) == expected["tokens"].tolist()
