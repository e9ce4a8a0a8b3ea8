"""Every family against what the transformers library answered, on every instruction set here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mainspring.engine.architectures import known_families
from mainspring.engine.weights import load_model
from mainspring.errors import BadRequest
from mainspring.kernels import Kernels, load_kernels
from tests.parity.checkpoint import GREEDY, prompts, write_checkpoint
from tests.parity.generate import greedy
from tests.parity.loop import Loop
from tests.parity.rows import ROWS

RECORDED = Path(__file__).with_name("recorded")
LOGITS = 1e-4
"""largest difference of a logit, relative to the largest logit"""


@pytest.fixture(scope="module", params=["reference", "portable", "avx2", "avx512"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    try:
        return load_kernels(request.param, threads=2)
    except BadRequest as error:
        pytest.skip(str(error))


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == set(known_families())


@pytest.mark.parametrize("name", ROWS)
def test_equals_the_library(name: str, kernels: Kernels, tmp_path: Path) -> None:
    row = ROWS[name]
    with np.load(RECORDED / f"{name}.npz") as recorded:
        layout = json.loads(str(recorded["layout"]))
        logits, tokens = recorded["logits"], recorded["tokens"]
    path = write_checkpoint(tmp_path / name, row, layout)
    model = load_model(path, kernels, format="float32", context=row.context)
    *short, long = prompts(row)

    ours = Loop(model, kernels, 1).feed([long], all_logits=True)
    ours = ours[np.linspace(0, len(long) - 1, len(logits)).astype(int)]
    assert np.abs(ours - logits).max() <= LOGITS * np.abs(logits).max()

    assert greedy(model, kernels, short, GREEDY) == tokens.tolist()
