"""What is known of one request when it is over: who, what, how much, how long, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from mainspring.types import Chunk, Finish, Request, Timings, Usage

__all__ = ["Outcome", "Record"]

Outcome = str
"""stop, length (a Finish), abort (the client left), or error"""


@dataclass(slots=True)
class Record:
    """Filled while the request runs. Holds counts and names, never text."""

    id: str
    task: str
    model: str
    """The name that was asked for; `served` says whether there is such a model."""
    tenant: str
    arrival: float
    n: int
    max_tokens: int | None
    served: bool = False
    outcome: Outcome = "error"
    code: str = ""
    """The error's code."""
    refused: bool = False
    """Ended in an error of the client's making, or of too much load, before any output."""
    usage: Usage = field(default_factory=Usage)
    timings: Timings | None = None
    gaps: list[float] = field(default_factory=list)
    """Seconds between successive pieces of output of a choice."""
    chunks: int = 0
    end: float = 0.0
    _last: dict[int, float] = field(default_factory=dict)
    _finish: Finish | None = None

    @classmethod
    def of(cls, request: Request) -> Record:
        return cls(
            id=request.id,
            task=request.task.value,
            model=request.model,
            tenant=request.tenant,
            arrival=request.arrival,
            n=request.n,
            max_tokens=request.sampling.max_tokens,
        )

    def add(self, chunk: Chunk, now: float) -> None:
        if chunk.usage is not None:
            self.usage, self.timings = chunk.usage, chunk.timings
            self.outcome = self._finish or Finish.STOP
            return
        self.chunks += 1
        if chunk.finish is not None and self._finish is None:
            self._finish = chunk.finish
        if (last := self._last.get(chunk.index)) is not None:
            self.gaps.append(now - last)
        self._last[chunk.index] = now
