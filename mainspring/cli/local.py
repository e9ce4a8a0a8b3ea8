"""Answers `mainspring run` with an Engine in this process."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
import msgspec

from mainspring.cli.talk import Options, Piece
from mainspring.config import ModelConfig
from mainspring.registry import ModelPath
from mainspring.runtimes.offline import LLM
from mainspring.types import EngineStats, Message, Sampling

__all__ = ["LocalTalk"]


class LocalTalk:
    """Loads the model at once; raises what `LLM` raises."""

    def __init__(self, model: ModelPath, settings: ModelConfig) -> None:
        # One conversation needs room for one sequence, not for a server's many.
        one = msgspec.structs.replace(settings, max_running=1)
        with waiting(f"loading {model.name}"):
            self.llm = LLM(model.path, **msgspec.structs.asdict(one))

    @property
    def where(self) -> str:
        return "loaded in this process"

    def ask(self, messages: tuple[Message, ...], options: Options) -> Generator[Piece, None, None]:
        before, start, first = self.llm.stats(), time.monotonic(), 0.0
        with held_interrupts() as interrupted:
            # Leaving the loop drops the iterator, which ends the sequence in the Engine.
            for text in self.llm.stream(messages, sampling_of(options, self.llm.defaults)):
                first = first or time.monotonic() - start
                yield Piece(text=text)
                if interrupted():
                    raise KeyboardInterrupt
        yield numbers(before, self.llm.stats(), first, time.monotonic() - start)

    def close(self) -> None:
        self.llm.close()


def sampling_of(options: Options, defaults: Sampling) -> Sampling:
    """What was asked for, with a new seed where none was."""
    given: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(options).items() if value is not None
    }
    return msgspec.structs.replace(defaults, **{"seed": secrets.randbits(63), **given})


def numbers(before: EngineStats, after: EngineStats, first: float, total: float) -> Piece:
    return Piece(
        prompt_tokens=after.prompt_tokens - before.prompt_tokens,
        cached_tokens=after.cached_tokens - before.cached_tokens,
        output_tokens=after.output_tokens - before.output_tokens,
        first_token=first,
        total=total,
    )


@contextmanager
def held_interrupts() -> Iterator[Any]:
    """Ctrl-c is noted and asked for between two steps: an Engine is never stopped within one.

    A second ctrl-c ends the program.
    """
    pressed: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if pressed:
            raise click.Abort
        pressed.append(number)

    old = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, old)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on a terminal, silence otherwise."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
