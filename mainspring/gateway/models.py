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
from mainspring.errors import BadRequest, Conflict, ModelNotFound, Unavailable
from mainspring.types import EngineStats, ModelInfo, Runtime

__all__ = ["LocalRuntime", "Models", "Served", "Source", "State"]

log = logging.getLogger(__name__)


class AdaptedModel(Runtime, Protocol):
    """A model as an adapter changes it."""

    @property
    def info(self) -> ModelInfo: ...
    def unload(self) -> None: ...


class LocalRuntime(Runtime, Protocol):
    """A Runtime with a life of its own: what LLMRuntime offers."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def restarts(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self, drain: float = 0.0) -> None: ...
    async def load_adapter(self, name: str, path: Path) -> AdaptedModel: ...
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


class ServedAdapter:
    """An adapter of a served model, under a name of its own."""

    def __init__(self, parent: Served, runtime: AdaptedModel) -> None:
        self.parent = parent
        self.runtime = runtime


class Models:
    """Every model of this server. `make` builds the Runtime of a Source without starting it."""

    def __init__(self, make: Callable[[Source], LocalRuntime]) -> None:
        self._make = make
        self._served: dict[str, Served] = {}
        self._adapters: dict[str, ServedAdapter] = {}
        self._coming: set[str] = set()
        """names of adapters that are being loaded"""
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

    def adapters(self) -> list[ServedAdapter]:
        """Those that answer, by name."""
        return [self._adapters[name] for name in sorted(self._adapters)]

    def find(self, name: str) -> Served | ServedAdapter:
        """What to answer with. Raises ModelNotFound, or Unavailable while it loads."""
        return self._adapters.get(name) or self._model(name)

    def _model(self, name: str) -> Served:
        served = self._served.get(name)
        if served is None:
            raise ModelNotFound.among(name, [*self._served, *self._adapters])
        if served.state is not State.LOADED:
            raise Unavailable(f"model {name!r} is {served.state.value}; try again soon")
        return served

    async def load(self, source: Source) -> Served:
        """Start serving. Raises Conflict when the name is taken, and what the Runtime raises."""
        if self._stopped:
            raise Unavailable("the server is shutting down; load it on another")
        self._check_adapter_name(source.name)
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
        served = self._model(name)
        served.state = State.UNLOADING
        self._adapters = {n: a for n, a in self._adapters.items() if a.parent is not served}
        try:
            await served.runtime.stop(drain)
        finally:
            self._served.pop(name, None)
        log.info("unloaded model=%s", name)

    async def load_adapter(self, name: str, path: Path, model: str | None) -> ServedAdapter:
        """Serve a model with the adapter of a directory, as `name`; `model` None: the only one.

        Raises Conflict when the name is taken, ModelNotFound, and what the Runtime raises.
        """
        self._check_adapter_name(name)
        if name in self._served:
            raise Conflict(f"a model is called {name!r}: take another name", param="lora_name")
        if model is None and len(self._served) != 1:
            known = ", ".join(sorted(self._served)) or "none"
            raise BadRequest(f"say whose adapter it is; models: {known}", param="model")
        parent = self._model(model or next(iter(self._served)))
        self._coming.add(name)
        try:
            runtime = await parent.runtime.load_adapter(name, path)
        finally:
            self._coming.discard(name)
        if parent.state is not State.LOADED:
            raise Unavailable(f"model {parent.name!r} is {parent.state.value}")
        served = self._adapters[name] = ServedAdapter(parent, runtime)
        log.info("loaded adapter=%s model=%s", name, parent.name)
        return served

    def unload_adapter(self, name: str) -> None:
        """Answer nothing new with it; its requests end. Raises ModelNotFound."""
        if (served := self._adapters.pop(name, None)) is None:
            raise ModelNotFound.among(name, self._adapters)
        served.runtime.unload()
        log.info("unloaded adapter=%s", name)

    def _check_adapter_name(self, name: str) -> None:
        if name in self._adapters or name in self._coming:
            raise Conflict(
                f"an adapter is called {name!r}: unload it first, or take another name",
                param="lora_name",
            )

    async def stop(self) -> None:
        """Stop all at once, for good."""
        self._stopped = True
        runtimes = [served.runtime for served in self._served.values()]
        self._served.clear()
        self._adapters.clear()
        await asyncio.gather(*(runtime.stop() for runtime in runtimes))
