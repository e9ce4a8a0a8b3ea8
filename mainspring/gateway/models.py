"""The served models: name -> Runtime, loaded and unloaded while serving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from mainspring.config import ModelConfig
from mainspring.errors import Conflict, ModelNotFound, Unavailable
from mainspring.types import EngineStats, ModelInfo, Runtime

__all__ = ["LocalRuntime", "Models", "Served", "Source", "State"]

log = logging.getLogger(__name__)


class LocalRuntime(Runtime, Protocol):
    """A Runtime with a life of its own: what LLMRuntime offers."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def restarts(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self, drain: float = 0.0) -> None: ...
    def stats(self) -> EngineStats: ...
    def unhealthy(self) -> str | None: ...


class Source(Struct, frozen=True):
    """A checkpoint to serve."""

    name: str
    path: Path
    config: ModelConfig
    digest: str = ""


class State(StrEnum):
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


class Served:
    """One model and where it is in its life."""

    def __init__(self, source: Source, runtime: LocalRuntime) -> None:
        self.source = source
        self.runtime = runtime
        self.state = State.LOADING

    @property
    def name(self) -> str:
        return self.source.name

    def unready(self) -> str | None:
        """None when it answers; else why not."""
        if self.state is not State.LOADED:
            return self.state.value
        return self.runtime.unhealthy()


class Models:
    """Every model of this server. `make` builds the Runtime of a Source without starting it."""

    def __init__(self, make: Callable[[Source], LocalRuntime]) -> None:
        self._make = make
        self._served: dict[str, Served] = {}
        self._stopped = False

    def all(self) -> list[Served]:
        """By name, whatever their state."""
        return [self._served[name] for name in sorted(self._served)]

    def loaded(self) -> list[Served]:
        return [served for served in self.all() if served.state is not State.LOADING]

    def unready(self) -> dict[str, str]:
        """Name -> reason, of the models that do not answer now."""
        return {s.name: why for s in self.all() if (why := s.unready()) is not None}

    def stuck(self) -> dict[str, str]:
        """Of those, the models that should answer: none that is just being loaded or unloaded."""
        states = {served.name: served.state for served in self.all()}
        return {n: why for n, why in self.unready().items() if states[n] is State.LOADED}

    def find(self, name: str) -> Served:
        """The model to answer with. Raises ModelNotFound, or Unavailable while it loads."""
        served = self._served.get(name)
        if served is None:
            raise ModelNotFound.among(name, self._served)
        if served.state is not State.LOADED:
            raise Unavailable(f"model {name!r} is {served.state.value}; try again soon")
        return served

    async def load(self, source: Source) -> Served:
        """Start serving. Raises Conflict when the name is taken, and what the Runtime raises."""
        if self._stopped:
            raise Unavailable("the server is shutting down; load it on another")
        if (there := self._served.get(source.name)) is not None:
            first = "unload it" if there.state is State.LOADED else "wait until that is done"
            raise Conflict(
                f"a model named {source.name!r} is {there.state.value} now: {first} first, or load "
                "under another name",
                param="name",
            )
        served = self._served[source.name] = Served(source, self._make(source))
        try:
            await served.runtime.start()
        except BaseException:
            self._served.pop(source.name, None)  # `stop` may have taken it already
            await served.runtime.stop()
            raise
        served.state = State.LOADED
        log.info("loaded model=%s format=%s", source.name, served.runtime.info.format)
        return served

    async def unload(self, name: str, drain: float) -> None:
        """Let its requests end for `drain` seconds, then stop it. Raises ModelNotFound."""
        served = self.find(name)
        served.state = State.UNLOADING
        try:
            await served.runtime.stop(drain)
        finally:
            self._served.pop(name, None)
        log.info("unloaded model=%s", name)

    async def stop(self) -> None:
        """Stop all at once, for good."""
        self._stopped = True
        runtimes = [served.runtime for served in self._served.values()]
        self._served.clear()
        await asyncio.gather(*(runtime.stop() for runtime in runtimes))
