"""What the server and a Worker say to each other, and how it is framed.

A frame is a 4-byte big-endian length and that many bytes of MessagePack: one tagged struct of a
closed set, checked field by field while decoding. Nothing is ever revived into an object of the
sender's choice. The channel is a socket pair that the Worker inherits: it has no name and no
address, so nobody else can connect to it.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from mainspring.config import HOME, ModelConfig
from mainspring.errors import (
    BadRequest,
    ContextLength,
    GrammarError,
    InsufficientMemory,
    InternalError,
    MainspringError,
    ModelError,
    NumericalError,
    Overloaded,
    UnknownArchitecture,
)
from mainspring.types import EngineStats, Event, Finish, Sampling, TokenTime

__all__ = [
    "FRAME_LIMIT",
    "Adapt",
    "Adapted",
    "Add",
    "Beat",
    "Cancel",
    "DropAdapter",
    "Failed",
    "Frames",
    "FromWorker",
    "Load",
    "Loading",
    "Output",
    "ProtocolError",
    "Ready",
    "Rejected",
    "Shutdown",
    "Step",
    "ToWorker",
    "TokenLogprob",
    "Vocabulary",
    "error_from",
    "frame",
]

FRAME_LIMIT = 128 << 20
"""bytes; prompt log-probabilities of a 128k context with 20 alternatives fit"""
HEADER = struct.Struct(">I")

T = TypeVar("T")


class ProtocolError(Exception):
    """The other side sent something that is no message."""


# Server to Worker ---------------------------------------------------------------------------------


class Load(Struct, frozen=True, tag="load"):
    """The first message: which checkpoint, and how to run it."""

    path: str
    config: ModelConfig
    home: str = HOME


class Vocabulary(Struct, frozen=True, tag="vocabulary"):
    """How every token of the model is spelled; comes before the first `Add` with a grammar."""

    tokens: tuple[bytes, ...]
    """as many as the model has; empty: a grammar never takes it"""
    special: tuple[int, ...]
    """ids that stand for no text; their spelling is their name"""
    eos: tuple[int, ...]
    """ids that end a text"""


class Add(Struct, frozen=True, tag="add"):
    id: str
    tokens: tuple[int, ...]
    sampling: Sampling
    salt: bytes
    generated: tuple[int, ...] = ()
    """Output tokens that the server already has from a Worker that is gone."""
    grammar: str = ""
    """that holds the output, compiled"""
    adapter: str = ""
    """id of an adapter that was loaded before; empty: none"""


class Adapt(Struct, frozen=True, tag="adapt"):
    """Load the adapter of a directory."""

    id: str
    path: str
    digest: bytes = b""
    """what it had in a Worker that is gone; another one is refused"""


class DropAdapter(Struct, frozen=True, tag="drop_adapter"):
    """No more sequences will use it."""

    id: str


class Cancel(Struct, frozen=True, tag="cancel"):
    id: str


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """End; nothing in flight is finished."""


ToWorker = Load | Vocabulary | Add | Adapt | DropAdapter | Cancel | Shutdown


# Worker to server ---------------------------------------------------------------------------------


class Loading(Struct, frozen=True, tag="loading"):
    """Bytes of weights loaded so far."""

    done: int
    total: int


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded."""

    family: str
    parameters: int
    format: str
    context: int
    vocabulary: int
    eos: tuple[int, ...]
    weight_bytes: int
    kv_bytes: int
    prepared: bool = False
    """its prepared file was read"""
    warning: str = ""


class Failed(Struct, frozen=True, tag="failed"):
    """The model cannot be loaded. The Worker ends."""

    code: str
    message: str
    param: str | None = None
    detail: str = ""


class Rejected(Struct, frozen=True, tag="rejected"):
    """`Add` was refused."""

    id: str
    code: str
    message: str
    param: str | None = None


class Adapted(Struct, frozen=True, tag="adapted"):
    """The answer to `Adapt`: the adapter's digest, or why it is not loaded."""

    id: str
    digest: bytes = b""
    code: str = ""
    message: str = ""
    param: str | None = None


class TokenLogprob(Struct, frozen=True, array_like=True):
    """`mainspring.engine.sequence.TokenLogprob` as it arrives."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Output(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`mainspring.engine.sequence.Output` as it arrives: the same fields, without the Engine.

    The server process reads Outputs; importing the Engine for it would cost numpy.
    """

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    times: tuple[TokenTime, ...] = ()
    finish: Finish | None = None
    complete: bool = False
    stop_reason: int | None = None
    events: tuple[Event, ...] = ()
    cached: int = 0
    error: tuple[str, str] | None = None


class Step(Struct, frozen=True, tag="step"):
    """What one engine step brought."""

    outputs: tuple[Output, ...]
    progress: int
    busy: bool
    stats: EngineStats


class Beat(Struct, frozen=True, tag="beat"):
    """The heartbeat: `progress` grows with each piece of work, `busy` says there is work."""

    progress: int
    busy: bool
    stats: EngineStats | None = None
    """None while the model is loading"""


FromWorker = Loading | Ready | Failed | Rejected | Adapted | Step | Beat


# Framing ------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def frame(message: Any) -> bytes:
    """The message with its length. Raises ProtocolError above FRAME_LIMIT."""
    body = _encoder.encode(message)
    if len(body) > FRAME_LIMIT:
        raise ProtocolError(f"a message of {len(body)} bytes is above the limit of {FRAME_LIMIT}")
    return HEADER.pack(len(body)) + body


class Frames:
    """Bytes in, messages of one kind out."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """The messages that `data` completes. Raises ProtocolError for anything else."""
        buffer = self._buffer
        buffer += data
        messages: list[Any] = []
        at = 0
        while len(buffer) - at >= HEADER.size:
            (size,) = HEADER.unpack_from(buffer, at)
            if size > FRAME_LIMIT:
                raise ProtocolError(f"a frame of {size} bytes is above the limit of {FRAME_LIMIT}")
            end = at + HEADER.size + size
            if len(buffer) < end:
                break
            messages.append(self._decode(bytes(buffer[at + HEADER.size : end])))
            at = end
        if at:
            del buffer[:at]
        return messages

    def _decode(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolError(f"a frame of {len(body)} bytes is no message: {error}") from error


FROM_ENGINE: tuple[type[MainspringError], ...] = (
    BadRequest,
    ContextLength,
    GrammarError,
    InsufficientMemory,
    InternalError,
    ModelError,
    NumericalError,
    UnknownArchitecture,
)


def error_from(code: str, message: str, param: str | None = None) -> MainspringError:
    """The error of that code, as the Worker meant it."""
    for kind in FROM_ENGINE:
        if kind.code == code:
            return kind(message, param=param)
    if code == Overloaded.code:
        return Overloaded(message, retry_after=1.0)
    return InternalError("the engine failed", detail=f"{code}: {message}")
