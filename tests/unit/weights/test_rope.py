"""Rotary embeddings from every spelling of config.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.engine.fields import Fields
from mainspring.engine.layers.rope import FIRST, Rope
from mainspring.engine.sizes import Sizes
from mainspring.errors import ModelError
from tests.tiny import tiny_config


def rope(context: int = 0, **changes: Any) -> Rope:
    fields = Fields(tiny_config(**changes))
    return Rope.of(fields, Sizes.of(fields, "llama"), context)


def test_the_table_is_cosines_and_sines_and_grows_on_demand() -> None:
    grown = rope(max_position_embeddings=3 * FIRST)
    assert grown.table.shape == (FIRST, 2, 8)
    before = grown.table.copy()
    grown.reach(FIRST)
    assert len(grown.table) == FIRST
    grown.reach(FIRST + 1)
    assert len(grown.table) == 2 * FIRST
    grown.reach(3 * FIRST)
    assert len(grown.table) == 3 * FIRST
    np.testing.assert_array_equal(grown.table[:FIRST], before)
    whole = Rope(grown.frequencies, 1.0, 3 * FIRST)
    whole.reach(3 * FIRST)
    np.testing.assert_array_equal(grown.table, whole.table)
    np.testing.assert_allclose((grown.table**2).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_old_and_new_spelling_are_the_same(kind: str) -> None:
    scaling = {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    older = rope(rope_theta=5e4, rope_scaling={"type": kind, **scaling})
    newer = rope(rope_theta=None, rope_parameters={"rope_type": kind, "rope_theta": 5e4, **scaling})
    np.testing.assert_array_equal(older.table, newer.table)
    assert not np.array_equal(older.table, rope(rope_theta=5e4).table)


def test_yarn_reaches_as_far_as_it_says() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert rope(rope_scaling=scaling).limit == 2048
    assert rope(rope_scaling=scaling, context=1000).limit == 1000
    with pytest.raises(ModelError, match="context 2049 is more than the model's 2048 positions"):
        rope(rope_scaling=scaling, context=2049)


def test_longrope_serves_the_trained_context_unless_asked_for_more() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    changes = {
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", **factors},
    }
    short, long = rope(**changes), rope(context=65, **changes)
    assert (short.limit, long.limit) == (64, 65)
    np.testing.assert_allclose(short.frequencies, 2 * long.frequencies)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}, "above 4"),
        ({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}, "original"),
        ({"type": "yarn", "factor": float("nan")}, "factor is nan"),
        ({"type": "yarn", "factor": 1e300}, "factor is 1e\\+300"),
        ({"type": "yarn", "factor": 2, "beta_fast": "x"}, "beta_fast must be a number"),
        ({"type": "longrope", "short_factor": [0.0] * 8}, "item is 0.0"),
        ({"type": ["linear"]}, "rope_type is"),
    ],
)
def test_nonsense_is_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rope(rope_scaling=scaling)
