"""One Worker process and the socket to it, as the event loop sees them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mainspring.buffered import READ, Buffered
from mainspring.runtimes.protocol import (
    Beat,
    Failed,
    Frames,
    FromWorker,
    ProtocolError,
    Ready,
    Step,
    frame,
)

__all__ = ["Link", "environment"]

SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
STDERR = 2


class Link(Buffered):
    """Made by `spawn`. `take` gets every message of the Worker until the link has ended."""

    def __init__(self, take: Callable[[Link, Any], None]) -> None:
        super().__init__(bytearray(READ))
        self.ready = False
        self.failure: Failed | None = None
        self.busy = False
        self.heard = self.advanced = time.monotonic()
        """when the last message came; when the Worker last moved on or had nothing to do"""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """why the Worker's end of the socket is closed"""
        self._take = take
        self._frames = Frames(FromWorker)
        self._progress = 0
        self._ended = False
        self._why = ""
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], take: Callable[[Link, Any], None]) -> Link:
        """Start `command FD` with one end of a socket pair as its FD. Raises OSError."""
        link = cls(take)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                link._process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=STDERR,
                    env=environment(os.environ),
                )
            except BaseException:
                ours.close()
                raise
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        return link

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def send(self, message: Any) -> None:
        """Queue a message; a link that has ended takes none."""
        if self._transport and not self._ended:
            self._transport.write(frame(message))

    def excuse(self) -> None:
        """Start the clocks again: nobody was listening."""
        self.heard = self.advanced = time.monotonic()

    async def end(self, grace: float) -> str:
        """Kill the process unless it exits within `grace` seconds; say how it ended."""
        assert self._process is not None
        self._ended = True
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        if self._transport:
            self._transport.abort()
        return self._why or _ending(self._process.returncode)

    # Its protocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            messages = self._frames.feed(data)
        except ProtocolError as error:
            self._why = str(error)
            self._close()
            return
        for message in messages:
            self._note(message)
            self._take(self, message)

    def connection_lost(self, error: Exception | None) -> None:
        self._close()

    def _close(self) -> None:
        self._ended = True
        if not self.closed.done():
            self.closed.set_result(self._why)

    def _note(self, message: Any) -> None:
        self.heard = time.monotonic()
        if isinstance(message, Step | Beat):
            if message.progress != self._progress or not message.busy:
                self.advanced = self.heard
            self._progress, self.busy = message.progress, message.busy
        elif isinstance(message, Ready):
            self.ready = True
            self.advanced = self.heard
        elif isinstance(message, Failed):
            self.failure = message


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: ours without secrets, and where this package is found."""
    kept = {
        name: value
        for name, value in ours.items()
        if not any(word in name.upper() for word in SECRETS)
    }
    package = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (package, ours.get("PYTHONPATH", ""))))
    return kept
