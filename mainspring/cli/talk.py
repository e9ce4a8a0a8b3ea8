"""Who answers `mainspring run`: the running server, or an Engine in this process."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from msgspec import Struct

from mainspring.cli.client import Client
from mainspring.config import Config
from mainspring.errors import MainspringError
from mainspring.types import Message

__all__ = ["Options", "Piece", "ServerTalk", "Talk", "serving"]

LOOK_SECONDS = 1.0
"""how long to look for a server before answering in this process"""


class Options(Struct, frozen=True, kw_only=True):
    """Sampling that was asked for; None leaves it to the model."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Piece(Struct, frozen=True, kw_only=True):
    """Some text of an answer; the last one has the numbers instead."""

    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token: float = 0.0
    """seconds"""
    total: float = 0.0


class Talk(Protocol):
    """A model that can be asked. Closing the generator cancels the answer."""

    @property
    def where(self) -> str: ...

    def ask(
        self, messages: tuple[Message, ...], options: Options
    ) -> Generator[Piece, None, None]: ...

    def close(self) -> None: ...


def serving(config: Config, name: str) -> Client | None:
    """A client of the server of the settings if it answers and serves the model `name`."""
    if not config.port:
        return None
    try:
        models = Client(config, timeout=LOOK_SECONDS).get("/v1/models")
    except MainspringError:
        return None  # not there, another program, or a key we lack: this process can answer
    data = models.get("data") if isinstance(models, dict) else None
    names = [entry.get("id") for entry in data or [] if isinstance(entry, dict)]
    return Client(config, timeout=600.0) if name in names else None


class ServerTalk:
    """Asks the server's chat completions."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model

    @property
    def where(self) -> str:
        return f"through the server at {self.client.address}"

    def ask(self, messages: tuple[Message, ...], options: Options) -> Generator[Piece, None, None]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        fields = ("temperature", "top_p", "max_tokens", "seed")
        body |= {f: value for f in fields if (value := getattr(options, f)) is not None}
        for event in self.client.stream("/v1/chat/completions", body):
            yield from _pieces(event)

    def close(self) -> None:
        """Nothing is held between two questions."""


def _pieces(event: dict[str, Any]) -> Generator[Piece, None, None]:
    for choice in event.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            yield Piece(text=text)
    if usage := event.get("usage"):
        timings = event.get("timings") or {}
        details = usage.get("prompt_tokens_details") or {}
        yield Piece(
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=usage.get("completion_tokens", 0),
            first_token=timings.get("first_token", 0.0) / 1000,
            total=timings.get("total", 0.0) / 1000,
        )
