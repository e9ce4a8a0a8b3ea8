"""One client connection: HTTP/1.1 read strictly, with limits and timers on everything.

Measured on the probes of tests/unit/api/test_wire.py: uvicorn with h11 takes bare line feeds,
folded headers, and Content-Length beside Transfer-Encoding; granian takes the first and the last
of these and answers 500 to broken chunks; llhttp (the httptools package, uvicorn's other parser)
refuses them all and costs half of h11 a request. None of the three limits headers, chunk counts
or slow clients enough. So: httptools, under a protocol of our own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Protocol, cast

import httptools
import msgspec
from msgspec import Struct

from mainspring.api.exchange import STATUS_LINES, Application, Exchange
from mainspring.buffered import Buffered

__all__ = ["Connection", "Limits", "Owner"]

HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
TARGET = re.compile(rb"/[!-~]*")
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
WRITE_BUFFER = 64 * 1024
PIPELINED = 0
"""A Refusal that the client does not see: the request before it is still being answered."""
LINGER_SECONDS = 1.0
STRAY_LIMIT = 1 << 20
"""Bytes that a client may send when it should be listening."""


class Limits(Struct, frozen=True, kw_only=True):
    """What one connection may do."""

    head_bytes: int = 32 * 1024
    headers: int = 100
    url_bytes: int = 8 * 1024
    chunks: int = 65_536
    framing_bytes: int = 512 * 1024
    """Bytes of chunk sizes, extensions and trailers."""
    request_seconds: float = 30.0
    """A request's headers and body must arrive within this time."""
    write_seconds: float = 30.0
    """A client that takes nothing for this long is dropped."""
    idle_seconds: float = 75.0
    """A connection between two requests is kept for this long."""


class Owner(Protocol):
    """What a Connection needs of the listener."""

    app: Application
    limits: Limits
    room: bytearray
    """what all its connections read into"""

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for one more."""
        ...

    def closed(self, connection: Connection) -> None: ...


class Refusal(Exception):
    """The bytes are not a request that we take. `code` is the error's code for the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def _bad(message: str) -> Refusal:
    return Refusal(400, "invalid_http", message)


