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
    """Nothing fails, promises are kept, and it ends: on a machine however busy."""
    result = run([], seconds=10, probe=8, prompt=16, tokens=16)
    over, after = result["phases"]["10 times"], result["phases"]["50 %"]
    assert all(phase["other"] == 0 for phase in result["phases"].values())
    assert over["refused"] > over["whole"] > 0
    assert over["let_in"] >= 0.9 * over["comebacks"] > 0
    assert after["whole"] > after["refused"]
