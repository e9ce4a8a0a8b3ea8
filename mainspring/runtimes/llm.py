"""The runtime of language models: text in, text out, over a supervised Worker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mainspring.config import HOME, ModelConfig
from mainspring.errors import BadRequest, ModelError, Unavailable
from mainspring.registry.generation import sampling_defaults
from mainspring.runtimes.adapted import AdaptedRuntime
from mainspring.runtimes.admission import Admission
from mainspring.runtimes.answer import Answer
from mainspring.runtimes.choice import Choice
from mainspring.runtimes.flight import Placed
from mainspring.runtimes.forms import Forms
from mainspring.runtimes.grammars import Grammars
from mainspring.runtimes.lane import Lane, Stuck
from mainspring.runtimes.prompt import Prompt, Prompts
from mainspring.runtimes.protocol import Ready, Vocabulary
from mainspring.runtimes.supervisor import Supervisor
from mainspring.runtimes.template import ChatTemplate, read_template
from mainspring.runtimes.tokenizer import Tokenizer
from mainspring.types import Chunk, EngineStats, ModelInfo, Request, Sampling, Task, Token, Usage

__all__ = ["LLMRuntime"]

SEEDS = 1 << 63
READ_SECONDS, READ_CHARACTERS = 10.0, 100_000
"""A text may take so long to become tokens, and a second for each so many characters: a hundred
times what a sound tokenizer needs."""
TOKENIZER_SECONDS = 60.0
"""to load the tokenizer"""

T = TypeVar("T")


class LLMRuntime:
    """Serves one model. All methods belong to the event loop's thread.

    `template_variables` says whether a request may bring variables for the chat template.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        config: ModelConfig,
        *,
        stall_seconds: float = 5.0,
        home: str = HOME,
        template_variables: bool = False,
    ) -> None:
        self.name = name
        self._path = path
        self._config = config
        self._template_variables = template_variables
        self._supervisor = Supervisor(name, path, config, stall_seconds=stall_seconds, home=home)
        self._lane = Lane(f"tokenize-{name}")
        self._template: ChatTemplate | None = None
        self._prompts: Prompts | None = None
        self._grammars = Grammars(self._vocabulary)
        self._info: ModelInfo | None = None
        self._defaults: dict[str, Any] = {}
        self._forms = Forms()
        self._admission = Admission(name, config, self.stats)
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False

    # Life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the Worker and load the model.

        Raises ModelError or InsufficientMemory saying why it cannot be served, WorkerLost when
        its Worker keeps crashing.
        """
        try:
            ready, prompts = await self._load()
        except BaseException:
            await self.stop()
            raise
        self._prompts = prompts
        self._info = ModelInfo(
            name=self.name,
            family=ready.family,
            parameters=ready.parameters,
            format=ready.format,
            context=ready.context,
            vocabulary=ready.vocabulary,
            weight_bytes=ready.weight_bytes,
            kv_bytes=ready.kv_bytes,
            max_running=self._config.max_running,
            created=int(time.time()),
        )

    async def _load(self) -> tuple[Ready, Prompts]:
        """Worker, tokenizer and template at the same time; the first that fails ends the others."""
        self._defaults = await self._in_thread(lambda: sampling_defaults(self._path))
        files = await self._in_thread(lambda: read_template(self._path))
        self._template = ChatTemplate(files)
        worker = asyncio.create_task(self._supervisor.start())
        tokenizer = asyncio.create_task(self._tokenizer())
        template = asyncio.create_task(self._template.start())
        try:
            await asyncio.gather(worker, tokenizer, template)
        except BaseException:
            for task in (worker, tokenizer, template):
                task.cancel()
            await asyncio.gather(worker, tokenizer, template, return_exceptions=True)
            raise
        self._forms = await self._template.forms()
        ready = worker.result()
        return ready, Prompts(self.name, tokenizer.result(), ready.context, ready.vocabulary)

    async def _tokenizer(self) -> Tokenizer:
        """The library holds the interpreter while it reads: the Worker must be on its way first."""
        await self._supervisor.spawned.wait()
        return await self._in_thread(lambda: Tokenizer(self._path), TOKENIZER_SECONDS)

    async def stop(self, drain: float = 0.0) -> None:
        """Take nothing new, let what runs end for at most `drain` seconds, end the Worker."""
        self._stopped = True
        if drain > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain)
        await self._supervisor.stop()
        if self._template:
            await self._template.stop()
        await self._grammars.stop()
        self._lane.close()

    async def load_adapter(self, name: str, path: Path) -> AdaptedRuntime:
        """The model with the LoRA adapter of a directory, as `name`.

        Raises ModelError or InsufficientMemory saying why not, BadRequest above max_adapters.
        """
        self._check_open()
        return AdaptedRuntime(name, self, await self._supervisor.adapt(path))

    def drop_adapter(self, placed: Placed) -> None:
        """Forget an adapter; requests that use it go on."""
        self._supervisor.drop(placed)

    # What is known of it --------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """Raises Unavailable before `start` has ended."""
        if self._info is None:
            raise Unavailable(f"model {self.name} is loading")
        return self._info

    @property
    def restarts(self) -> int:
        """How often the Worker was lost."""
        return self._supervisor.restarts

    @property
    def worker(self) -> int | None:
        """The Worker's process id, while there is one."""
        return self._supervisor.pid

    def stats(self) -> EngineStats:
        """The Engine's numbers, at most half a second old."""
        return self._supervisor.stats

    def unhealthy(self) -> str | None:
        """None when requests are being answered; else why not."""
        if self._stopped:
            return "stopping"
        if self._lane.stuck:
            return "its tokenizer does not come to the end of a text"
        return self._supervisor.unhealthy() or (None if self._info else "loading")

    # Requests -------------------------------------------------------------------------------------

    async def run(
        self, request: Request, adapter: Placed | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the answer; closing the generator cancels it, wherever it is.

        Raises BadRequest, ContextLength, Overloaded, Unavailable, or what went wrong in between.
        """
        self._check_open()
        if request.task in (Task.TOKENIZE, Task.DETOKENIZE):
            yield await self._spelled(request)
            yield Chunk(usage=Usage())
            return
        places = request.n * (1 if request.task is Task.CHAT else len(request.prompts))
        stay = self._admission.enter(request, places)
        self._idle.clear()
        answer: Answer | None = None
        try:
            choices = await self._choices(request)
            answer = Answer(request, self._supervisor, choices, time.monotonic(), adapter)
            stay.know(answer.prompt)
            async with contextlib.aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    stay.begun()
                    yield chunk
            self._admission.learn(places, answer.prompt, answer.cached, answer.output)
        finally:
            stay.leave()
            if answer is not None:
                answer.close()
            if not self._admission.taken:
                self._idle.set()

    def _check_open(self) -> None:
        if self._stopped or self._prompts is None:
            raise Unavailable(f"model {self.name} is {self.unhealthy() or 'loading'}")
        if self._supervisor.lost or self._lane.stuck:
            raise Unavailable(f"model {self.name} does not answer: {self.unhealthy()}")

    async def _spelled(self, request: Request) -> Chunk:
        """The answer of a task that needs the tokenizer alone."""
        assert self._prompts is not None
        prompts, tokenizer = self._prompts, self._prompts.tokenizer
        if request.task is Task.DETOKENIZE:
            (ids,) = request.prompts
            assert not isinstance(ids, str)
            return Chunk(text=await self._in_thread(lambda: prompts.text(ids)))
        if request.prompts:
            (text,) = request.prompts
            assert isinstance(text, str)
            prompt = await self._in_thread(
                lambda: prompts.tokens(text, begin=request.begin), reading_seconds(len(text))
            )
        else:
            prompt = await self._chat(request)
        named = [(id, tokenizer.token_bytes(id)) for id in prompt.ids]
        tokens = (Token(id, data.decode(errors="replace"), data, None) for id, data in named)
        return Chunk(prompt_tokens=tuple(tokens))

    # From a request to choices --------------------------------------------------------------------

    async def _choices(self, request: Request) -> list[Choice]:
        assert self._prompts is not None
        chat = request.task is Task.CHAT
        if chat:
            prompts = [await self._chat(request)]
        else:
            complete = self._prompts.complete
            prompts = await self._in_thread(
                lambda: [
                    complete(prompt, echo=request.echo, suffix=request.suffix)
                    for prompt in request.prompts
                ],
                reading_seconds(len(request.suffix) + sum(map(len, request.prompts))),
            )
        sampling = self._filled(request)
        for prompt in prompts:
            self._prompts.check(prompt, sampling)
        wanted = request.grammar
        if chat:
            wanted = self._forms.grammar(request, prompts[0].text, self._prompts.tokenizer)
        grammar = await self._grammars.compile(wanted) if wanted else ""
        seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed
        choices: list[Choice] = []
        tokenizer, forms = self._prompts.tokenizer, self._forms
        shown = tokenizer.shown(forms.texts(request)) if chat else {}
        for prompt in prompts:
            thinking = forms.thinking(request, prompt.text, tokenizer) if chat else None
            for _ in range(request.n):
                choice = Choice(
                    len(choices),
                    tokenizer,
                    prompt,
                    msgspec.structs.replace(
                        sampling, seed=(seed + len(choices)) % SEEDS, thinking=thinking
                    ),
                    stop=request.stop,
                    continues=not chat,
                    reader=forms.reader(request, prompt.text) if chat else None,
                    shown=shown,
                    grammar=grammar,
                )
                choices.append(choice)
        return choices

    async def _vocabulary(self) -> Vocabulary:
        """How the model's tokens are spelled, for whoever follows grammars."""
        supervisor = self._supervisor
        if supervisor.vocabulary is None:
            assert self._prompts is not None and supervisor.loaded is not None
            tokenizer, loaded = self._prompts.tokenizer, supervisor.loaded
            supervisor.vocabulary = await self._in_thread(
                lambda: tokenizer.vocabulary(loaded.vocabulary, loaded.eos)
            )
        return supervisor.vocabulary

    def _filled(self, request: Request) -> Sampling:
        """The request's sampling, with the checkpoint's defaults where the client said nothing."""
        unsaid = {k: v for k, v in self._defaults.items() if k not in request.chosen}
        return msgspec.structs.replace(request.sampling, **unsaid)

    async def _chat(self, request: Request) -> Prompt:
        assert self._prompts is not None and self._template is not None
        prompts, forms = self._prompts, self._forms
        if request.template_variables and not self._template_variables:
            raise BadRequest(
                "chat_template_kwargs are not allowed here; the operator can allow them with "
                "--template-variables",
                param="chat_template_kwargs",
            )
        forms.check(request)
        variables = forms.template_variables(request)
        said = sum(len(message.content or "") for message in request.messages)
        guarded = await self._in_thread(
            lambda: prompts.guard(request.messages, variables, forms), reading_seconds(said)
        )
        text = await self._template.render(guarded)
        return await self._in_thread(
            lambda: prompts.chat(text, guarded.mark), reading_seconds(len(text))
        )

    async def _in_thread(self, work: Callable[[], T], seconds: float = READ_SECONDS) -> T:
        """Raises ModelError when the tokenizer takes longer than any sound one would."""
        try:
            return await self._lane.run(work, seconds)
        except Stuck as error:
            raise ModelError(
                f"the tokenizer of {self.name} does not come to the end of a text: the patterns in "
                "its tokenizer.json take too long; unload the model and repair them"
            ) from error


def reading_seconds(characters: int) -> float:
    """How long a text of this length may take to become tokens."""
    return READ_SECONDS + characters / READ_CHARACTERS
