"""One request in flight: its choices, and what has arrived for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from mainspring.errors import MainspringError
from mainspring.runtimes.choice import Choice
from mainspring.runtimes.flight import Flight, Placed
from mainspring.runtimes.protocol import Output
from mainspring.runtimes.supervisor import Supervisor
from mainspring.types import Chunk, Event, Request, Timings, Usage

__all__ = ["Answer"]


class Answer:
    """Merges the choices of a request into one stream of Chunks.

    `choices` are in order of their index, `flights` what the Engine is to compute for them;
    `tokenized` is when that was known. `close` may come at any time.
    """

    def __init__(
        self,
        request: Request,
        supervisor: Supervisor,
        choices: Sequence[Choice],
        tokenized: float,
        adapter: Placed | None = None,
    ) -> None:
        self._request = request
        self._supervisor = supervisor
        self._choices = choices
        self._tokenized = tokenized
        self._inbox: deque[tuple[int, Output | MainspringError]] = deque()
        self._arrived = asyncio.Event()
        salt = request.tenant.encode()
        self._flights = [
            Flight(
                choice.prompt,
                choice.sampling,
                salt,
                partial(self._take, place),
                choice.grammar,
                adapter,
            )
            for place, choice in enumerate(choices)
        ]

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The whole answer. Raises the first error of any choice."""
        for flight in self._flights:
            self._supervisor.submit(flight)
        left = len(self._choices)
        while left:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox:
                place, output = self._inbox.popleft()
                choice = self._choices[place]
                if choice.finish is not None:
                    continue  # sent before the Worker knew that a stop string had come
                if isinstance(output, MainspringError):
                    raise output
                chunk = choice.take(output)
                if chunk is None:
                    continue
                if chunk.finish is not None:
                    left -= 1
                    self._supervisor.cancel(self._flights[place])
                yield chunk
        yield self._last()

    def close(self) -> None:
        """Cancel what is still being computed."""
        for flight in self._flights:
            self._supervisor.cancel(flight)

    @property
    def prompt(self) -> int:
        """Prompt tokens, each prompt's once."""
        return sum(len(choice.prompt) for choice in self._choices[:: self._request.n])

    @property
    def cached(self) -> int:
        """Those of them that the prefix cache had."""
        return sum(choice.cached for choice in self._choices[:: self._request.n])

    @property
    def output(self) -> int:
        """Output tokens of all choices so far."""
        return sum(choice.output for choice in self._choices)

    def _take(self, place: int, output: Output | MainspringError) -> None:
        self._inbox.append((place, output))
        self._arrived.set()

    def _last(self) -> Chunk:
        usage = Usage(
            prompt=self.prompt,
            cached=self.cached,
            output=self.output,
            reasoning=sum(choice.reasoning for choice in self._choices),
        )
        before = (Event("arrival", self._request.arrival), Event("tokenized", self._tokenized))
        timelines = [
            choice.timeline(before, flight.replays)
            for choice, flight in zip(self._choices, self._flights, strict=True)
            if self._request.timeline
        ]
        return Chunk(usage=usage, timings=self._timings(), timelines=tuple(timelines))

    def _timings(self) -> Timings:
        choice, arrival = self._choices[0], self._request.arrival
        first, last = choice.times[0].time, choice.times[-1].time
        admitted = [event.time for event in choice.events if event.name == "admitted"]
        # After a replay the Engine's story begins later than the first token; and of a choice that
        # a stop string ended, the Engine tells no story.
        begun = min([first, *admitted]) if admitted else self._tokenized
        return Timings(
            tokenize=self._tokenized - arrival,
            queue=begun - self._tokenized,
            prefill=first - begun,
            decode=last - first,
            total=last - arrival,
            first_token=first - arrival,
        )
