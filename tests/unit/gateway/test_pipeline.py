"""Invariant 1: one end and one Record for every request, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from mainspring.config import ModelConfig
from mainspring.errors import (
    Conflict,
    Forbidden,
    InternalError,
    MainspringError,
    ModelError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from mainspring.gateway.identity import ANONYMOUS, PUBLIC
from mainspring.gateway.models import Models, Source, State
from mainspring.gateway.pipeline import Pipeline
from mainspring.telemetry.record import Record
from mainspring.types import Chunk, Request, Task
from tests.unit.api.scripted import Script, ScriptedRuntime

SOURCE = Source("m", Path("nowhere"), ModelConfig())
REQUEST = Request(id="1", task=Task.CHAT, model="m", arrival=0.0)


class Bench:
    """A pipeline over one scripted model."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.models = Models(lambda source: ScriptedRuntime(source, script))
        self.records: list[Record] = []
        self.pipeline = Pipeline(self.models, self.records.append)

    def run(self, request: Request = REQUEST) -> AsyncGenerator[Chunk, None]:
        return self.pipeline.run(request, ANONYMOUS, Record.of(request))

    async def all(self) -> list[Chunk]:
        async with aclosing(self.run()) as chunks:
            return [chunk async for chunk in chunks]


async def bench(**script: object) -> Bench:
    made = Bench(Script(**script))  # type: ignore[arg-type]
    await made.models.load(SOURCE)
    return made


async def test_an_answer() -> None:
    made = await bench()
    chunks = await made.all()
    assert [chunk.text for chunk in chunks[:2]] == ["Hel", "lo"]
    assert sum(chunk.usage is not None for chunk in chunks) == 1
    (record,) = made.records
    assert (record.outcome, record.served, record.refused) == ("stop", True, False)
    assert (record.usage.prompt, record.usage.output, record.chunks) == (3, 2, 3)
    assert len(record.gaps) == 2
    assert record.end > 0


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("error", [Overloaded("full", retry_after=1), InternalError("x")])
async def test_an_error(error: MainspringError, after: int) -> None:
    made = await bench(error=error, error_after=after)
    with pytest.raises(type(error)):
        await made.all()
    (record,) = made.records
    assert (record.outcome, record.code, record.chunks) == ("error", error.code, after)
    assert record.refused == (error.status == 429 and not after)


async def test_a_bug_becomes_an_error_without_detail() -> None:
    made = await bench(error=ZeroDivisionError("secret"))
    with pytest.raises(InternalError) as caught:
        await made.all()
    assert "secret" not in caught.value.message
    assert [record.code for record in made.records] == ["internal_error"]


async def test_closing_cancels() -> None:
    made = await bench(endless=True)
    chunks = made.run()
    await anext(chunks)
    await chunks.aclose()
    assert made.script.closed.is_set()
    assert [record.outcome for record in made.records] == ["abort"]


async def test_cancelling_the_task_cancels() -> None:
    made = await bench(hold=True)
    task = asyncio.create_task(made.all())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.script.closed.is_set()
    assert [record.outcome for record in made.records] == ["abort"]


async def test_refusals_are_recorded_too() -> None:
    made = await bench()
    refused = [
        (made.pipeline.run(REQUEST, PUBLIC, Record.of(REQUEST)), Forbidden),
        (made.run(Request(id="1", task=Task.CHAT, model="n", arrival=0.0)), ModelNotFound),
    ]
    for chunks, error in refused:
        with pytest.raises(error):
            await anext(chunks)
    made.pipeline.draining = True
    with pytest.raises(Unavailable):
        await made.all()
    assert [record.outcome for record in made.records] == ["error"] * 3
    assert not any(record.served for record in made.records)


async def test_idle() -> None:
    made = await bench(hold=True)
    assert await made.pipeline.idle(0)
    task = asyncio.create_task(made.all())
    await asyncio.sleep(0)
    assert not await made.pipeline.idle(0.01)
    assert made.script.gate
    made.script.gate.set()
    assert await made.pipeline.idle(5)
    await task


# Models -------------------------------------------------------------------------------------------


async def test_a_name_is_served_once() -> None:
    made = await bench()
    with pytest.raises(Conflict, match="unload it first"):
        await made.models.load(SOURCE)
    await made.models.unload("m", 0)
    await made.models.load(SOURCE)


async def test_a_load_that_fails_frees_its_name() -> None:
    made = Bench(Script(load_error=ModelError("broken")))
    with pytest.raises(ModelError):
        await made.models.load(SOURCE)
    assert made.models.all() == []
    assert made.script.stopped.is_set()
    made.script.load_error = None
    await made.models.load(SOURCE)


async def test_a_model_on_its_way_answers_nothing() -> None:
    made = Bench(Script())
    loading = asyncio.create_task(made.models.load(SOURCE))
    served = None
    while served is None:
        await asyncio.sleep(0)
        served = next(iter(made.models.all()), None)
        if served and served.state is State.LOADING:
            with pytest.raises(Unavailable, match="loading"):
                made.models.find("m")
            assert made.models.unready() == {"m": "loading"}
            assert made.models.stuck() == {}
    await loading
    assert made.models.unready() == {}
    made.script.unhealthy = "stuck"
    assert made.models.unready() == made.models.stuck() == {"m": "stuck"}
    served = made.models.find("m")
    served.state = State.UNLOADING
    with pytest.raises(Unavailable, match="unloading"):
        await made.models.unload("m", 0)


async def test_a_stopped_server_loads_nothing_more() -> None:
    made = await bench()
    await made.models.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        await made.models.load(SOURCE)
    assert made.models.all() == []
