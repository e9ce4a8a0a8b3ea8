"""An open-loop HTTP client, light enough to share the cores with the server it measures."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Client", "Outcome", "Part", "Patience"]

ANSWER_SECONDS = 120.0


@dataclass(slots=True)
class Outcome:
    """What came of one request; times in seconds of the monotonic clock."""

    sent: float
    comeback: bool = False
    """sent again when its Retry-After said"""
    status: int = 0
    first: float = 0.0
    """the answer's first byte: of a stream, with the first token"""
    end: float = 0.0
    retry_after: float = 0.0
    """seconds that a refusal asked for"""
    whole: bool = False
    """the stream came to its [DONE]"""


@dataclass(frozen=True, slots=True)
class Part:
    """`rate` requests a second on average, for so long."""

    rate: float
    seconds: float


@dataclass(slots=True)
class Patience:
    """Which share of refused clients comes back at its time, once, if that is before `until`."""

    share: float = 0.0
    until: float = 0.0


class _Connection(asyncio.Protocol):
    """One request at a time over a connection that is kept."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, data: bytes, outcome: Outcome) -> asyncio.Future[None]:
        self._outcome, self._buffer = outcome, b""
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.done

    def data_received(self, data: bytes) -> None:
        outcome, now = self._outcome, time.monotonic()
        if not outcome.status:
            outcome.status, outcome.first = int(data[9:12]), now
            if outcome.status != 200:
                outcome.retry_after = _retry_after(data)
        # The end may be cut anywhere; what is before it is of no interest.
        self._buffer = (self._buffer + data)[-32:]
        if outcome.status == 200:
            ended = outcome.whole = self._buffer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            ended = self._buffer.endswith(b"}}")
        if ended and self.done is not None and not self.done.done():
            outcome.end = now
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error or ConnectionResetError())


def _retry_after(head: bytes) -> float:
    _, found, rest = head.partition(b"retry-after-ms: ")
    return int(rest.partition(b"\r\n")[0]) / 1e3 if found else 0.0


@dataclass(slots=True)
class Client:
    """Sends streaming completions of `tokens` tokens each to 127.0.0.1:`port`."""

    port: int
    model: str
    prompt: int
    """characters of a prompt"""
    tokens: int
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    _free: list[_Connection] = field(default_factory=list)
    _numbers: int = 0

    async def poisson(self, parts: Sequence[Part], patience: Patience | None = None) -> None:
        """Requests at random moments, part after part; returns when all are over.

        The clock decides when to send, never an answer.
        """
        rng = random.Random(self.seed + self._numbers)
        loop = asyncio.get_running_loop()
        end = loop.time()
        running: set[asyncio.Task[None]] = set()
        for part in parts:
            moment, end = end, end + part.seconds
            while (moment := moment + rng.expovariate(part.rate)) < end:
                await asyncio.sleep(max(0.0, moment - loop.time()))
                stays = patience if patience and rng.random() < patience.share else None
                task = loop.create_task(self._one(self._body(), stays))
                running.add(task)
                task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)

    async def closed(self, clients: int, seconds: float) -> None:
        """`clients` that each send the next request when the last has ended.

        The refused come back when their Retry-After says.
        """
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                await self._one(self._body(), Patience(1.0, end))

        await asyncio.gather(*(client() for _ in range(clients)))

    def close(self) -> None:
        for connection in self._free:
            connection.transport.abort()
        self._free.clear()

    async def _one(self, data: bytes, patience: Patience | None) -> None:
        outcome = await self._send(data)
        back = time.monotonic() + outcome.retry_after
        if outcome.status == 429 and patience and back < patience.until:
            await asyncio.sleep(outcome.retry_after)
            (await self._send(data)).comeback = True

    async def _send(self, data: bytes) -> Outcome:
        connection = self._free.pop() if self._free else await self._connect()
        outcome = Outcome(time.monotonic())
        self.outcomes.append(outcome)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await connection.ask(data, outcome)
            self._free.append(connection)
        except (OSError, TimeoutError):
            connection.transport.abort()
        return outcome

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self.port)
        return connection

    def _body(self) -> bytes:
        """A request whose prompt begins like no other's."""
        self._numbers += 1
        words = f"{self._numbers} of {self.seed}: " + "the keeper climbs the stairs " * self.prompt
        body = json.dumps(
            {
                "model": self.model,
                "prompt": words[: self.prompt],
                "max_tokens": self.tokens,
                "ignore_eos": True,
                "stream": True,
                "seed": self._numbers,
            }
        ).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        return head % len(body) + body
