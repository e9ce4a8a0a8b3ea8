"""Ten times the load that a server can carry; `benchmarks/overload.py` is the long form."""

from __future__ import annotations

import sys

import pytest

from benchmarks.overload import run


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_overload_costs_little() -> None:
    """Judges time, so it wants a machine that does nothing else."""
    rows = run([], seconds=10, probe=5, prompt=64, tokens=64)["rows"]
    failed = {name: row for name, row in rows.items() if isinstance(row, dict) and not row["pass"]}
    assert not failed
