"""The paths of the OpenAI dialect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from mainspring.api.call import Call
from mainspring.api.routes import Route
from mainspring.dialects import openai, sse
from mainspring.errors import MainspringError
from mainspring.gateway.identity import Permission
from mainspring.gateway.models import Models
from mainspring.gateway.pipeline import Pipeline
from mainspring.telemetry.record import Record
from mainspring.types import Chunk

__all__ = ["Inference"]

NAMES_SHOWN = 20
QUIET_SECONDS = 10.0


class Inference:
    """Bytes to Request, through the pipeline, Chunks to bytes."""

    def __init__(
        self,
        pipeline: Pipeline,
        models: Models,
        *,
        body_limit: int,
        template_variables: bool,
        reasoning: str,
    ) -> None:
        self._pipeline = pipeline
        self._models = models
        self._body_limit = body_limit
        self._parse_chat = partial(
            openai.parse_chat, template_variables=template_variables, reasoning=reasoning
        )

    def routes(self) -> list[Route]:
        may = Permission.INFERENCE
        return [
            Route("GET", "/v1/models", may, self.list_models),
            Route("GET", "/v1/models/{name}", may, self.show_model),
            Route("POST", "/v1/chat/completions", may, self.chat),
            Route("POST", "/v1/completions", may, self.complete),
            Route("POST", "/tokenize", may, self.tokenize),
            Route("POST", "/detokenize", may, self.detokenize),
        ]

    async def list_models(self, call: Call, _: str) -> None:
        infos = [served.runtime.info for served in self._models.loaded()]
        infos += [adapter.runtime.info for adapter in self._models.adapters()]
        await call.answer(200, openai.models_body(infos))

    async def show_model(self, call: Call, name: str) -> None:
        await call.answer(200, openai.model_body(self._models.find(name).runtime.info))

    async def chat(self, call: Call, _: str) -> None:
        body = await call.body(self._body_limit)
        await self._infer(
            call,
            self._parse_chat(
                body,
                id=call.id,
                arrival=call.arrival,
                created=int(time.time()),
                tenant=call.identity.tenant,
            ),
        )

    async def complete(self, call: Call, _: str) -> None:
        body = await call.body(self._body_limit)
        await self._infer(
            call,
            openai.parse_completion(
                body,
                id=call.id,
                arrival=call.arrival,
                created=int(time.time()),
                tenant=call.identity.tenant,
            ),
        )

    async def tokenize(self, call: Call, _: str) -> None:
        body = await call.body(self._body_limit)
        ask = openai.parse_tokenize(
            body, id=call.id, arrival=call.arrival, tenant=call.identity.tenant
        )
        chunk = await self._spelled(call, ask)
        context = self._models.find(ask.request.model).runtime.info.context
        await call.answer(200, openai.tokens_body(ask, chunk, context))

    async def detokenize(self, call: Call, _: str) -> None:
        body = await call.body(self._body_limit)
        ask = openai.parse_detokenize(
            body, id=call.id, arrival=call.arrival, tenant=call.identity.tenant
        )
        await call.answer(200, openai.text_body(await self._spelled(call, ask)))

    async def _spelled(self, call: Call, ask: openai.TokenAsk) -> Chunk:
        """The one Chunk that says something."""
        self._tell_ignored(call, ask.ignored)
        call.record = Record.of(ask.request)
        run = self._pipeline.run(ask.request, call.identity, call.record)
        async with aclosing(run) as chunks:
            first, *_ = [chunk async for chunk in chunks]
        return first

    @staticmethod
    def _tell_ignored(call: Call, names: tuple[str, ...]) -> None:
        if names:
            call.add_header(b"x-mainspring-ignored", ",".join(names[:NAMES_SHOWN])[:1024])

    async def _infer(self, call: Call, ask: openai.Ask) -> None:
        self._tell_ignored(call, ask.ignored)
        call.record = Record.of(ask.request)
        run = self._pipeline.run(ask.request, call.identity, call.record)
        async with aclosing(run) as chunks:
            if ask.stream:
                await self._stream(call, ask, chunks)
            else:
                await self._whole(call, ask, chunks)

    async def _whole(
        self, call: Call, ask: openai.Ask, chunks: AsyncGenerator[Chunk, None]
    ) -> None:
        whole = openai.Whole(ask)
        async for chunk in chunks:
            whole.add(chunk)
        await call.answer(200, whole.body())

    async def _stream(
        self, call: Call, ask: openai.Ask, chunks: AsyncGenerator[Chunk, None]
    ) -> None:
        """The status line waits for the first Chunk, so that an error before it has its own.

        After QUIET_SECONDS it goes out all the same, with a comment, and another one as often:
        proxies and clients drop a connection that says nothing.
        """
        stream = openai.Stream(ask)
        try:
            await _quiet(call, first := asyncio.ensure_future(anext(chunks)))
            if not call.status:
                await first
                await call.stream(sse.CONTENT_TYPE)
            await call.piece(stream.frames(await first))
            async for chunk in chunks:
                if frames := stream.frames(chunk):
                    await call.piece(frames)
        except MainspringError as error:
            if not call.status:
                raise
            await call.piece(stream.error(error))
        await call.piece(stream.end(), last=True)


async def _quiet(call: Call, first: asyncio.Future[Chunk]) -> None:
    """Wait for the first Chunk, with signs of life to the client."""
    try:
        while not (await asyncio.wait({first}, timeout=QUIET_SECONDS))[0]:
            if not call.status:
                await call.stream(sse.CONTENT_TYPE)
            await call.piece(sse.comment("waiting"))
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)  # its own error has no one to go to
        raise
