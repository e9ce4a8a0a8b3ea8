"""`mainspring run`."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mainspring.cli.command import command
from mainspring.cli.conversation import Conversation
from mainspring.cli.settings import client_options, config_from, setting_options
from mainspring.cli.talk import Options, ServerTalk, Talk, serving
from mainspring.config import Config, ModelConfig
from mainspring.errors import BadRequest
from mainspring.registry import resolve

__all__ = ["run"]

MODEL_FLAGS = ("quantize", "context", "kv_memory", "threads", "isa")
PIPED_LIMIT = 8 << 20


@command(
    "run",
    params=[
        *setting_options(Config, "home"),
        *client_options(),
        *setting_options(ModelConfig, *MODEL_FLAGS),
    ],
    examples="""
    mainspring run mainspring-guide
    mainspring run mainspring-guide "how do I add an API key?"
    mainspring run chat "Summarize this:" < notes.txt
    mainspring run ./checkpoint --quantize int8 --temperature 0 --stats
    """,
)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", default="", metavar="TEXT", help="System message before the talk.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling.")
@click.option("--max-tokens", type=click.IntRange(1), help="Output tokens of an answer at most.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same seed, the same answer.")
@click.option("--stats", is_flag=True, help="Print tokens and times after each answer.")
def run(
    model: str,
    prompt: str | None,
    system: str,
    temperature: float | None,
    top_p: float | None,
    max_tokens: int | None,
    seed: int | None,
    stats: bool,
    **flags: Any,
) -> None:
    """Talk to MODEL in the terminal, or answer PROMPT and end.

    When a server at --host and --port already serves MODEL, it answers, with a key from
    MAINSPRING_API_KEY if it wants one. Otherwise, and whenever a flag says how to load the model
    (--quantize, --context, ...), it is loaded in this process. Text that is piped in is the prompt,
    or comes after PROMPT.
    """
    config = config_from(flags)
    question = question_of(prompt)
    local = any(flags[name] is not None for name in MODEL_FLAGS)
    options = Options(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    with contextlib.closing(talk_of(model, config, local=local)) as talk:
        conversation = Conversation(talk, options, system=system, stats=stats)
        if question is not None:
            if not conversation.ask(question):
                raise click.Abort
            return
        click.echo(f"{model}, {talk.where}. /help for help, /bye to leave.")
        conversation.repl(line_reader())


def question_of(prompt: str | None) -> str | None:
    """The prompt with what is piped in; None when a person should be asked."""
    if not has_pipe():
        question = prompt
    elif prompt is None:
        question = piped()
    else:
        question = f"{prompt}\n\n{piped()}".strip()
    if question is not None and not question.strip():
        raise BadRequest("the prompt is empty: write one after the model's name, or pipe it in")
    return question


def has_pipe() -> bool:
    """Whether standard input is a file or a pipe; a terminal, a socket or /dev/null is not read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def piped() -> str:
    data = sys.stdin.buffer.read(PIPED_LIMIT + 1)
    if len(data) > PIPED_LIMIT:
        raise BadRequest(f"the text piped in is larger than {PIPED_LIMIT >> 20} MiB: cut it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the text piped in is not UTF-8 ({error.reason}): convert it") from error


def talk_of(model: str, config: Config, *, local: bool) -> Talk:
    client = None if local else serving(config, model)
    if client is not None:
        return ServerTalk(client, model)
    found = resolve(model, Path(config.home))
    from mainspring.cli.local import LocalTalk

    return LocalTalk(found, config.defaults)


def line_reader() -> Callable[[str], str]:
    """`input`, with arrow keys and the session's lines where the platform has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it is what gives `input` its editing
    return input
