"""The composition root: Config -> running system. The only file that knows every folder."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from mainspring.api.admin import Admin
from mainspring.api.connection import Limits
from mainspring.api.health import Health
from mainspring.api.inference import Inference
from mainspring.api.listener import Listener, bind
from mainspring.api.routes import Route, Routes
from mainspring.api.server import Server, Sites
from mainspring.config import Config, ModelConfig
from mainspring.errors import BadRequest
from mainspring.gateway.identity import Keys, check_exposure
from mainspring.gateway.models import LocalRuntime, Models, Source
from mainspring.gateway.pipeline import Pipeline
from mainspring.registry import EMBEDDED, resolve
from mainspring.registry.adapter import named_adapter
from mainspring.telemetry.log import configure, pairs
from mainspring.telemetry.metrics import Metrics
from mainspring.types import EngineStats

__all__ = ["App", "build", "serve"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SPARE_FILES = 1024
LAST_WORDS_SECONDS = 1.0
"""After the drain, for errors on their way to clients that still listen."""

log = logging.getLogger(__name__)


class App:
    """One server. `make` builds the Runtime of a Source."""

    def __init__(self, config: Config, make: Callable[[Source], LocalRuntime]) -> None:
        check_exposure(config.host, config.api_keys)
        self.config = config
        self.models = Models(make)
        self.metrics = Metrics(self._stats)
        self.pipeline = Pipeline(self.models, self.metrics.add)
        self._sources = [self._source(n, config.defaults) for n in config.models or (EMBEDDED,)]
        self._adapters = [named_adapter(text) for text in config.adapters]
        names = [source.name for source in self._sources]
        _check_names([*names, *(name for name, _ in self._adapters)])
        self._unready: str | None = "starting"
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self.server = Server(
            Routes(self.routes()),
            Keys(config.api_keys),
            Sites(config.host, config.allowed_hosts),
            self.metrics.add_http,
        )
        self.listener = Listener(
            self.server,
            bind(config.host, config.port),
            Limits(request_seconds=config.header_seconds, write_seconds=config.write_seconds),
            connections=config.connection_limit,
        )

    def routes(self) -> list[Route]:
        """Every path of this server."""
        config = self.config
        inference = Inference(
            self.pipeline,
            self.models,
            body_limit=config.body_limit,
            template_variables=config.template_variables,
            reasoning=config.reasoning,
        )
        health = Health(self.models, self.metrics, lambda: self._unready)
        admin = Admin(
            self.models,
            self._source,
            config.defaults,
            drain_seconds=config.drain_seconds,
            adapter_folder=config.adapter_folder,
        )
        return [*inference.routes(), *health.routes(), *admin.routes()]

    def _source(self, name: str, settings: ModelConfig) -> Source:
        found = resolve(name, Path(self.config.home).expanduser())
        return Source(found.name, found.path, settings, found.digest)

    def _stats(self) -> list[tuple[str, EngineStats, int]]:
        return [(s.name, s.runtime.stats(), s.runtime.restarts) for s in self.models.loaded()]

    async def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until `stop`. Raises the error of a model that cannot be loaded at start."""
        begin = time.monotonic()
        await self.listener.start()
        loading = asyncio.ensure_future(self._load())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                loading.result()
                self._unready = None
                address = self.listener.address
                seconds = time.monotonic() - begin
                names = ",".join(served.name for served in self.models.all())
                log.info("ready %s", pairs(url=address, models=names, seconds=seconds))
                if on_ready is not None:
                    on_ready(address)
                await stopping
            await self._drain()
        finally:
            loading.cancel()
            stopping.cancel()
            await asyncio.wait({loading, stopping})
            await self.models.stop()
            await self.listener.stop(0 if self._kill.is_set() else LAST_WORDS_SECONDS)
        log.info("stopped")

    def stop(self) -> None:
        """First call: drain, then end. Second call: end at once."""
        if self._stop.is_set():
            self._kill.set()
        self._unready = "shutting down"
        self.pipeline.draining = True
        self._stop.set()

    async def _load(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source in self._sources:
                    group.create_task(self.models.load(source))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        for name, path in self._adapters:
            await self.models.load_adapter(name, path, self._sources[0].name)

    async def _drain(self) -> None:
        log.info("draining for at most %g seconds", self.config.drain_seconds)
        idle = asyncio.ensure_future(self.pipeline.idle(self.config.drain_seconds))
        killed = asyncio.ensure_future(self._kill.wait())
        await asyncio.wait({idle, killed}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        killed.cancel()
        await asyncio.wait({idle, killed})


def _check_names(names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadRequest(
            f"two models are called {twice[0]!r}: give one another name, as NAME=DIRECTORY",
            param="models",
        )


def build(config: Config) -> App:
    """The system of `config`, bound to its port, not yet running.

    Must be called in the event loop that will run it. Raises a MainspringError in one line.
    """
    # Its imports (tokenizers, jinja2) are not those of a server without local models.
    from mainspring.runtimes.llm import LLMRuntime

    def make(source: Source) -> LocalRuntime:
        return LLMRuntime(
            source.name,
            source.path,
            source.config,
            stall_seconds=config.stall_seconds,
            home=config.home,
            template_variables=config.template_variables,
        )

    return App(config, make)


def serve(config: Config, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Build and run the whole server until SIGINT or SIGTERM; a second signal ends it at once.

    `on_ready` gets the address, http://host:port. Raises a MainspringError in one line.
    """
    configure(config.log_level)
    _raise_file_limit(config.connection_limit + SPARE_FILES)
    # uvloop: no difference measured in CPU time a request or a chunk, 1 to 32 streams.
    asyncio.run(_serve(config, on_ready))


def _raise_file_limit(wanted: int) -> None:
    """Each connection is an open file; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


async def _serve(config: Config, on_ready: Callable[[str], None] | None) -> None:
    app = build(config)
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, app.stop)

    def ready(address: str) -> None:
        # What is here stays, and looking through it for garbage holds every stream for 20 ms.
        gc.freeze()
        if on_ready is not None:
            on_ready(address)

    await app.run(ready)
