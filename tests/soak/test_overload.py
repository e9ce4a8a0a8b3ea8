"""Ten times the load that a server can carry; `benchmarks/overload.py` is the long form.

How fast it is then is the benchmark's to judge, on a machine that does nothing else; what the
admission decides is tests/unit/runtimes/test_overload.py's, in simulated time.
"""

from __future__ import annotations

import sys

import pytest

from benchmarks.overload import run


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_server_under_overload() -> None:
    """Nothing fails, promises are kept, most of the capacity is used, and it ends."""
    result = run([], seconds=10, probe=5, prompt=64, tokens=64)
    over, rows = result["phases"]["10 times"], result["rows"]
    assert all(phase["other"] == 0 for phase in result["phases"].values())
    assert over["refused"] > over["whole"] > 0
    assert over["let_in"] == over["comebacks"] > 0
    assert rows["goodput"]["value"] > 0.4
    assert over["refusal_p50"] < over["first_token_p50"]
