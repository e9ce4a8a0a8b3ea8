"""What a Worker is to compute and to hold, until the server says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from mainspring.errors import MainspringError
from mainspring.runtimes.protocol import Adapt, Output
from mainspring.types import Sampling

__all__ = ["Flight", "Placed"]


class Placed:
    """An adapter that a Worker is to have. `known` has its digest, or the error of its loading."""

    def __init__(self, id: str, path: Path) -> None:
        self.id = id
        self.path = str(path.resolve())
        self.known: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def message(self) -> Adapt:
        """The one that loads it, the same one as before."""
        return Adapt(self.id, self.path, self.known.result() if self.known.done() else b"")


class Flight:
    """One sequence that a Worker is to compute, until its last Output.

    `take` gets each Output, or the error that ended the flight.
    """

    __slots__ = (
        "adapter",
        "crashes",
        "generated",
        "grammar",
        "id",
        "prompt",
        "replays",
        "salt",
        "sampling",
        "sent",
        "take",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        salt: bytes,
        take: Callable[[Output | MainspringError], None],
        grammar: str = "",
        adapter: Placed | None = None,
    ) -> None:
        self.id = ""
        self.prompt = tuple(prompt)
        self.sampling = sampling
        self.salt = salt
        self.take = take
        self.grammar = grammar
        self.adapter = adapter
        self.generated: list[int] = []
        self.sent = False
        """a Worker has it, or had it when it crashed"""
        self.crashes = 0
        self.replays: list[float] = []
        """when it was added again, in seconds of the monotonic clock"""
