"""The adapters of one loaded model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

from mainspring.config import ModelConfig
from mainspring.engine.adapter import Adapter
from mainspring.engine.architectures import Architecture
from mainspring.engine.lora import load_adapter
from mainspring.errors import BadRequest, ModelError
from mainspring.kernels import Kernels
from mainspring.runtimes.memory import free_memory

__all__ = ["Adapters"]


class Adapters:
    """Loads Adapters within the model's settings and keeps them by id.

    One that is dropped lives on while a sequence uses it, and counts until then.
    """

    def __init__(
        self, model: Architecture, kernels: Kernels, config: ModelConfig, kv_bytes: int
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._config = config
        self._kv_bytes = kv_bytes
        self._kept: dict[str, Adapter] = {}
        self._alive: weakref.WeakSet[Adapter] = weakref.WeakSet()

    def load(
        self,
        id: str,
        path: Path,
        *,
        digest: bytes = b"",
        kv_touched: float = 0.0,
        progress: Callable[[], None] = lambda: None,
    ) -> Adapter:
        """The adapter in directory `path`, from now on known as `id`.

        `digest` is what it must have, where it is known; `kv_touched` the share of the KV cache
        that has memory already. Raises BadRequest above max_adapters, and as `load_adapter`.
        """
        most = self._config.max_adapters
        if len(self._kept) >= most:
            raise BadRequest(
                f"{len(self._kept)} adapters are loaded, the most allowed (max_adapters): unload "
                "one first, or raise the setting",
                param="max_adapters",
            )
        held = sum(adapter.nbytes for adapter in self._alive)
        spare = free_memory() - int(self._kv_bytes * (1 - kv_touched))
        adapter = load_adapter(
            path,
            self._model,
            self._kernels,
            limit=min(self._config.adapter_memory - held, spare),
            progress=progress,
        )
        if digest and adapter.digest != digest:
            raise ModelError("the adapter's files were changed since it was loaded: load it again")
        self._kept[id] = adapter
        self._alive.add(adapter)
        return adapter

    def drop(self, id: str) -> None:
        """Forget it; sequences that use it go on."""
        self._kept.pop(id, None)

    def get(self, id: str) -> Adapter:
        """Raises ModelError for one that is not loaded."""
        if (adapter := self._kept.get(id)) is None:
            raise ModelError("the adapter of this request is not loaded", param="model")
        return adapter
