"""Reading a socket into a buffer that is used again for every read."""

from __future__ import annotations

import asyncio

__all__ = ["READ", "Buffered"]

READ = 64 << 10
"""bytes read at a time at most"""


class Buffered(asyncio.BufferedProtocol):
    """A protocol whose `data_received` gets what came, as that of an asyncio.Protocol does.

    For a plain Protocol asyncio allocates 256 KiB at each read and gives nearly all of it back. The
    few bytes that are kept lie where such a room was, so that the next one needs another place:
    under mixed requests the heap of a server grew by 3 MB in 50,000, all of that free.

    Protocols of one event loop may share `room`: it is filled and emptied in one go.
    """

    def __init__(self, room: bytearray) -> None:
        self._room = room

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        with memoryview(self._room) as room:
            data = bytes(room[:nbytes])
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError
