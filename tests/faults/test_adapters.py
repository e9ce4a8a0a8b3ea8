"""Adapters while Workers die, adapters are unloaded and files change."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from mainspring.errors import BadRequest, InsufficientMemory, ModelError, NumericalError
from mainspring.types import Sampling
from tests.adapters import adapter_tensors, tiny_adapter
from tests.faults.streams import kill_after, request, runtime, same, settings, tell, until

LONG = Sampling(temperature=0.8, max_tokens=60, ignore_eos=True)


def test_a_killed_worker_goes_on_with_each_adapter(checkpoint: Path, tmp_path: Path) -> None:
    """One of the adapters is unloaded, and its files replaced, while its stream runs."""

    async def main() -> None:
        async with runtime(checkpoint) as served:
            ask = request(sampling=LONG)
            one = await served.load_adapter("one", tiny_adapter(tmp_path / "1", checkpoint, 1))
            two = await served.load_adapter("two", tiny_adapter(tmp_path / "2", checkpoint, 2))
            alone = [await tell(each.run(ask)) for each in (served, one, two)]
            assert len({told.texts[0] for told in alone}) == 3
            kill = kill_after(served, [10, 70])
            streams = [asyncio.create_task(tell(r.run(ask), kill)) for r in (served, one, two)]
            await asyncio.sleep(0)
            await until(lambda: served.stats().running == 3 or streams[1].done())
            one.unload()
            told = await asyncio.gather(*streams)
            assert served.restarts == 2
            for ours, theirs in zip(told, alone, strict=True):
                same(ours, theirs)
            await until(lambda: served.worker is not None and not served.unhealthy())
            same(await tell(two.run(ask)), alone[2])
            with pytest.raises(ModelError, match="not loaded"):
                await tell(one.run(ask))

    asyncio.run(main())


def test_other_files_after_a_crash_are_not_taken_for_the_adapter(
    checkpoint: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        place = tiny_adapter(tmp_path / "1", checkpoint, 1)
        async with runtime(checkpoint) as served:
            one = await served.load_adapter("one", place)
            shutil.rmtree(place)
            tiny_adapter(place, checkpoint, 5)
            assert served.worker is not None
            os.kill(served.worker, signal.SIGKILL)
            await until(lambda: served.restarts == 1 and not served.unhealthy())
            with pytest.raises(ModelError, match="not loaded"):
                await tell(one.run(request()))
            await tell(served.run(request()))

    asyncio.run(main())


def test_what_is_refused_harms_nobody(checkpoint: Path, tmp_path: Path) -> None:
    async def main() -> None:
        config = settings(max_adapters=2, adapter_memory=60_000)
        async with runtime(checkpoint, config) as served:
            good = tiny_adapter(tmp_path / "1", checkpoint, 1)
            with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
                await served.load_adapter("none", tmp_path)
            with pytest.raises(InsufficientMemory, match="adapter_memory"):
                await served.load_adapter("big", tiny_adapter(tmp_path / "b", checkpoint, 1, 200))
            small = {n: v for n, v in adapter_tensors(checkpoint, 4, 1).items() if "q_proj" in n}
            place = tiny_adapter(
                tmp_path / "p", checkpoint, rank=1, tensors={n: v * 1e37 for n, v in small.items()}
            )
            poison = await served.load_adapter("poison", place)
            for _ in range(4):
                with pytest.raises(NumericalError):
                    await tell(poison.run(request()))
            assert served.unhealthy() is None and served.restarts == 0
            poison.unload()
            first = tiny_adapter(tmp_path / "s", checkpoint, rank=1, tensors=small)
            await served.load_adapter("a", first)
            await served.load_adapter("b", first)
            with pytest.raises(BadRequest, match="max_adapters"):
                await served.load_adapter("c", good)

    asyncio.run(main())
