"""The sockets: accepts connections up to a limit and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from mainspring.api.connection import Connection, Limits
from mainspring.api.exchange import Application
from mainspring.buffered import READ
from mainspring.errors import Conflict

__all__ = ["Listener", "bind"]

BACKLOG = 1024
SEND_BUFFER = 64 * 1024
"""Of the kernel, so that what a client does not read piles up nowhere."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Conflict in one line when the address is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    listening.setblocking(False)
    return listening


class Listener:
    """Serves one ASGI application on one socket."""

    def __init__(
        self, app: Application, listening: socket.socket, limits: Limits, *, connections: int
    ) -> None:
        self.app = app
        self.limits = limits
        self.room = bytearray(READ)
        self._listening = listening
        self._room = connections
        self._connections: dict[Connection, None] = {}
        """Oldest first"""
        self._empty = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """http://host:port"""
        host, port = self._listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._connections)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), sock=self._listening, backlog=BACKLOG
        )

    def opened(self, connection: Connection) -> bool:
        if len(self._connections) >= self._room and not self._make_room():
            return False
        self._connections[connection] = None
        self._empty.clear()
        return True

    def closed(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._check_empty()

    def _make_room(self) -> bool:
        """End the oldest connection that waits between requests: an idle crowd keeps nobody out."""
        for connection in self._connections:
            if connection.idle:
                connection.abort()
                del self._connections[connection]
                return True
        return False

    def _check_empty(self) -> None:
        if not self._connections:
            self._empty.set()

    async def stop(self, seconds: float = 1.0) -> None:
        """Accept no more, let responses under way end for `seconds`, then cut them off."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut()
        self._check_empty()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        for connection in list(self._connections):
            connection.abort()
        # Each abort is delivered on the next turn of the loop.
        await asyncio.sleep(0)
