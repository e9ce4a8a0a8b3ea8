"""Questions and answers in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

import click

from mainspring.cli.render import seconds
from mainspring.cli.talk import Options, Piece, Talk
from mainspring.errors import MainspringError
from mainspring.types import Message

__all__ = ["Conversation"]

HELP = '''\
  /clear   forget the conversation
  /bye     leave (or ctrl-d)
  /help    this
  ctrl-c   cancels the answer that is being written
  """      begins and ends a question of several lines'''
QUOTE = '"""'
CONTROLS = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}
"""A model's text must not steer the terminal."""


class Conversation:
    """One talk: a system message if any, then questions and answers, all of which are context."""

    def __init__(
        self, talk: Talk, options: Options, *, system: str = "", stats: bool = False
    ) -> None:
        self.talk, self.options, self.stats = talk, options, stats
        self.start = (Message("system", system),) if system else ()
        self.messages = self.start

    def ask(self, question: str) -> bool:
        """Print the answer as it comes; False when ctrl-c ended it. Raises MainspringError."""
        asked = (*self.messages, Message("user", question))
        said, began, first, numbers = "", time.monotonic(), 0.0, None
        complete = True
        with closing(self.talk.ask(asked, self.options)) as pieces:
            try:
                for piece in pieces:
                    if piece.text:
                        first = first or time.monotonic() - began
                        said += piece.text
                        show(piece.text)
                    else:
                        numbers = piece
            except KeyboardInterrupt:
                complete = False
        if said:
            self.messages = (*asked, Message("assistant", said))
        if not said.endswith("\n"):
            click.echo()
        if self.stats and numbers is not None:
            click.echo(stats_line(numbers, first, time.monotonic() - began), err=True)
        return complete

    def repl(self, read: Callable[[str], str]) -> None:
        """Ask what `read(prompt)` gives until /bye or the end of input."""
        while True:
            try:
                line = read_question(read)
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo("\n/bye or ctrl-d leaves")
                continue
            if line == "/bye":
                return
            if line:
                self.answer(line)

    def answer(self, line: str) -> None:
        """One line of the REPL: a command or a question. Errors are printed, not raised."""
        if line == "/clear":
            self.messages = self.start
            click.echo("forgotten")
        elif line in {"/help", "/?"}:
            click.echo(HELP)
        elif line.startswith("/") and " " not in line and "/" not in line[1:]:
            click.echo(f"there is no {line}: /help lists what there is")
        else:
            try:
                if not self.ask(line):
                    click.echo("(cancelled)", err=True)
            except MainspringError as error:
                hint = (
                    ": /clear forgets the talk" if error.code == "context_length_exceeded" else ""
                )
                click.echo(f"mainspring: {' '.join(error.message.split())}{hint}", err=True)


def read_question(read: Callable[[str], str]) -> str:
    """One line, or the lines between two marks of three quotes."""
    line = read(">>> ").strip()
    if not line.startswith(QUOTE):
        return line
    text = line.removeprefix(QUOTE)
    while QUOTE not in text:
        text += "\n" + read("... ")
    return text.partition(QUOTE)[0].strip()


def show(text: str) -> None:
    if sys.stdout.isatty():
        text = text.translate(CONTROLS)
    sys.stdout.write(text)
    sys.stdout.flush()


def stats_line(numbers: Piece, first: float, total: float) -> str:
    """The answer's numbers; times as the engine measured them, else as seen from here."""
    first, total = numbers.first_token or first, numbers.total or total
    parts = [
        f"prompt {numbers.prompt_tokens} tokens ({numbers.cached_tokens} cached)",
        f"first token {seconds(first)}",
        f"output {numbers.output_tokens} tokens",
    ]
    if numbers.output_tokens > 1 and total > first:
        parts.append(f"{(numbers.output_tokens - 1) / (total - first):.1f} tokens/s")
    return ", ".join([*parts, f"total {seconds(total)}"])
