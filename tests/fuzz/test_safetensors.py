"""A damaged checkpoint is refused with a ModelError, or is one that loads."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from mainspring.engine.weights import inspect_checkpoint, load_model
from mainspring.errors import ModelError
from mainspring.kernels import load_kernels
from tests.fuzz.mutate import CASES, mutated
from tests.tiny import tiny_checkpoint

WEIGHTS = "model.safetensors"
SECONDS = 2.0
"""a case takes at most, on a busy machine; most take less than a millisecond"""


@pytest.mark.parametrize("cases", CASES)
def test_files_that_were_damaged(tmp_path: Path, cases: int) -> None:
    path = tiny_checkpoint(tmp_path / "m", num_hidden_layers=1)
    rng, kernels = random.Random(32), load_kernels(threads=1)
    sound = {name: (path / name).read_bytes() for name in (WEIGHTS, "config.json")}
    length = 8 + int.from_bytes(sound[WEIGHTS][:8], "little")
    refused = loaded = 0
    for case in range(cases):
        name = WEIGHTS if case % 3 else "config.json"
        data = sound[name]
        # What is behind the header is numbers, any of which are fine.
        changed = (
            mutated(rng, data[:length]) + data[length:] if name == WEIGHTS else mutated(rng, data)
        )
        (path / name).write_bytes(changed)
        began = time.monotonic()
        try:
            inspect_checkpoint(path)
            if case % 8 == 0:
                load_model(path, kernels, format="int8")
            loaded += 1
        except ModelError as error:
            assert error.message and str(tmp_path) not in error.message
            refused += 1
        assert time.monotonic() - began < SECONDS, changed[:200]
        (path / name).write_bytes(data)
    assert refused > cases / 4 and loaded > cases / 100


@pytest.mark.parametrize("cases", CASES)
def test_an_index_that_was_damaged(tmp_path: Path, cases: int) -> None:
    path = tiny_checkpoint(tmp_path / "m", num_hidden_layers=1)
    header = (path / WEIGHTS).read_bytes()
    names = list(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]))
    index = {"weight_map": {name: "a.safetensors" for name in names if name != "__metadata__"}}
    (path / WEIGHTS).rename(path / "a.safetensors")
    sound, rng = json.dumps(index).encode(), random.Random(36)
    file = path / f"{WEIGHTS}.index.json"
    file.write_bytes(sound)
    inspect_checkpoint(path)
    for _ in range(cases):
        file.write_bytes(mutated(rng, sound))
        try:
            inspect_checkpoint(path)
        except ModelError as error:
            assert error.message and str(tmp_path) not in error.message
