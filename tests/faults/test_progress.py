"""Slow is not hung: a Worker that goes from layer to layer is left alone, however long it takes."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path

from mainspring.config import ModelConfig
from mainspring.errors import MainspringError
from mainspring.runtimes.protocol import Output
from mainspring.runtimes.supervisor import Flight, Supervisor
from mainspring.types import Finish, Sampling
from tests.faults.streams import until

WORKER = textwrap.dedent(
    """
    import sys, time
    from mainspring.runtimes import worker
    from mainspring.runtimes.protocol import Ready
    from tests.unit.engine.toy import Toy, toy_engine
    from mainspring.kernels import load_kernels

    class Slow(Toy):
        def forward(self, batch, cache):
            for _ in range(LAYERS):
                time.sleep(SECONDS)
                self.progress += 1
            return super().forward(batch, cache)

    def load(message, progress):
        engine = toy_engine(model=Slow(load_kernels("reference")))
        return engine, None, Ready(
            family="toy", parameters=1, format="float32", context=512, vocabulary=97,
            weight_bytes=1, kv_bytes=1, eos=(),
        )

    sys.exit(worker.main(load))
    """
)


def supervisor(layers: int, seconds: float) -> Supervisor:
    program = WORKER.replace("LAYERS", str(layers)).replace("SECONDS", str(seconds))
    command = (sys.executable, "-c", program)
    return Supervisor("toy", Path(), ModelConfig(), stall_seconds=1.3, command=command)


def test_a_step_longer_than_a_stall_is_no_stall() -> None:
    async def main() -> None:
        kept: list[Output | MainspringError] = []
        slow = supervisor(layers=8, seconds=0.4)  # beats come every 0.5 s
        await slow.start()
        flight = Flight([1, 2, 3], Sampling(temperature=0, max_tokens=1), b"", kept.append)
        slow.submit(flight)
        await until(lambda: kept)
        (output,) = kept
        assert isinstance(output, Output) and output.finish is Finish.LENGTH
        assert slow.restarts == 0
        await slow.stop()

    asyncio.run(main())


def test_a_layer_longer_than_a_stall_is_one() -> None:
    async def main() -> None:
        kept: list[Output | MainspringError] = []
        hung = supervisor(layers=1, seconds=60.0)
        await hung.start()
        flight = Flight([1, 2, 3], Sampling(temperature=0, max_tokens=1), b"", kept.append)
        hung.submit(flight)
        await until(lambda: hung.restarts == 1)
        assert "no progress" in (hung.unhealthy() or "")
        await hung.stop()
        assert len(kept) == 1 and isinstance(kept[0], MainspringError)

    asyncio.run(main())
