"""A model in this process, without a server.

from mainspring import LLM

with LLM("mainspring-guide") as llm:
    print(llm.chat([{"role": "user", "content": "how do I add an API key?"}]).text)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from mainspring.config import ModelConfig, load_config, wrong_setting
from mainspring.engine.adapter import Adapter
from mainspring.errors import BadRequest
from mainspring.registry import resolve
from mainspring.registry.generation import sampling_defaults
from mainspring.runtimes.choice import Choice
from mainspring.runtimes.grammars import Grammars
from mainspring.runtimes.loading import load
from mainspring.runtimes.prompt import Prompt, Prompts
from mainspring.runtimes.protocol import Vocabulary, error_from
from mainspring.runtimes.template import ChatTemplate, read_template
from mainspring.runtimes.tokenizer import Tokenizer
from mainspring.types import Chunk, EngineStats, Finish, Grammar, Message, Sampling, Token, Usage

if TYPE_CHECKING:
    from mainspring.runtimes.matcher import GrammarMatcher, Matchers

__all__ = ["LLM", "Result"]

log = logging.getLogger("mainspring.offline")

Turn = Message | Mapping[str, Any]


class Result(Struct, frozen=True, kw_only=True):
    """A finished answer."""

    text: str
    finish: Finish
    stop_reason: str | int | None
    """the stop string or stop token id that ended it"""
    usage: Usage
    tokens: tuple[Token, ...] = ()
    """with `Sampling.logprobs`"""
    prompt_tokens: tuple[Token, ...] = ()
    """with `Sampling.prompt_logprobs`"""


class LLM:
    """A model and its Engine. For one thread; `close` (or `with`) frees its helper process.

    `model` is a name of `mainspring list` or the directory of a checkpoint; the settings are those
    of `mainspring.config.ModelConfig`. `adapters` are directories of LoRA adapters by name, for the
    calls that name one. Raises ModelNotFound, ModelError, InsufficientMemory, or
    BadRequest for a setting out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        **settings: Any,
    ) -> None:
        try:
            config = msgspec.convert(settings, ModelConfig)
        except msgspec.ValidationError as error:
            raise wrong_setting(error) from error
        name, path = _locate(model)
        self.defaults = Sampling(**sampling_defaults(path))
        """How the checkpoint likes to be sampled; taken where a call brings no `sampling`."""
        loaded = load(path, config, Path(load_config().home))
        if loaded.warning:
            log.warning("model %s: %s", name, loaded.warning)
        self._engine = loaded.engine
        self._adapters = {
            name: loaded.adapters.load(name, Path(place).expanduser())
            for name, place in (adapters or {}).items()
        }
        self._at_once = config.max_running  # more wait here: the Engine's queue bounds nobody
        self._prompts = Prompts(name, Tokenizer(path), loaded.context, loaded.shape.vocabulary)
        self._template = ChatTemplate(read_template(path))
        self._eos = loaded.shape.eos
        self._size = loaded.shape.vocabulary
        self._grammars = Grammars(self._vocabulary)
        self._matchers: Matchers | None = None
        # A loop of its own, so that this works where a loop is running already (notebooks).
        self._loop = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mainspring-template")
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> list[Result]:
        """Complete the prompts, texts or token ids, together; the results are in their order.

        Prompt i samples with the seed `sampling.seed + i`. Every completion is held to `grammar`.
        Raises ContextLength, GrammarError or BadRequest, which names the prompt, before any is
        computed.
        """
        sampling = sampling or self.defaults
        held = self._compiled(grammar)
        texts = [prompts] if isinstance(prompts, str) else prompts
        choices = [
            self._completion(index, prompt, sampling, stop, held)
            for index, prompt in enumerate(texts)
        ]
        chunks: list[list[Chunk]] = [[] for _ in choices]
        for chunk in self._run(choices, self._adapter(adapter)):
            chunks[chunk.index].append(chunk)
        return [_result(*pair) for pair in zip(choices, chunks, strict=True)]

    def chat(
        self,
        messages: Sequence[Turn],
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        variables: Mapping[str, Any] | None = None,
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> Result:
        """Answer a conversation; `variables` are for the chat template."""
        held = self._compiled(grammar)
        choice = self._chat_choice(messages, sampling, stop, variables, held)
        return _result(choice, list(self._run([choice], self._adapter(adapter))))

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Turn],
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> Iterator[str]:
        """The text of one answer as it comes, for a text, token ids or messages.

        Closing the iterator ends the work.
        """
        held = self._compiled(grammar)
        turns = [item for item in prompt if isinstance(item, Message | Mapping)]
        if turns:
            choice = self._chat_choice(turns, sampling, stop, None, held)
        else:
            ids = prompt if isinstance(prompt, str) else [i for i in prompt if isinstance(i, int)]
            made = self._prompts.complete(ids, echo=False)
            choice = self._choice(0, made, sampling or self.defaults, stop, held, continues=True)
        return (chunk.text for chunk in self._run([choice], self._adapter(adapter)) if chunk.text)

    def stats(self) -> EngineStats:
        """The Engine's numbers."""
        return self._engine.stats()

    def close(self) -> None:
        """End the process that renders chat templates; the LLM is of no more use."""
        self._thread.submit(self._end_loop).result()
        self._thread.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _end_loop(self) -> None:
        self._loop.run(self._template.stop())
        self._loop.run(self._grammars.stop())
        self._loop.close()

    def _compiled(self, grammar: Grammar | None) -> str:
        """What holds a Choice; empty for none. Raises GrammarError."""
        if grammar is None:
            return ""
        return self._thread.submit(lambda: self._loop.run(self._grammars.compile(grammar))).result()

    async def _vocabulary(self) -> Vocabulary:
        return self._prompts.tokenizer.vocabulary(self._size, self._eos)

    def _matcher(self, grammar: str) -> GrammarMatcher | None:
        if not grammar:
            return None
        if self._matchers is None:
            from mainspring.runtimes.matcher import Matchers

            vocabulary = self._prompts.tokenizer.vocabulary(self._size, self._eos)
            self._matchers = Matchers(vocabulary)
        return self._matchers.make(grammar)

    def _chat_choice(
        self,
        messages: Sequence[Turn],
        sampling: Sampling | None,
        stop: Sequence[str],
        variables: Mapping[str, Any] | None,
        grammar: str,
    ) -> Choice:
        guarded = self._prompts.guard([_message(turn) for turn in messages], variables or {})
        rendering = self._thread.submit(lambda: self._loop.run(self._template.render(guarded)))
        prompt = self._prompts.chat(rendering.result(), guarded.mark)
        return self._choice(0, prompt, sampling or self.defaults, stop, grammar, continues=False)

    def _completion(
        self,
        index: int,
        prompt: str | Sequence[int],
        sampling: Sampling,
        stop: Sequence[str],
        grammar: str,
    ) -> Choice:
        try:
            made = self._prompts.complete(
                prompt if isinstance(prompt, str) else _ids(prompt), echo=False
            )
            return self._choice(index, made, sampling, stop, grammar, continues=True)
        except BadRequest as error:
            raise type(error)(f"prompts[{index}]: {error.message}", param=error.param) from error

    def _choice(
        self,
        index: int,
        prompt: Prompt,
        sampling: Sampling,
        stop: Sequence[str],
        grammar: str,
        *,
        continues: bool,
    ) -> Choice:
        self._prompts.check(prompt, sampling)
        seeded = msgspec.structs.replace(sampling, seed=sampling.seed + index)
        return Choice(
            index,
            self._prompts.tokenizer,
            prompt,
            seeded,
            stop=stop,
            continues=continues,
            grammar=grammar,
        )

    def _adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise BadRequest(f"no adapter {name[:100]!r}; known: {known}", param="adapter")
        return self._adapters[name]

    def _run(self, choices: Sequence[Choice], adapter: Adapter | None) -> Iterator[Chunk]:
        """Compute the choices together. Ends what is left when the iterator is closed."""
        waiting = list(reversed(choices))
        running: dict[str, Choice] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    choice = waiting.pop()
                    id = str(next(self._numbers))
                    matcher = self._matcher(choice.grammar)
                    self._engine.add(
                        id, choice.prompt, choice.sampling, matcher=matcher, adapter=adapter
                    )
                    running[id] = choice
                for output in self._engine.step():
                    choice = running[output.id]
                    if output.error is not None:
                        del running[output.id]
                        raise error_from(*output.error)
                    chunk = choice.take(output)
                    if chunk is not None and chunk.finish is not None:
                        del running[output.id]
                        self._engine.abort(output.id)
                    if chunk is not None:
                        yield chunk
        finally:
            for id in running:
                self._engine.abort(id)


def _locate(model: str | Path) -> tuple[str, Path]:
    path = Path(model).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path.resolve().name, path
    found = resolve(str(model), Path(load_config().home).expanduser())
    return found.name, found.path


def _ids(tokens: Sequence[int]) -> list[int]:
    """Integers of any kind, numpy's too."""
    try:
        return [operator.index(token) for token in tokens]
    except TypeError as error:
        raise BadRequest(f"token ids must be integers: {error}", param="prompt") from error


def _message(turn: Turn) -> Message:
    if isinstance(turn, Message):
        return turn
    try:
        return msgspec.convert(dict(turn), Message)
    except msgspec.ValidationError as error:
        raise BadRequest(f"message: {error}", param="messages") from error


def _result(choice: Choice, chunks: Sequence[Chunk]) -> Result:
    last = chunks[-1]
    assert last.finish is not None
    return Result(
        text="".join(chunk.text for chunk in chunks),
        finish=last.finish,
        stop_reason=last.stop_reason,
        usage=Usage(prompt=len(choice.prompt), cached=choice.cached, output=choice.output),
        tokens=tuple(token for chunk in chunks for token in chunk.tokens),
        prompt_tokens=chunks[0].prompt_tokens,
    )