def _without_upgrade(data: bytes) -> bytes:
    """Rename an offer to upgrade, as Java's client makes with its first request.

    HTTP lets a server pass over the offer; llhttp would pass over the request's body instead. An
    offer cut by the end of `data` is not seen here and refused.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"\r\noffered:", head) + end + body if UPGRADE.search(head) else data


class Connection(Buffered):
    """Feeds one connection's requests to the application, one after the other.

    Pipelined requests are not queued: the connection ends after the answer to the first, which
    HTTP/1.1 allows. So one connection never holds more than one request.
    """

    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.room)
        self._owner = owner
        self._limits = owner.limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._ending = False
        self._stray = 0
        self._reset()

    def _reset(self) -> None:
        self._in_head = True
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body_bytes = 0
        self._raw_bytes = 0
        self._chunks = 0

    # The transport's side -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if self._owner.opened(self):
            self._arm(self._limits.request_seconds, self._late)
        else:
            self._refuse(Refusal(503, "unavailable", "too many connections; come back later"))
            self.transport.close()  # without lingering: there is no room for that either

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._owner.closed(self)
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.cancel()

    def pause_writing(self) -> None:
        if self._write_timer is None:
            self._write_timer = self._loop.call_later(
                self._limits.write_seconds, self.transport.abort
            )
        if self._exchange is not None:
            self._exchange.pause_writing()

    def resume_writing(self) -> None:
        if self._write_timer is not None and not self._ending:
            self._write_timer.cancel()
            self._write_timer = None
        if self._exchange is not None:
            self._exchange.resume_writing()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        answering = exchange is not None and exchange.received and not exchange.complete
        if self._ending or answering:
            self._ignore(len(data))
            return
        if self._in_head:
            if not self._head_bytes:
                self._arm(self._limits.request_seconds, self._late)
            self._head_bytes += len(data)
            data = _without_upgrade(data)
        else:
            self._raw_bytes += len(data)
        try:
            self._parser.feed_data(data)
            self._check_sizes()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refusal):
                raise
            self._refuse(cause)
        except httptools.HttpParserError:
            self._refuse(_bad("this is not a well-formed HTTP/1.1 request"))
        except Refusal as refusal:
            self._refuse(refusal)

    def _check_sizes(self) -> None:
        if self._in_head and self._head_bytes > self._limits.head_bytes:
            raise self._too_large()
        if self._raw_bytes - self._body_bytes > self._limits.framing_bytes:
            raise _bad(f"more than {self._limits.framing_bytes} bytes of chunk framing")

    def _too_large(self) -> Refusal:
        return Refusal(
            431,
            "headers_too_large",
            f"the headers are over {self._limits.head_bytes} bytes or {self._limits.headers} lines",
        )

    # The parser's side ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._exchange is not None and not self._exchange.complete:
            raise Refusal(PIPELINED, "", "")
        self._exchange = None

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.url_bytes:
            raise Refusal(
                414, "url_too_long", f"the URL is longer than {self._limits.url_bytes} bytes"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
        if len(self._headers) > self._limits.headers:
            raise self._too_large()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if sum(len(n) + len(v) + 4 for n, v in self._headers) > self._limits.head_bytes:
            raise self._too_large()
        self._head_bytes = 0
        self._check_head()
        target, _, query = self._url.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": target.decode("ascii"),
            "raw_path": target,
            "query_string": query,
            "root_path": "",
            "headers": list(self._headers),
            "client": self.transport.get_extra_info("peername"),
            "server": self.transport.get_extra_info("sockname"),
        }
        headers = dict(self._headers)
        self._exchange = Exchange(
            self,
            scope,
            keep_alive=self._parser.should_keep_alive() and scope["http_version"] == "1.1",
            expects_continue=headers.get(b"expect", b"").lower() == b"100-continue",
        )
        self._exchange.start(self._owner.app)

    def _check_head(self) -> None:
        if self._parser.should_upgrade():
            raise _bad("only plain HTTP/1.1 is spoken here: send no Upgrade header")
        if self._parser.get_http_version() not in {"1.0", "1.1"}:
            raise _bad("only HTTP/1.1 is spoken here")
        if not TARGET.fullmatch(self._url):
            raise _bad("the request's target must be a path that begins with /")
        for name, value in self._headers:
            try:
                value.decode("utf-8")
            except UnicodeDecodeError as error:
                shown = name.decode("latin-1")
                raise _bad(f"the header {shown} is not UTF-8") from error
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            raise _bad("exactly one Host header with a name or an address is needed")
        codings = [value for name, value in self._headers if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise _bad("the only Transfer-Encoding understood is chunked")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._exchange is not None:
            self._exchange.feed(body)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            raise _bad(f"more than {self._limits.chunks} chunks")

    def on_message_complete(self) -> None:
        self._disarm()
        if self._exchange is not None:
            self._exchange.feed_end()

    # Ends -----------------------------------------------------------------------------------

    def finished(self, *, keep_alive: bool) -> None:
        """The response is written."""
        if not keep_alive:
            self._end()
            return
        self._reset()
        self._arm(self._limits.idle_seconds, self._end)

    @property
    def idle(self) -> bool:
        """No byte of a request is here, no response under way."""
        answering = self._exchange is not None and not self._exchange.complete
        return not (answering or self._head_bytes or self._ending)

    def shut(self) -> None:
        """Close now if idle, else after the response that is under way."""
        if self._exchange is None or self._exchange.complete:
            self._end()
        else:
            self._exchange.keep_alive = False

    def abort(self) -> None:
        """Close at once; a response under way is cut off."""
        self.transport.abort()

    def _ignore(self, size: int) -> None:
        """Bytes that nobody asked for; reading on is how a disconnect is noticed."""
        self._stray += size
        if self._exchange is not None:
            self._exchange.keep_alive = False
        if self._stray > STRAY_LIMIT:
            self.transport.abort()

    def _late(self) -> None:
        self._timer = None
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.time_out()
        elif self._head_bytes:
            seconds = self._limits.request_seconds
            message = f"the request's headers did not arrive within {seconds:g} seconds"
            self._refuse(Refusal(408, "request_timeout", message))
        else:
            self._end()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is not a request, and end."""
        exchange = self._exchange
        if exchange is not None and not exchange.complete:
            exchange.keep_alive = False
            if refusal.status == PIPELINED:
                return
            exchange.abandon()
        if self.transport.is_closing():
            return
        kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
        body = msgspec.json.encode({"error": error})
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINES[refusal.status] + head % len(body) + body)
        self._end()

    def _end(self) -> None:
        """Send what is written, then close.

        Closing with unread input would reset the connection, and the client could lose the
        answer; so our side is closed first and the rest of its input is read for a moment.
        """
        if self._ending or self.transport.is_closing():
            return
        self._ending = True
        self._disarm()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self._arm(LINGER_SECONDS, self.transport.close)
        if self._write_timer is None:
            self._write_timer = self._loop.call_later(
                self._limits.write_seconds, self.transport.abort
            )

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
