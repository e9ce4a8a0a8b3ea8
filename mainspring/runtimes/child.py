"""The outside of a process that does what a foreign text asks for (`mainspring.runtimes.confined`).

What it may use is bounded inside; how long it may take is bounded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from mainspring.buffered import READ, Buffered

__all__ = ["Child", "ChildLate", "ChildLost"]

HEADER = struct.Struct(">I")
REPLY_LIMIT = 256 << 20
STARVED_SECONDS = 2.0
"""wall time allowed while the process itself has hardly been given the processor"""


class ChildLost(Exception):
    """The process ended: killed from outside, or by its limits."""


class ChildLate(Exception):
    """The process took too long and was killed."""


class Child:
    """Runs a script that answers frames, one at a time. It can be spawned again after any end."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self._process: asyncio.subprocess.Process | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def spawn(self) -> None:
        """Start the process; an earlier one must have been killed."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-s",
                    str(self._script),
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env={
                        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                        "TZ": os.environ.get("TZ", ""),
                    },
                )
            self._streams = await _streams(ours)
        except BaseException:
            ours.close()
            raise

    async def ask(self, asked: Any, seconds: float) -> bytes:
        """One exchange. The process is killed when it is late, or when we are cancelled in it.

        Raises ChildLost or ChildLate.
        """
        assert self._streams is not None
        reader, writer = self._streams
        body = msgspec.json.encode(asked)
        reply = asyncio.ensure_future(_read_reply(reader))
        done = False
        try:
            writer.write(HEADER.pack(len(body)) + body)
            done = await self._in_time(reply, seconds)
            if done:
                return reply.result()
        except (asyncio.IncompleteReadError, OSError) as error:
            done = False
            raise ChildLost from error
        finally:
            reply.cancel()
            if not done:
                await self.kill()
        raise ChildLate

    async def _in_time(self, reply: asyncio.Future[bytes], seconds: float) -> bool:
        began, used = time.monotonic(), self._processor_seconds()
        while not reply.done():
            await asyncio.wait([reply], timeout=seconds)
            wall, processor = time.monotonic() - began, self._processor_seconds() - used
            # On a machine with more work than processors, the wall clock alone would blame the
            # child for its neighbours.
            if not reply.done() and (processor > seconds / 2 or wall > STARVED_SECONDS + seconds):
                return False
        return True

    def _processor_seconds(self) -> float:
        """Processor time of the process so far; where unknown, the wall clock."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, AttributeError):
            return time.monotonic()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    async def kill(self) -> None:
        process, streams = self._process, self._streams
        self._process = self._streams = None
        if streams:
            streams[1].close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Reading(asyncio.StreamReaderProtocol, Buffered):
    """What fills a StreamReader."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        asyncio.StreamReaderProtocol.__init__(self, reader)
        Buffered.__init__(self, bytearray(READ))


async def _streams(ours: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = _Reading(reader)
    transport, _ = await loop.create_unix_connection(lambda: protocol, sock=ours)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if size > REPLY_LIMIT:
        raise OSError("the child's reply is too large")
    return await reader.readexactly(size)
