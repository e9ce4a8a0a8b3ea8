"""The one path of a request: every answer of this server comes through `Pipeline.run`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mainspring.errors import InternalError, MainspringError, Unavailable
from mainspring.gateway.identity import Identity, Permission
from mainspring.gateway.models import Models
from mainspring.telemetry.record import Record
from mainspring.types import Chunk, Request

__all__ = ["Pipeline"]

log = logging.getLogger(__name__)


class Pipeline:
    """Identity, routing, the Runtime, and exactly one Record, in this order."""

    def __init__(self, models: Models, keep: Callable[[Record], None]) -> None:
        self._models = models
        self._keep = keep
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        """No new requests."""

    async def run(
        self, request: Request, identity: Identity, record: Record
    ) -> AsyncGenerator[Chunk, None]:
        """Answer. Raises a MainspringError and nothing else.

        The Record is kept when this ends, so before a caller that waits for the end tells the
        client so. Closing the generator, or cancelling its task, cancels the work.
        """
        self._begin()
        try:
            identity.check(Permission.INFERENCE)
            self._check_open()
            runtime = self._models.find(request.model).runtime
            record.served = True
            async with aclosing(runtime.run(request)) as chunks:
                async for chunk in chunks:
                    record.add(chunk, time.monotonic())
                    yield chunk
        except MainspringError as error:
            record.code, record.refused = error.code, error.status < 500 and not record.chunks
            raise
        except (asyncio.CancelledError, GeneratorExit):
            record.outcome = "abort"
            raise
        except Exception as error:  # the Runtime's bug must reach the client as an error, not a cut
            record.code = InternalError.code
            log.exception("request failed id=%s", request.id)
            raise InternalError(
                f"internal error; the server's log has it as {request.id}"
            ) from error
        finally:
            record.end = time.monotonic()
            self._end()
            self._keep(record)

    async def idle(self, seconds: float) -> bool:
        """Wait until nothing runs, for at most `seconds`; whether nothing runs."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _check_open(self) -> None:
        if self.draining:
            raise Unavailable("the server is shutting down; ask another, or again soon")

    def _begin(self) -> None:
        self._running += 1
        self._idle.clear()

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
