"""Grammars: compiled in a process that can be killed, before a request is accepted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from mainspring.errors import GrammarError
from mainspring.runtimes.child import Child, ChildLate, ChildLost
from mainspring.runtimes.protocol import Vocabulary
from mainspring.types import Grammar

__all__ = ["Grammars"]

COMPILER = Path(__file__).with_name("compiler.py")
COMPILE_SECONDS = 2.0
STARTING_SECONDS = 10.0
TEXT_LIMIT = 1 << 20
"""characters of a grammar"""
KEPT, KEPT_CHARACTERS = 1024, 16 << 20
"""compiled grammars, or why they are none, and the characters of them together"""


class Reply(Struct):
    text: str = ""
    error: str = ""


class Grammars:
    """Compiles one model's grammars, for any number of requests at once, and keeps the latest.

    The process starts with the first grammar; `vocabulary` gives what it needs to know.
    """

    def __init__(self, vocabulary: Callable[[], Awaitable[Vocabulary]]) -> None:
        self._vocabulary = vocabulary
        self._child = Child(COMPILER)
        self._lock = asyncio.Lock()
        self._kept: OrderedDict[tuple[str, str, bool], Reply] = OrderedDict()

    @property
    def pid(self) -> int | None:
        """The compiling process, while there is one."""
        return self._child.pid

    async def compile(self, grammar: Grammar) -> str:
        """What `Matchers.make` takes. Raises GrammarError naming the field, and why."""
        if len(grammar.text) > TEXT_LIMIT:
            raise _error(
                grammar, f"{len(grammar.text)} characters of grammar; the limit is {TEXT_LIMIT}"
            )
        key = (grammar.kind, grammar.text, grammar.strict)
        async with self._lock:
            reply = self._kept.get(key)
            if reply is None:
                reply = await self._compile(grammar)
                self._keep(key, reply)
            self._kept.move_to_end(key)
        if reply.error:
            raise _error(grammar, reply.error)
        return reply.text

    async def stop(self) -> None:
        await self._child.kill()

    async def _compile(self, grammar: Grammar) -> Reply:
        asked = {"kind": grammar.kind, "text": grammar.text, "strict": grammar.strict}
        try:
            await self._ensure()
            answer = await self._child.ask(asked, COMPILE_SECONDS)
        except (ChildLate, ChildLost) as error:
            raise _error(
                grammar,
                f"it takes more than {COMPILE_SECONDS:g} s or too much memory to compile; make it "
                "smaller",
            ) from error
        return msgspec.json.decode(answer, type=Reply)

    async def _ensure(self) -> None:
        if self._child.running:
            return
        vocabulary = await self._vocabulary()
        asked = {
            "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
            "special": vocabulary.special,
            "eos": vocabulary.eos,
        }
        await self._child.kill()
        await self._child.spawn()
        await self._child.ask(asked, STARTING_SECONDS)

    def _keep(self, key: tuple[str, str, bool], reply: Reply) -> None:
        self._kept[key] = reply
        while len(self._kept) > KEPT or self._characters() > KEPT_CHARACTERS:
            self._kept.popitem(last=False)

    def _characters(self) -> int:
        return sum(len(text) + len(reply.text) for (_, text, _), reply in self._kept.items())


def _error(grammar: Grammar, why: str) -> GrammarError:
    return GrammarError(f"{grammar.field}: {why}", param=grammar.field)
