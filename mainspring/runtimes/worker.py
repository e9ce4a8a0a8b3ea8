"""The Worker: one process, one model, one Engine. `python -m mainspring.runtimes.worker FD`.

FD is one end of a socket pair that the process inherited; see `mainspring.runtimes.protocol`. The
main thread drains the inbox, lets the Engine do a step and sends what it brought; a second thread
sends the heartbeat, and ends the process when nobody listens any more. It knows token ids only,
imports neither a tokenizer nor anything of HTTP, and dies with the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.buffered import READ
from mainspring.errors import MainspringError
from mainspring.runtimes.builder import Builder
from mainspring.runtimes.protocol import (
    Adapt,
    Adapted,
    Add,
    Beat,
    Cancel,
    DropAdapter,
    Failed,
    Frames,
    Load,
    Loading,
    ProtocolError,
    Ready,
    Rejected,
    Shutdown,
    Step,
    ToWorker,
    Vocabulary,
    frame,
)
from mainspring.types import EngineStats

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mainspring.engine.engine import Engine
    from mainspring.runtimes.adapters import Adapters
    from mainspring.runtimes.matcher import GrammarMatcher

    Loader = Callable[[Load, Callable[[int, int], None]], tuple[Engine, Adapters, Ready]]

__all__ = ["Channel", "ServerGone", "Worker", "main"]

BEAT_SECONDS = 0.5
BUILD_SECONDS = 0.002
"""between looks at the inbox while there is nothing to do but to build a matcher"""
LOADING_SECONDS = 0.1
EXIT_PROTOCOL, EXIT_FAILED = 3, 4
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


class ServerGone(Exception):
    """The other end of the socket is closed."""


class Channel:
    """The Worker's end of the socket. Both threads send, the main thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._frames = Frames(ToWorker)
        self._room = memoryview(bytearray(READ))
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        data = frame(message)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError as error:
            raise ServerGone from error

    def receive(self, *, wait: bool) -> list[Any]:
        """Messages that have come; with `wait`, at least one read's worth."""
        messages: list[Any] = []
        room = self._room
        while not messages or not wait:
            try:
                size = self._socket.recv_into(room, READ, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except OSError as error:
                raise ServerGone from error
            if not size:
                raise ServerGone
            messages += self._frames.feed(room[:size])
        return messages


class Worker:
    """Runs an Engine for the server at the other end of `channel`.

    `load(message, progress)` gives the Engine, its adapters and what to tell of it.
    """

    def __init__(self, channel: Channel, load: Loader) -> None:
        self._channel = channel
        self._load = load
        self._engine: Engine | None = None
        self._adapters: Adapters | None = None
        self._dropped: list[str] = []
        """ids of adapters to be dropped"""
        self._stats: EngineStats | None = None
        self._builder = Builder()
        self._loads = 0
        self._told = 0.0

    def run(self) -> None:
        """Serve until told to stop. Raises ServerGone, ProtocolError or what `load` raises."""
        (first, *messages) = self._channel.receive(wait=True)
        if not isinstance(first, Load):
            raise ProtocolError("the first message is not `load`")
        engine, self._adapters, ready = self._load(first, self._progress)
        self._stats = engine.stats()
        self._engine = engine
        gc.freeze()  # what is here stays, and looking through it for garbage takes 20 ms
        self._channel.send(ready)
        while self._handle(engine, messages):
            for message, matcher in self._builder.built(0.0 if engine.has_work else BUILD_SECONDS):
                self._add(engine, message, matcher)
            if engine.has_work:
                self._step(engine)
            idle = not engine.has_work and not self._builder.busy
            messages = self._channel.receive(wait=idle)

    def beat(self) -> Beat:
        """What the heartbeat says; its thread reads plain attributes only."""
        engine = self._engine
        if engine is None:
            return Beat(self._loads, True)
        busy = engine.has_work or self._builder.busy
        return Beat(self._moves(engine), busy, self._stats)

    def _progress(self, done: int, total: int) -> None:
        self._loads += 1
        now = time.monotonic()
        if now - self._told >= LOADING_SECONDS:
            self._told = now
            self._channel.send(Loading(done, total))

    def _handle(self, engine: Engine, messages: list[Any]) -> bool:
        """False: the server said to end."""
        cancelled = False
        for message in messages:
            if isinstance(message, Add):
                if message.grammar:
                    self._builder.build(message)
                else:
                    self._add(engine, message, None)
            elif isinstance(message, Cancel):
                cancelled |= self._builder.cancel(message.id) or engine.abort(message.id)
            elif isinstance(message, Vocabulary):
                self._builder.learn(message)
            elif isinstance(message, Adapt):
                self._adapt(engine, message)
            elif isinstance(message, DropAdapter):
                self._dropped.append(message.id)
            elif isinstance(message, Shutdown):
                return False
            else:
                raise ProtocolError("a second `load`")
        self._drop_adapters()
        if cancelled:
            self._stats = engine.stats()
            self._channel.send(self.beat())
        return True

    def _adapt(self, engine: Engine, message: Adapt) -> None:
        """Streams stand still meanwhile; each tensor that is read counts as progress."""
        assert self._adapters is not None
        stats = engine.stats()
        try:
            adapter = self._adapters.load(
                message.id,
                Path(message.path),
                digest=message.digest,
                kv_touched=(stats.blocks_used + stats.blocks_cached) / stats.blocks,
                progress=self._moved,
            )
            answer = Adapted(message.id, adapter.digest)
        except MainspringError as error:
            answer = Adapted(message.id, b"", error.code, error.message, error.param)
        self._channel.send(answer)

    def _drop_adapters(self) -> None:
        """Once no sequence that uses them waits for its grammar any more."""
        if self._adapters is not None and not self._builder.busy:
            for id in self._dropped:
                self._adapters.drop(id)
            self._dropped.clear()

    def _moved(self) -> None:
        self._loads += 1

    def _moves(self, engine: Engine) -> int:
        """Grows with each piece of work."""
        return engine.progress + self._builder.done + self._loads

    def _add(self, engine: Engine, message: Add, matcher: Future[GrammarMatcher] | None) -> None:
        try:
            adapter = None
            if message.adapter and self._adapters is not None:
                adapter = self._adapters.get(message.adapter)
            engine.add(
                message.id,
                message.tokens,
                message.sampling,
                salt=message.salt,
                generated=message.generated,
                matcher=None if matcher is None else matcher.result(),
                adapter=adapter,
            )
        except MainspringError as error:
            self._channel.send(Rejected(message.id, error.code, error.message, error.param))

    def _step(self, engine: Engine) -> None:
        # The Engine's own Output has the fields of the wire's; copying it would gain nothing.
        outputs: tuple[Any, ...] = tuple(engine.step())
        stats = self._stats = engine.stats()
        if outputs:
            self._channel.send(Step(outputs, self._moves(engine), engine.has_work, stats))


def load_engine(
    message: Load, progress: Callable[[int, int], None]
) -> tuple[Engine, Adapters, Ready]:
    """Check the memory, load the model, build its Engine."""
    from mainspring.runtimes.loading import load

    loaded = load(Path(message.path), message.config, Path(message.home), progress=progress)
    shape = loaded.shape
    ready = Ready(
        family=shape.family,
        parameters=shape.parameters,
        format=shape.format,
        context=loaded.context,
        vocabulary=shape.vocabulary,
        eos=shape.eos,
        weight_bytes=loaded.weight_bytes,
        kv_bytes=loaded.kv_bytes,
        prepared=loaded.prepared,
        warning=loaded.warning,
    )
    return loaded.engine, loaded.adapters, ready


def main(load: Loader = load_engine) -> int:
    """Run the Worker of this process; the exit status says why it ended."""
    _restrict()
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    channel = Channel(end)
    worker = Worker(channel, load)
    threading.Thread(target=_beat_for_ever, args=(worker, channel), daemon=True).start()
    try:
        worker.run()
    except ServerGone:
        return 0
    except ProtocolError as error:
        print(f"mainspring worker: ends: {error}", file=sys.stderr)
        return EXIT_PROTOCOL
    except MainspringError as error:
        with contextlib.suppress(ServerGone):
            channel.send(Failed(error.code, error.message, error.param, error.detail))
        return EXIT_FAILED
    return 0


def _beat_for_ever(worker: Worker, channel: Channel) -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        try:
            channel.send(worker.beat())
        except ServerGone:
            os._exit(0)


def _restrict() -> None:
    """Die with the server, gain no privileges.

    Signals to the whole group (ctrl-c, a service manager's stop) are the server's to answer: it
    drains, and needs its Workers for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the process's memory goes at once; nothing of it is worth unwinding
