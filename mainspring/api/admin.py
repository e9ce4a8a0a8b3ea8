"""Load and unload models while serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mainspring.api.call import Call
from mainspring.api.routes import Route
from mainspring.config import ModelConfig, wrong_setting
from mainspring.dialects.body import read_body
from mainspring.errors import Forbidden
from mainspring.gateway.identity import Permission
from mainspring.gateway.models import Models, Served, Source, State
from mainspring.registry.adapter import offered_adapter
from mainspring.registry.catalog import check_name

__all__ = ["Admin"]

BODY_LIMIT = 64 * 1024


class _Load(Struct, frozen=True):
    model: str
    name: str | None = None


class _Unload(Struct, frozen=True, forbid_unknown_fields=True):
    model: str


class _LoadAdapter(Struct, frozen=True, forbid_unknown_fields=True):
    lora_name: str
    lora_path: str
    model: str | None = None
    """whose adapter it is, where several are served"""


class _UnloadAdapter(Struct, frozen=True, forbid_unknown_fields=True):
    lora_name: str
    lora_int_id: int | None = None
    """other servers' number of it; the name says all"""


class Admin:
    """`find` turns a model's name or directory into a Source (see registry.resolve)."""

    def __init__(
        self,
        models: Models,
        find: Callable[[str, ModelConfig], Source],
        defaults: ModelConfig,
        *,
        drain_seconds: float,
        adapter_folder: str = "",
    ) -> None:
        self._models = models
        self._find = find
        self._defaults = defaults
        self._drain_seconds = drain_seconds
        self._adapter_folder = adapter_folder
        self._work: set[asyncio.Task[Any]] = set()

    def routes(self) -> list[Route]:
        may = Permission.ADMIN
        return [
            Route("GET", "/admin/models", may, self.list_models),
            Route("POST", "/admin/models/load", may, self.load),
            Route("POST", "/admin/models/unload", may, self.unload),
            Route("POST", "/v1/load_lora_adapter", may, self.load_adapter),
            Route("POST", "/v1/unload_lora_adapter", may, self.unload_adapter),
        ]

    async def list_models(self, call: Call, _: str) -> None:
        data = [model_fields(served) for served in self._models.all()]
        await call.answer(200, msgspec.json.encode({"data": data}))

    async def load(self, call: Call, _: str) -> None:
        """Answers when the model is loaded. The settings are those of ModelConfig."""
        ask, raw = read_body(await call.body(BODY_LIMIT), _Load)
        settings = {key: raw[key] for key in raw if key not in {"model", "name"}}
        source = self._find(ask.model, _config(self._defaults, settings))
        if ask.name is not None:
            source = msgspec.structs.replace(source, name=check_name(ask.name, "name"))
        served = await self._finish(self._models.load(source))
        await call.answer(200, msgspec.json.encode(model_fields(served)))

    async def unload(self, call: Call, _: str) -> None:
        """Answers when the model is gone; its requests may end first."""
        ask, _raw = read_body(await call.body(BODY_LIMIT), _Unload)
        await self._finish(self._models.unload(ask.model, self._drain_seconds))
        await call.answer(200, msgspec.json.encode({"name": ask.model, "state": "unloaded"}))

    async def load_adapter(self, call: Call, _: str) -> None:
        """Answers when the adapter is loaded; paths and fields are those of other servers."""
        ask, _raw = read_body(await call.body(BODY_LIMIT), _LoadAdapter)
        if not self._adapter_folder:
            raise Forbidden("adapters are not loaded while serving: no adapter_folder is set")
        path = offered_adapter(ask.lora_path, Path(self._adapter_folder))
        name = check_name(ask.lora_name, "lora_name")
        served = await self._finish(self._models.load_adapter(name, path, ask.model))
        body = {"name": name, "parent": served.parent.name, "state": "loaded"}
        await call.answer(200, msgspec.json.encode(body))

    async def unload_adapter(self, call: Call, _: str) -> None:
        """Answers at once; requests that use the adapter end with it."""
        ask, _raw = read_body(await call.body(BODY_LIMIT), _UnloadAdapter)
        self._models.unload_adapter(ask.lora_name)
        await call.answer(200, msgspec.json.encode({"name": ask.lora_name, "state": "unloaded"}))

    async def _finish(self, work: Any) -> Any:
        """Done to the end also when the caller leaves."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._settled)
        return await asyncio.shield(task)

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of, whether or not the caller still waits


def _config(defaults: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    try:
        return msgspec.convert(msgspec.structs.asdict(defaults) | settings, ModelConfig)
    except msgspec.ValidationError as error:
        raise wrong_setting(error) from error


def model_fields(served: Served) -> dict[str, Any]:
    """One row of GET /admin/models."""
    row: dict[str, Any] = {"name": served.name, "state": served.state.value}
    row["unready"] = served.unready()
    row["settings"] = msgspec.to_builtins(served.source.config)
    if served.state is not State.LOADING:
        row |= msgspec.to_builtins(served.runtime.info)
        row |= {"name": served.name, "digest": served.source.digest}
        row["stats"] = msgspec.to_builtins(served.runtime.stats())
        row["restarts"] = served.runtime.restarts
    return row
