"""A server in a thread around a Runtime that says what the test wants. For HTTP, not for models."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mainspring.app import App
from mainspring.config import load_config
from mainspring.errors import MainspringError
from mainspring.gateway.models import Source
from mainspring.types import Chunk, EngineStats, Finish, ModelInfo, Request, Timings, Usage

WAIT = 10.0


@dataclass
class Script:
    """What the Runtime does, and what the test sees of it."""

    texts: tuple[str, ...] = ("Hel", "lo")
    endless: bool = False
    hold: bool = False
    """Stay before the first Chunk until `release`."""
    error: MainspringError | Exception | None = None
    error_after: int = 0
    load_error: MainspringError | None = None
    unhealthy: str | None = None
    requests: list[Request] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop | None = None
    gate: asyncio.Event | None = None

    def release(self) -> None:
        assert self.loop and self.gate
        self.loop.call_soon_threadsafe(self.gate.set)


class ScriptedRuntime:
    restarts = 0

    def __init__(self, source: Source, script: Script) -> None:
        self.script = script
        self.running = 0
        self.info = ModelInfo(
            name=source.name,
            family="scripted",
            parameters=1,
            format="bf16",
            context=100,
            vocabulary=10,
            weight_bytes=1,
            kv_bytes=1,
            max_running=1,
            created=1,
        )

    async def start(self) -> None:
        self.script.loop = asyncio.get_running_loop()
        self.script.gate = asyncio.Event()
        if self.script.load_error:
            raise self.script.load_error

    async def stop(self, drain: float = 0.0) -> None:
        self.script.stopped.set()

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, blocks=10, blocks_used=5)

    def unhealthy(self) -> str | None:
        return self.script.unhealthy

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        script = self.script
        script.requests.append(request)
        script.entered.set()
        self.running += 1
        try:
            if script.hold:
                assert script.gate
                await script.gate.wait()
            for number, text in enumerate(script.texts):
                if script.error and number == script.error_after:
                    raise script.error
                yield Chunk(text=text)
            while script.endless:
                await asyncio.sleep(0)
                yield Chunk(text="x" * 1000)
            if script.error:
                raise script.error
            yield Chunk(finish=Finish.STOP, stop_reason=None)
            yield Chunk(usage=Usage(prompt=3, output=len(script.texts)), timings=Timings(total=0.5))
        finally:
            self.running -= 1
            script.closed.set()


@dataclass
class Running:
    port: int
    script: Script
    app: App

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def raw(self, data: bytes) -> bytes:
        """Everything the server sends until it closes."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        fields = {"Host": "localhost", "Connection": "close", **(headers or {})}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            fields = {"Content-Type": "application/json", **fields}
            fields.setdefault("Content-Length", str(len(data)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return Reply.of(self.raw(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data))

    def chat(self, **fields: Any) -> Reply:
        return self.call("POST", "/v1/chat/completions", chat_body(**fields))


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Reply:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = dechunked(body)
        return cls(int(first.split()[1]), headers, body)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def dechunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        out += data[:length]
        data = data[length + 2 :]
    return out


def read_all(client: socket.socket) -> bytes:
    out = b""
    while True:
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            return out
        if not data:
            return out
        out += data


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


@contextmanager
def running(directory: Path, script: Script | None = None, **settings: Any) -> Iterator[Running]:
    """A server on a free port of loopback, up and ready; stopped at the end."""
    script = script or Script()
    (directory / "config.json").write_text("{}")
    config = load_config(
        {"port": 0, "models": [f"m={directory}"], "home": str(directory), **settings}, environ={}
    )
    app = App(config, lambda source: ScriptedRuntime(source, script))
    ready = threading.Event()
    failures: list[BaseException] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await app.run(lambda _: ready.set())

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed to the test below
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=body)
    thread.start()
    assert ready.wait(WAIT)
    try:
        if failures:
            raise failures[0]
        port = int(app.listener.address.rpartition(":")[2])
        yield Running(port, script, app)
    finally:
        with suppress(RuntimeError):  # its loop has ended already
            loops[0].call_soon_threadsafe(app.stop)
            loops[0].call_soon_threadsafe(app.stop)
        thread.join(WAIT)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
