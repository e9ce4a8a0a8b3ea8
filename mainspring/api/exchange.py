"""One HTTP request and its response, as an ASGI application sees them."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any, Protocol

from mainspring.errors import RequestTimeout

__all__ = ["Application", "Exchange", "Link", "Message", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

READ_AHEAD = 64 * 1024
"""Body bytes held while the application does not ask for them."""
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}

log = logging.getLogger(__name__)


class Link(Protocol):
    """What an Exchange needs of its connection."""

    transport: asyncio.Transport

    def finished(self, *, keep_alive: bool) -> None:
        """The response is written. Without `keep_alive` the connection ends."""
        ...


class Exchange:
    """Runs the application for one request. The client leaving cancels the application."""

    def __init__(
        self, link: Link, scope: Scope, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.keep_alive = keep_alive
        self.complete = False
        """The response is written to its end."""
        self.received = False
        """The request is here to its end."""
        self._link = link
        self._transport = link.transport
        self._scope = scope
        self._expects_continue = expects_continue
        self._body = bytearray()
        self._arrived = asyncio.Event()
        self._timed_out = False
        self._abandoned = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._head: bytes | None = None
        self._started = False
        self._chunked = False
        self._task: asyncio.Task[None] | None = None

    def start(self, app: Application) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(app))

    def feed(self, data: bytes) -> None:
        """A piece of the request's body."""
        if self.complete:
            return
        self._body += data
        if len(self._body) > READ_AHEAD:
            self._transport.pause_reading()
        self._arrived.set()

    def feed_end(self) -> None:
        self.received = True
        self._arrived.set()

    def time_out(self) -> None:
        """The body takes too long: the application learns it by RequestTimeout."""
        self._timed_out = True
        self._arrived.set()

    def cancel(self) -> None:
        """The client is gone, or must go."""
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        """Stop the application; the connection answers in its place."""
        self._abandoned = True
        self.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _run(self, app: Application) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            # Nobody waits for this task: whoever cancelled it is done with it.
            if not self._abandoned:
                self._transport.abort()
        except Exception:  # the process edge: one request must not end the server
            log.exception("the application failed")
            self._transport.abort()
        else:
            if not self.complete:
                self._transport.abort()

    async def receive(self) -> Message:
        """The next piece of the body; http.disconnect after its end."""
        if self._expects_continue:
            self._expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._transport.is_closing():
            self._transport.resume_reading()
        await self._arrived.wait()
        if self._timed_out:
            raise RequestTimeout("the request's body came too slowly; send it faster")
        if not self.received:
            self._arrived.clear()
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self.received}

    async def send(self, message: Message) -> None:
        """Write a part of the response. Waits while the client does not take what it has."""
        await self._writable.wait()
        if message["type"] == "http.response.start":
            if self._started:
                raise RuntimeError("the response has already begun")
            self._started = True
            self._head = self._render_head(message["status"], list(message.get("headers", ())))
        else:
            self._write_body(message.get("body", b""), more=message.get("more_body", False))

    def _render_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        names = {name for name, _ in headers}
        if (b"connection", b"close") in headers or not self.received:
            self.keep_alive = False
        headers.append((b"date", formatdate(usegmt=True).encode()))
        if b"content-length" not in names:
            # HTTP/1.0 knows no chunks; there the end of the connection ends the body.
            self._chunked = self._scope["http_version"] == "1.1"
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            else:
                self.keep_alive = False
        if not self.keep_alive and b"connection" not in names:
            headers.append((b"connection", b"close"))
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        return STATUS_LINES[status] + lines + b"\r\n"

    def _write_body(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head or b"", None
        if self._scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        if (head or body) and not self._transport.is_closing():
            self._transport.write(head + body)
        if not more:
            self.complete = True
            self._link.finished(keep_alive=self.keep_alive)
