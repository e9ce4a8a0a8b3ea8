"""A model with an adapter, as something that answers requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec

from mainspring.runtimes.flight import Placed
from mainspring.types import Chunk, ModelInfo, Request

if TYPE_CHECKING:
    from mainspring.runtimes.llm import LLMRuntime

__all__ = ["AdaptedRuntime"]


class AdaptedRuntime:
    """Made by `LLMRuntime.load_adapter`. It has its model's Worker and place in the queue."""

    def __init__(self, name: str, model: LLMRuntime, placed: Placed) -> None:
        self._name = name
        self._model = model
        self._placed = placed

    @property
    def info(self) -> ModelInfo:
        """The model's, under the adapter's name."""
        info = self._model.info
        return msgspec.structs.replace(info, name=self._name, parent=info.name, digest="")

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """As `LLMRuntime.run`."""
        return self._model.run(request, self._placed)

    def unload(self) -> None:
        """What runs with it ends with it."""
        self._model.drop_adapter(self._placed)
