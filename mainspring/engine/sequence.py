"""One choice being generated, and what the Engine tells of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items

import numpy as np
from msgspec import Struct

from mainspring.engine.adapter import Adapter
from mainspring.engine.blocks import Content, block_digest, root_digest
from mainspring.engine.draft import Draft, Trust
from mainspring.engine.grammar import Matcher
from mainspring.engine.penalties import Penalties
from mainspring.kernels import BLOCK, blocks_of
from mainspring.types import Event, Finish, Sampling, TokenTime

__all__ = ["Output", "Sequence", "TokenLogprob"]

log = logging.getLogger(__name__)


class TokenLogprob(Struct, frozen=True, array_like=True):
    """Log-probability of a token in the model's own distribution, and the likeliest others."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability), best first; as many as were asked for"""


class Output(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step brought for one sequence.

    A sequence's last Output has either `finish` or `error`; an aborted one gets none.
    """

    id: str
    tokens: tuple[int, ...] = ()
    """New output tokens; the one that ended the sequence is among them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `tokens`, when asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """For every prompt token but the first, on the first Output, when asked for."""
    times: tuple[TokenTime, ...] = ()
    """One for each of `tokens`."""
    finish: Finish | None = None
    complete: bool = False
    """A grammar came to its end with the last token, which is part of the text."""
    stop_reason: int | None = None
    """The id of `Sampling.stop_token_ids` that ended the sequence; None for the model's own end."""
    events: tuple[Event, ...] = ()
    """What happened to the sequence since its last Output."""
    cached: int = 0
    """Prompt tokens that came from the prefix cache."""
    error: tuple[str, str] | None = None
    """(code, message): this sequence failed, the Engine goes on."""


class Sequence:
    """A prompt and the tokens generated after it.

    `computed` tokens have their keys and values in the cache; scheduling is nothing but letting
    `computed` catch up with `len(tokens)`. Whenever it has, the next token is drawn.

    In a step, `guesses` of what follows its tokens may be computed too, right after the pending
    ones. What is drawn at a row does not depend on how the row came to be, so the text is the same;
    a wrong guess only leaves keys and values after `computed` that the next step overwrites.

    `generated` were drawn before the sequence came to this Engine: they are part of `tokens` and
    count as output, so that drawing goes on exactly where it stopped. `context` bounds prompt and
    output together. `hashed` says whether blocks can be shared through the prefix cache,
    `speculates` whether guesses are made, `adapter` what changes the model for this sequence.
    `matcher` holds the output to a grammar; it is at the grammar's beginning.
    """

    __slots__ = (
        "adapter",
        "admitted",
        "blocks",
        "cached",
        "computed",
        "digests",
        "draft",
        "drafted",
        "eos",
        "events",
        "guesses",
        "hashed",
        "id",
        "limit",
        "matcher",
        "penalties",
        "prompt",
        "prompt_logprobs",
        "root",
        "sampling",
        "scored",
        "seed",
        "stops",
        "table",
        "tokens",
        "trust",
    )

    def __init__(
        self,
        id: str,
        prompt: Items[int],
        generated: Items[int],
        sampling: Sampling,
        *,
        salt: bytes,
        eos: tuple[int, ...],
        context: int,
        hashed: bool,
        speculates: bool = False,
        matcher: Matcher | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.id = id
        self.sampling = sampling
        self.tokens = [*prompt, *generated]
        self.prompt = len(prompt)
        asked = context if sampling.max_tokens is None else self.prompt + sampling.max_tokens
        self.limit = min(context, asked)
        self.eos = frozenset(() if sampling.ignore_eos else eos)
        self.stops = self.eos.union(sampling.stop_token_ids)
        self.seed = sampling.seed & 0xFFFF_FFFF_FFFF_FFFF
        self.penalties = Penalties.of(sampling, self.tokens, self.prompt, self.stops)
        self.matcher = matcher
        if matcher is not None:
            for token in generated:
                matcher.push(token)
        # Prompt log-probabilities go out with the first token, so a replay already had them.
        self.scored = sampling.prompt_logprobs is not None and not generated
        self.prompt_logprobs: list[TokenLogprob] = []
        self.computed = 0
        self.blocks: list[int] = []
        self.table = np.zeros(blocks_of(self.limit), np.int32)
        self.adapter = adapter
        # An Adapter makes other keys and values of the same tokens.
        self.root = root_digest(salt if adapter is None else root_digest(salt) + adapter.digest)
        self.hashed = hashed
        self.digests: list[bytes] = []
        self.hash_blocks()
        self.draft = Draft(self.tokens) if speculates else None
        self.drafted = 0
        """tokens whose keys and values the draft model's cache holds"""
        self.trust = Trust()
        self.guesses: list[int] = []
        self.cached = 0
        self.admitted = False
        self.events: list[Event] = []
        """what happened since the last Output"""

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be drawn; at least 1."""
        return len(self.tokens) - self.computed

    def prefills(self, count: int) -> bool:
        """Whether computing `count` tokens is more than the next output token needs."""
        return count > 1 or self.computed < self.prompt

    def hash_blocks(self) -> None:
        """Bring `digests` up to date with `tokens`."""
        if not self.hashed:
            return
        for i in range(len(self.digests), len(self.tokens) // BLOCK):
            tokens = self.tokens[i * BLOCK : (i + 1) * BLOCK]
            self.digests.append(block_digest(self.parent(i), tokens))

    def parent(self, index: int) -> bytes:
        """Digest of the block before the block at an index."""
        return self.digests[index - 1] if index else self.root

    def content(self, index: int) -> Content:
        """What the block at an index holds of the computed tokens."""
        start, parent = index * BLOCK, self.parent(index)
        tokens = self.tokens[start : min(start + BLOCK, self.computed)]
        if len(tokens) == BLOCK:
            return Content(self.digests[index], parent, tokens)
        return Content(block_digest(parent, tokens), parent, tokens)

    def readable(self) -> list[bytes]:
        """Digests of the blocks that may come from the cache: a token is always left to compute."""
        return self.digests[: (len(self.tokens) - 1) // BLOCK]

    def hold(self, blocks: list[int]) -> None:
        """Append to the block table."""
        start = len(self.blocks)
        self.blocks += blocks
        self.table[start : len(self.blocks)] = blocks

    def restart(self) -> None:
        """Compute everything again: the blocks are gone."""
        self.blocks = []
        self.computed = self.drafted = 0
        self.guesses = []
        self.prompt_logprobs.clear()

    def push(self, token: int) -> None:
        """A token was drawn."""
        self.tokens.append(token)
        if self.penalties is not None:
            self.penalties.push(token)
        if self.matcher is not None:
            self.matcher.push(token)
        if self.draft is not None:
            try:
                self.draft.push(token)
            except Exception:  # guesses are no part of the text
                log.exception("guessing for sequence %s failed", self.id)
                self.draft = None
        if len(self.tokens) % BLOCK == 0:
            self.hash_blocks()

    def look_up(self, most: int, share: float) -> list[int]:
        """What `Draft.guess` says, up to what cannot come. If it fails, there are none any more."""
        if self.draft is None:
            return []
        try:
            guesses = self.draft.guess(most, share)
            return guesses if self.matcher is None else guesses[: self.matcher.fitting(guesses)]
        except Exception:  # guesses are no part of the text
            log.exception("guessing for sequence %s failed", self.id)
            self.draft = None
            return []

    def take_prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """The scores of the prompt, once; it is not scored again."""
        self.scored = False
        scores, self.prompt_logprobs = tuple(self.prompt_logprobs), []
        return scores

    def take_events(self) -> tuple[Event, ...]:
        """What happened since the last Output, for the next one."""
        if not self.events:
            return ()
        events = tuple(self.events)
        self.events.clear()
        return events

    @property
    def complete(self) -> bool:
        """The last token, which is not one that ends texts, was the last of the grammar."""
        matcher = self.matcher
        return matcher is not None and matcher.complete and self.tokens[-1] not in self.stops

    def finish(self) -> tuple[Finish | None, int | None]:
        """Whether and why the last token ended the sequence, and the stop id that did."""
        last = self.tokens[-1]
        if last in self.stops:  # before min_tokens, penalties keep it from being drawn
            return Finish.STOP, None if last in self.eos else last
        if self.complete:
            return Finish.STOP, None
        if len(self.tokens) >= self.limit:
            return Finish.LENGTH, None
        return None, None
