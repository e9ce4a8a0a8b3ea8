"""One HTTP request as a handler sees it: headers, the body within its limit, the answer."""

from __future__ import annotations

import math
import re
import time
import uuid

from mainspring.api.exchange import Receive, Scope, Send
from mainspring.dialects import openai
from mainspring.errors import (
    BadRequest,
    BodyTooLarge,
    MainspringError,
    MethodNotAllowed,
    Overloaded,
    Unavailable,
    UnsupportedMedia,
)
from mainspring.gateway.identity import PUBLIC, Identity
from mainspring.telemetry.record import Record

__all__ = ["JSON", "Call"]

JSON = b"application/json"
SINGLE = frozenset({b"authorization", b"content-type", b"content-length", b"host", b"origin"})
"""Headers that decide something: given twice, two readers could decide differently."""
ECHO_LIMIT = 128
UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
Headers = list[tuple[bytes, bytes]]


class Call:
    """One request on its way through the server."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = uuid.uuid4().hex
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.arrival = time.monotonic()
        """When its last byte came in; until then, when its headers did."""
        self.identity: Identity = PUBLIC
        self.record: Record | None = None
        self.route = "other"
        self.status = 0
        """Of the answer; 0 while there is none."""
        self.started = self.arrival
        self._fields = scope["headers"]
        self._receive = receive
        self._send = send
        self._extra: Headers = []

    def header(self, name: bytes) -> str | None:
        """A header's value. Raises BadRequest when a deciding one is there twice."""
        values = [value for field, value in self._fields if field == name]
        if len(values) > 1 and name in SINGLE:
            raise BadRequest(f"the header {name.decode()} is there {len(values)} times")
        return values[0].decode("utf-8", "replace") if values else None

    def add_header(self, name: bytes, value: str) -> None:
        """Put a header on the answer. Characters that do not belong in one are left out."""
        self._extra.append((name, UNPRINTABLE.sub("", value).encode()))

    async def body(self, limit: int) -> bytes:
        """The JSON body, not yet decoded.

        Raises UnsupportedMedia for anything but plain JSON, BodyTooLarge over `limit` bytes.
        """
        self._check_media()
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > limit:
            raise self._too_large(limit)
        parts = bytearray()
        more = True
        while more:
            message = await self._receive()
            parts += message.get("body", b"")
            more = message.get("more_body", False)
            if len(parts) > limit:
                raise self._too_large(limit)
        self.arrival = time.monotonic()
        return bytes(parts)

    def _too_large(self, limit: int) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over the limit of {limit} bytes")

    def _check_media(self) -> None:
        coding = (self.header(b"content-encoding") or "identity").strip().lower()
        if coding != "identity":
            raise UnsupportedMedia("compressed bodies are not taken: send no Content-Encoding")
        media = (self.header(b"content-type") or "application/json").partition(";")[0]
        if media.strip().lower() != "application/json":
            raise UnsupportedMedia("the body must be JSON: send Content-Type: application/json")

    async def answer(self, status: int, body: bytes, media: bytes = JSON) -> None:
        """The whole answer."""
        await self._begin(
            status, [(b"content-type", media), (b"content-length", b"%d" % len(body))]
        )
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: MainspringError) -> None:
        """The whole answer, for an error."""
        if isinstance(error, Overloaded | Unavailable):
            self.add_header(b"retry-after", str(max(1, math.ceil(error.retry_after))))
            self.add_header(b"retry-after-ms", str(math.ceil(error.retry_after * 1000)))
        if isinstance(error, MethodNotAllowed):
            self.add_header(b"allow", error.allowed)
        if error.status == 401:
            self.add_header(b"www-authenticate", "Bearer")
        await self.answer(error.status, openai.error_body(error))

    async def stream(self, media: str) -> None:
        """Begin an answer that comes in pieces."""
        await self._begin(
            200,
            [
                (b"content-type", media.encode()),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ],
        )

    async def piece(self, data: bytes, *, last: bool = False) -> None:
        """Waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _begin(self, status: int, headers: Headers) -> None:
        headers.append((b"x-request-id", self.id.encode()))
        if theirs := self.header(b"x-request-id"):
            shown = UNPRINTABLE.sub("", theirs)[:ECHO_LIMIT]
            headers.append((b"x-client-request-id", shown.encode()))
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers + self._extra}
        )
        self.status = status
