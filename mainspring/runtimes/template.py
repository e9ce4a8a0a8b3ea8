"""Chat templates: found in the checkpoint, rendered in a process that can be killed.

A request never brings a template of its own. What the checkpoint's template may use is bounded in
`mainspring.runtimes.renderer`; how long it may take is bounded here.
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
from mainspring.errors import BadRequest, ModelError
from mainspring.runtimes.prompt import Guarded

__all__ = [
    "ChatTemplate",
    "TemplateFiles",
    "read_template",
]

RENDER_SECONDS = 0.25
STARVED_SECONDS = 2.0
"""wall time allowed while the process itself has hardly been given the processor"""
STARTING_SECONDS = 4.0
REPLY_LIMIT = 256 << 20
CONFIG_LIMIT = 16 << 20
TEMPLATE_LIMIT = 1 << 20
HEADER = struct.Struct(">I")
RENDERER = Path(__file__).with_name("renderer.py")
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Reply(msgspec.Struct):
    text: str = ""
    kind: str = ""
    error: str = ""


class TemplateFiles(msgspec.Struct, frozen=True):
    """What a checkpoint says about its chat template."""

    source: str | None
    """None: it has none"""
    variables: dict[str, str]
    """bos_token and the like, as text"""


class ProcessLost(BadRequest):
    def __init__(self) -> None:
        super().__init__(
            "the model's chat template used more processor time or memory than it may for these "
            "messages",
            param="messages",
        )


class TooSlow(BadRequest):
    def __init__(self) -> None:
        super().__init__(
            f"the model's chat template took more than {RENDER_SECONDS * 1000:.0f} ms for these "
            "messages",
            param="messages",
        )


class ChatTemplate:
    """A checkpoint's template and the process that renders it, kept warm between requests."""

    def __init__(self, files: TemplateFiles) -> None:
        self._files = files
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and compile the template. Raises ModelError if it is no template."""
        async with self._lock:
            await self._ensure()

    async def stop(self) -> None:
        await self._kill()

    async def render(self, guarded: Guarded) -> str:
        """The prompt for the messages.

        Raises BadRequest with the template's own words, or saying that it took too much time or
        memory; ModelError when the template is at fault whatever the messages are.
        """
        if self._files.source is None:
            raise BadRequest(
                "this model has no chat template; send a prompt to /v1/completions instead",
                param="messages",
            )
        async with self._lock:
            try:
                await self._ensure()
                reply = await self._ask(guarded, RENDER_SECONDS)
            except ProcessLost:
                # Killed from outside, or by its limits: only then does it happen again.
                await self._ensure()
                reply = await self._ask(guarded, RENDER_SECONDS)
        return _text_of(reply)

    async def _ensure(self) -> None:
        if self._process is not None and self._process.returncode is None:
            return
        if self._files.source is None:
            return
        asked = {"source": self._files.source, "variables": self._files.variables}
        try:
            await self._spawn()
            _text_of(await self._ask(asked, STARTING_SECONDS))
        except BadRequest as error:
            await self._kill()
            raise ModelError(error.message) from error
        except BaseException:
            await self._kill()
            raise

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-s",
                    str(RENDERER),
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

    async def _ask(self, asked: Any, seconds: float) -> Reply:
        """One exchange. The process is killed when it is late, or when we are cancelled in it."""
        assert self._streams is not None
        reader, writer = self._streams
        body = msgspec.json.encode(asked)
        reply = asyncio.ensure_future(_read_reply(reader))
        done = False
        try:
            writer.write(HEADER.pack(len(body)) + body)
            done = await self._in_time(reply, seconds)
            if done:
                return msgspec.json.decode(reply.result(), type=Reply)
        except (asyncio.IncompleteReadError, OSError) as error:
            done = False
            raise ProcessLost from error
        finally:
            reply.cancel()
            if not done:
                await self._kill()
        raise TooSlow

    async def _in_time(self, reply: asyncio.Future[bytes], seconds: float) -> bool:
        began, used = time.monotonic(), self._processor_seconds()
        while not reply.done():
            await asyncio.wait([reply], timeout=seconds)
            wall, processor = time.monotonic() - began, self._processor_seconds() - used
            # On a machine with more work than processors, the wall clock alone would blame the
            # template for its neighbours.
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

    async def _kill(self) -> None:
        process, streams = self._process, self._streams
        self._process = self._streams = None
        if streams:
            streams[1].close()
        if process is not None:
            self.restarts += 1
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
        raise OSError("the renderer's reply is too large")
    return await reader.readexactly(size)


def _text_of(reply: Reply) -> str:
    if reply.kind == "template":
        raise ModelError(reply.error)
    if reply.kind:
        raise BadRequest(reply.error, param="messages")
    return reply.text


def read_template(path: Path) -> TemplateFiles:
    """Find the checkpoint's template and its special tokens. Raises ModelError."""
    config = _json(path / "tokenizer_config.json")
    tokens = {**_json(path / "special_tokens_map.json"), **config}
    variables = {name: text for name in TOKENS if (text := _token_text(tokens.get(name)))}
    file = path / "chat_template.jinja"
    source: Any = config.get("chat_template")
    if file.exists():
        source = _text(file, TEMPLATE_LIMIT)
    if isinstance(source, list):
        named = {
            part.get("name"): part.get("template") for part in source if isinstance(part, dict)
        }
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelError(
            "tokenizer_config.json: chat_template is neither a text nor a list of them"
        )
    if source is not None and len(source) > TEMPLATE_LIMIT:
        raise ModelError(f"the chat template is larger than {TEMPLATE_LIMIT >> 10} KiB")
    return TemplateFiles(source, variables)


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = msgspec.json.decode(_text(file, CONFIG_LIMIT))
    except msgspec.DecodeError as error:
        raise ModelError(f"{file.name}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file.name} does not hold an object")
    return found


def _text(file: Path, limit: int) -> str:
    try:
        if file.stat().st_size > limit:
            raise ModelError(f"{file.name} is larger than {limit >> 10} KiB")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{file.name} is not UTF-8") from error
