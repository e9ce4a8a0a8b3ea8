"""Chat templates: found in the checkpoint, rendered in a process that can be killed.

A request never brings a template of its own. What the checkpoint's template may use is bounded in
`mainspring.runtimes.renderer`; how long it may take is bounded here.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import BadRequest, MainspringError, ModelError
from mainspring.runtimes.child import Child, ChildLate, ChildLost
from mainspring.runtimes.forms import Forms, learn_forms
from mainspring.runtimes.prompt import Guarded

__all__ = [
    "ChatTemplate",
    "TemplateFiles",
    "read_template",
]

RENDER_SECONDS = 0.25
STARTING_SECONDS = 4.0
CONFIG_LIMIT = 16 << 20
TEMPLATE_LIMIT = 1 << 20
RENDERER = Path(__file__).with_name("renderer.py")
MARK = "\ue000"
"""that no text of our own holds"""
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
        self._child = Child(RENDERER)
        self._forms: Forms | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def start(self) -> None:
        """Start the process and compile the template. Raises ModelError if it is no template."""
        async with self._lock:
            await self._ensure()

    async def stop(self) -> None:
        await self._child.kill()

    async def forms(self) -> Forms:
        """How the model writes reasoning and tool calls, as far as the template shows."""
        if self._forms is None:
            self._forms = Forms()
            with contextlib.suppress(ProcessLost, TooSlow):  # a template that is fit for little
                if self._files.source is not None:
                    self._forms = await learn_forms(self._try, self._files.source)
        return self._forms

    async def _try(self, messages: list[Any], variables: dict[str, Any]) -> str | None:
        """The rendering of our own messages; None where the template refuses them."""
        try:
            return await self.render(Guarded(messages, variables, MARK))
        except (ProcessLost, TooSlow):
            raise
        except MainspringError:
            return None

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
        if self._child.running or self._files.source is None:
            return
        asked = {"source": self._files.source, "variables": self._files.variables}
        try:
            await self._child.spawn()
            _text_of(await self._ask(asked, STARTING_SECONDS))
        except BadRequest as error:
            await self._child.kill()
            raise ModelError(error.message) from error
        except BaseException:
            await self._child.kill()
            raise

    async def _ask(self, asked: Any, seconds: float) -> Reply:
        try:
            return msgspec.json.decode(await self._child.ask(asked, seconds), type=Reply)
        except ChildLost as error:
            raise ProcessLost from error
        except ChildLate as error:
            raise TooSlow from error


def _text_of(reply: Reply) -> str:
    if reply.kind == "template":
        raise ModelError(reply.error)
    if reply.kind:
        raise BadRequest(reply.error, param="messages")
    return reply.text


def read_template(path: Path) -> TemplateFiles:
    """Find the checkpoint's template and its special tokens. Raises ModelError."""
    if path.suffix == ".gguf":
        from mainspring.runtimes.gguf import gguf_template  # see tokenizer_json

        return _files(*gguf_template(path))
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
    return _files(source, variables)


def _files(source: str | None, variables: dict[str, str]) -> TemplateFiles:
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
