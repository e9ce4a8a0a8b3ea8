"""The text side of one choice: Outputs of the Engine in, Chunks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from mainspring.runtimes.prompt import Prompt
from mainspring.runtimes.reader import Part, Reader
from mainspring.runtimes.stops import Stops
from mainspring.runtimes.tokenizer import Tokenizer
from mainspring.types import Chunk, Event, Finish, Sampling, Timeline, Token, TokenTime

__all__ = ["Choice", "EngineOutput"]


class Logprob(Protocol):
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> tuple[tuple[int, float], ...]: ...


class EngineOutput(Protocol):
    """An Output, of the Engine itself or as it came from a Worker."""

    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def logprobs(self) -> Sequence[Logprob]: ...
    @property
    def prompt_logprobs(self) -> Sequence[Logprob]: ...
    @property
    def times(self) -> tuple[TokenTime, ...]: ...
    @property
    def finish(self) -> Finish | None: ...
    @property
    def complete(self) -> bool: ...
    @property
    def stop_reason(self) -> int | None: ...
    @property
    def events(self) -> tuple[Event, ...]: ...
    @property
    def cached(self) -> int: ...


class Choice:
    """Turns the tokens of one sequence into text, until a stop string or the Engine ends it.

    `continues` says that the text goes on from the prompt, as a completion does and a chat reply
    does not. `reader` tells a chat reply's reasoning and tool calls apart, and of special tokens
    those that are `shown` to it. `grammar`, compiled, is what it is held to, byte for byte.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        continues: bool = False,
        reader: Reader | None = None,
        shown: Mapping[int, str] = MappingProxyType({}),
        grammar: str = "",
    ) -> None:
        self.index = index
        self.output = 0
        """tokens so far; those after a stop string are not counted"""
        self.reasoning = 0
        """of these, in reasoning"""
        self.cached = 0
        self.finish: Finish | None = None
        self.times: list[TokenTime] = []
        self.events: tuple[Event, ...] = ()
        self._tokenizer = tokenizer
        self.prompt = prompt.ids
        self.sampling = sampling
        self.grammar = grammar
        before = prompt.ids if continues or grammar else ()
        self._text = tokenizer.detokenizer(before, shown)
        self._stops = Stops(stop)
        self._reader = reader or Reader(None, None)
        self._echo = prompt.echo
        self._scored = sampling.prompt_logprobs is None
        """whether prompt log-probabilities are no longer awaited"""
        self._pending: list[tuple[int, Token]] = []
        """tokens whose text is held back, with the length of text before each"""
        self._length = 0
        self._given = 0

    def take(self, output: EngineOutput) -> Chunk | None:
        """The Chunk that this Output makes; None when it brings no text yet."""
        if not self.output:
            self.cached = output.cached  # a replay reads what this very choice had computed
        text, self._echo = self._echo, ""
        parts = [Part(content=text)]
        reason: str | int | None = None
        last = len(output.tokens) - 1
        for place, id in enumerate(output.tokens):
            self.output += 1
            self.times += output.times[place : place + 1]
            if place == last and output.finish is Finish.STOP and not output.complete:
                break  # the token that ends a choice is no part of its text
            if output.logprobs:
                self._score(id, output.logprobs[place])
            piece, reason = self._feed(id)
            text += piece
            parts.append(self._read(piece))
            if reason is not None:
                self.finish = Finish.STOP
            elif self._reader.done:
                self.finish = Finish.TOOL_CALLS
            if self.finish is not None:
                break
        if self.finish is None and output.finish is not None:
            rest, stopped = self._stops.feed(self._text.end())
            rest = rest if stopped is not None else rest + self._stops.end()
            text += rest
            parts.append(self._reader.feed(rest))
            self.finish = output.finish if stopped is None else Finish.STOP
            reason = output.stop_reason if stopped is None else stopped
        if self.finish is not None:
            parts.append(self._reader.end())
            if self.finish is Finish.STOP and self._reader.called:
                self.finish = Finish.TOOL_CALLS
        self.events += output.events
        return self._chunk(text, parts, self._prompt_tokens(output), reason)

    def timeline(self, before: Sequence[Event], replays: Sequence[float]) -> Timeline:
        """The story of the choice; `before` happened in the server, `replays` are times."""
        events = [*before, *self.events, *(Event("replayed", time) for time in replays)]
        if self.times and all(event.name != "finished" for event in events):
            # A stop string ended it: the Engine was told, and did not tell.
            last = self.times[-1]
            events.append(Event("finished", last.time, 0, last.step))
        events.sort(key=lambda event: event.time)
        return Timeline(self.index, tuple(events), tuple(self.times))

    def _feed(self, id: int) -> tuple[str, str | None]:
        piece = self._text.feed(id)
        self._length += len(piece)
        if self.output <= self.sampling.min_tokens:
            return self._stops.skip(piece), None
        return self._stops.feed(piece)

    def _read(self, piece: str) -> Part:
        """Tell the text of a token apart, and whether the token is reasoning."""
        before = self._reader.reasoning
        part = self._reader.feed(piece)
        self.reasoning += before or self._reader.reasoning
        return part

    def _chunk(
        self,
        text: str,
        parts: Sequence[Part],
        prompt: tuple[Token, ...],
        reason: str | int | None,
    ) -> Chunk | None:
        """`text` is what the `parts` were read from."""
        self._given += len(text)
        tokens = self._released()
        content = "".join(part.content for part in parts)
        reasoning = "".join(part.reasoning for part in parts)
        calls = tuple(call for part in parts for call in part.calls)
        if not (content or reasoning or calls or tokens or prompt or self.finish):
            return None
        return Chunk(
            index=self.index,
            text=content,
            reasoning=reasoning,
            calls=calls,
            tokens=tokens,
            prompt_tokens=prompt,
            finish=self.finish,
            stop_reason=reason,
        )

    # Log-probabilities ----------------------------------------------------------------------------

    def _score(self, id: int, scored: Logprob) -> None:
        self._pending.append((self._length, self._token(id, scored)))

    def _released(self) -> tuple[Token, ...]:
        """Tokens whose text has begun to go out; at a stop string, those after are dropped."""
        if not self._pending:
            return ()
        if self.finish is Finish.LENGTH:
            ready = len(self._pending)
        else:
            ready = sum(start < self._given for start, _ in self._pending)
        tokens = tuple(token for _, token in self._pending[:ready])
        del self._pending[:ready]
        return tokens

    def _prompt_tokens(self, output: EngineOutput) -> tuple[Token, ...]:
        if self._scored or not (output.prompt_logprobs or output.tokens):
            return ()
        self._scored = True
        first = self.prompt[0]
        data = self._tokenizer.token_bytes(first)
        head = Token(first, data.decode(errors="replace"), data, None)
        rest = zip(self.prompt[1:], output.prompt_logprobs, strict=True)
        return (head, *(self._token(id, scored) for id, scored in rest))

    def _token(self, id: int, scored: Logprob) -> Token:
        return Token(
            id,
            *self._names(id),
            scored.logprob,
            tuple(Token(other, *self._names(other), value) for other, value in scored.top),
        )

    def _names(self, id: int) -> tuple[str, bytes]:
        data = self._tokenizer.token_bytes(id)
        return data.decode(errors="replace"), data
