"""A model whose numbers are none: that request fails, and when it goes on the model is suspect."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mainspring.errors import NumericalError
from mainspring.runtimes import supervisor
from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Sampling
from tests.faults.streams import request, runtime, same, settings, tell, until
from tests.tiny import tiny_checkpoint, tiny_tokenizer

GREEDY = Sampling(temperature=0, max_tokens=30, ignore_eos=True)
BAD, GOOD = request("Nan", sampling=GREEDY), request("good", sampling=GREEDY)


@pytest.fixture(scope="module", params=[float("nan"), float("inf")])
def broken(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Its embedding of the letter N holds no numbers; all other prompts are sound."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("nan"))
    tensors = load_file(path / "model.safetensors")
    row = tiny_tokenizer().token_to_id("N")
    tensors["model.embed_tokens.weight"][row] = np.float32(request.param)
    save_file(tensors, path / "model.safetensors")
    return path


async def fails(served: LLMRuntime) -> None:
    with pytest.raises(NumericalError, match="NaN"):
        await tell(served.run(BAD))


def test_only_the_request_whose_logits_are_no_numbers_fails(broken: Path) -> None:
    """Beside it others run undisturbed, also in blocks that it has left behind."""

    async def main() -> None:
        # Blocks for one sequence and a little: each is soon used again.
        async with runtime(broken, settings(kv_memory=20 * 32 * 2 * 2 * 2 * 16 * 2)) as served:
            alone = await tell(served.run(GOOD))
            for _ in range(12):
                told, _ = await asyncio.gather(tell(served.run(GOOD)), fails(served))
                same(told, alone)
            assert served.restarts == 0
            await until(lambda: served.stats().blocks_used == 0)

    asyncio.run(main())


def test_a_model_that_fails_again_and_again_is_suspect(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with runtime(broken) as served:
            for _ in range(supervisor.SUSPECT - 1):
                await fails(served)
            assert served.unhealthy() is None
            # One that succeeds in between starts the count again.
            await tell(served.run(GOOD))
            for _ in range(supervisor.SUSPECT - 1):
                await fails(served)
            assert served.unhealthy() is None
            await fails(served)
            assert "suspect" in (served.unhealthy() or "")
            # It still takes requests, and one that succeeds makes it good.
            await tell(served.run(GOOD))
            assert served.unhealthy() is None

            # With nobody asking, it is given another chance after a while, but only one.
            for _ in range(supervisor.SUSPECT):
                await fails(served)
            assert served.unhealthy()
            monkeypatch.setattr(supervisor, "SUSPECT_SECONDS", 0.0)
            assert served.unhealthy() is None
            monkeypatch.undo()
            await fails(served)
            assert served.unhealthy()

    asyncio.run(main())
