"""The prefix cache as clients meet it: `usage.cached` over requests, tenants, choices, replays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from mainspring.runtimes.llm import LLMRuntime
from mainspring.types import Request, Sampling, Usage
from tests.faults.streams import kill_after, request, runtime, same, settings, tell, until
from tests.tiny import tiny_checkpoint

GREEDY = Sampling(temperature=0, max_tokens=40, ignore_eos=True)
PROMPT = "x" * 70 + "y" * 30
"""100 tokens: three whole blocks of 32 can be read again, and 3 tokens copied from the next"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("prefix"))


def ask(prompt: str = PROMPT, **more: object) -> Request:
    return request(prompt, **{"sampling": GREEDY, **more})


async def usage(served: LLMRuntime, asked: Request) -> Usage:
    told = await tell(served.run(asked))
    assert told.usage
    return told.usage


def test_who_reads_what(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint) as served:
            assert await usage(served, ask()) == Usage(prompt=100, cached=0, output=40)
            assert await usage(served, ask()) == Usage(prompt=100, cached=99, output=40)
            # Another end; another beginning.
            assert (await usage(served, ask(PROMPT[:64] + "z" * 9))).cached == 64
            assert (await usage(served, ask("z" + PROMPT))).cached == 0
            # Tenants read only their own, and the nameless one's is not everybody's.
            assert (await usage(served, ask(tenant="a"))).cached == 0
            assert (await usage(served, ask(tenant="b"))).cached == 0
            assert (await usage(served, ask(tenant="a"))).cached == 99
            # A prompt is counted once for all its choices, and each time it is sent.
            assert await usage(served, ask(n=3)) == Usage(prompt=100, cached=99, output=120)
            twice = msgspec.structs.replace(ask(), prompts=("q" * 64, "q" * 64))
            assert await usage(served, twice) == Usage(prompt=128, cached=63, output=80)
            # A scored prompt has to be computed.
            scored = msgspec.structs.replace(GREEDY, prompt_logprobs=0)
            assert (await usage(served, ask(sampling=scored))).cached == 0
            stats = served.stats()
            assert stats.cached_tokens >= 96 + 64 + 96 + 3 * 96 + 32
            await until(lambda: served.stats().blocks_used == 0)

    asyncio.run(main())


def test_it_can_be_off(checkpoint: Path) -> None:
    async def main() -> None:
        async with runtime(checkpoint, settings(prefix_cache=False)) as served:
            assert (await usage(served, ask())).cached == 0
            assert (await usage(served, ask())).cached == 0
            assert served.stats().blocks_cached == 0

    asyncio.run(main())


def test_a_replay_counts_what_the_first_life_read(checkpoint: Path) -> None:
    """The new Worker's cache is empty, and of two that are added again one reads the other's."""

    async def main() -> None:
        async with runtime(checkpoint) as served:
            calm = await tell(served.run(ask()))
            hit = await tell(
                served.run(
                    ask(),
                ),
                kill_after(served, [5]),
            )
            same(hit, calm)
            assert hit.usage and hit.usage.cached == 99
            # Neither reads a block in its first life; tenants keep them apart from the above.
            first = asyncio.create_task(tell(served.run(ask(tenant="c")), kill_after(served, [9])))
            both = [await first, await tell(served.run(ask(tenant="d")))]
            assert [told.usage and told.usage.cached for told in both] == [0, 0]
            assert served.restarts == 2
            await until(lambda: served.stats().blocks_used == 0)

    asyncio.run(main())
