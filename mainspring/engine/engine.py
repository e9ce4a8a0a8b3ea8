"""The Engine: token ids in, token ids out, one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import zip_longest

from mainspring.engine.adapter import Adapter
from mainspring.engine.architectures import Architecture
from mainspring.engine.blocks import BlockPool
from mainspring.engine.cost import CostModel
from mainspring.engine.disk import DiskPlace
from mainspring.engine.draft_model import DraftModel
from mainspring.engine.grammar import Matcher
from mainspring.engine.runner import Runner
from mainspring.engine.sampler import INTERNAL, Draw, Sampler, check
from mainspring.engine.scheduler import Scheduler, Work
from mainspring.engine.sequence import Output, Sequence
from mainspring.engine.speculation import Speculation
from mainspring.engine.tier import Tier
from mainspring.errors import BadRequest, ContextLength, Overloaded
from mainspring.kernels import BLOCK, Array, Kernels, KvFormat
from mainspring.types import EngineStats, Event, Sampling, TokenTime

__all__ = ["Engine", "EngineConfig"]

log = logging.getLogger(__name__)

LOGIT_BYTES = 32 << 20
"""A prompt that is scored, and all guesses, get at most this many bytes of logits in a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an Engine is sized."""

    blocks: int
    """KV cache blocks of BLOCK tokens"""
    max_running: int = 64
    """sequences computed together at most"""
    max_queue: int = 256
    """sequences waiting at most, besides `max_running`"""
    step_seconds: float = 0.05
    """a step's time while any sequence is decoding"""
    prefix_cache: bool = True
    prefix_memory: int = 0
    """bytes of evicted blocks kept in memory"""
    prefix_disk: DiskPlace | None = None
    """where evicted blocks are kept that memory has no room for"""
    speculation: bool = True
    """whether guessed tokens are computed ahead where that saves time"""
    dtype: KvFormat = "bf16"
    """of the KV cache"""


class Engine:
    """Generates tokens for many sequences at once. Synchronous, for one thread.

    What a sequence gets depends on its own tokens and Sampling alone: not on its batch-mates, on
    how its prompt was cut, on cache hits, guesses, preemptions or a replay.

    `clock` gives seconds that only grow; it stamps the timeline and measures steps.
    `draft`, a smaller model of the same vocabulary, guesses for this one.
    """

    def __init__(
        self,
        model: Architecture,
        kernels: Kernels,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
        draft: Architecture | None = None,
    ) -> None:
        shape = model.shape
        self._models = [model] if draft is None else [model, draft]
        self._shape = shape
        self._eos = tuple(token for token in shape.eos if 0 <= token < shape.vocabulary)
        self._config = config
        self._clock = clock
        self._context = min(shape.context, config.blocks * BLOCK)
        self._cost = CostModel(shape)
        # Many rows keep the cores busy, few of them wait for memory: no one line fits both.
        self._decode_cost = CostModel(shape)
        self._runner = Runner(model, kernels, blocks=config.blocks, dtype=config.dtype)
        self._tier = Tier(self._runner.cache, config.prefix_memory, config.prefix_disk, clock)
        self._pool = BlockPool(config.blocks, self._tier.keep)
        logit_rows = max(1, LOGIT_BYTES // (4 * shape.vocabulary))
        self._scheduler = Scheduler(
            self._pool,
            self._tier,
            self._cost,
            max_running=config.max_running,
            step_seconds=config.step_seconds,
            logit_rows=logit_rows,
            copy=self._runner.cache.copy_block,
        )
        guesser = DraftModel(draft, kernels, config.blocks, config.dtype, clock) if draft else None
        self._speculation = Speculation(self._pool, self._decode_cost, guesser, logit_rows)
        self._sampler = Sampler(kernels)
        self._sequences: dict[str, Sequence] = {}
        self._ended: list[Output] = []
        self._steps = 0
        self._output_tokens = 0

    # Requests -----------------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """Grows with each layer of each step; another thread may read it while `step` runs."""
        return self._steps + sum(model.progress for model in self._models)

    def add(
        self,
        id: str,
        tokens: Items[int],
        sampling: Sampling,
        *,
        salt: bytes = b"",
        generated: Items[int] = (),
        matcher: Matcher | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Queue a prompt. Its Outputs come from later steps, under `id`.

        `salt` separates prefix caches: only sequences of equal salt share blocks. `generated` are
        output tokens that an earlier Engine has already given: they are not given again, and the
        output goes on as if it had never stopped; it ends at the context's end at the latest.
        `matcher`, at its grammar's beginning, holds and ends it; `adapter` changes the model.

        Raises ContextLength when the prompt leaves no room for output, Overloaded when too many
        sequences wait, BadRequest when a token id is not in the vocabulary, the prompt is empty or
        `id` is in use.
        """
        self._check(id, tokens, sampling, generated)
        sequence = Sequence(
            id,
            tokens,
            generated,
            sampling,
            salt=salt,
            eos=self._eos,
            context=self._context,
            hashed=self._config.prefix_cache,
            speculates=self._config.speculation,
            matcher=matcher,
            adapter=adapter,
        )
        sequence.events.append(Event("queued", now := self._clock()))
        finish, reason = sequence.finish() if generated else (None, None)
        if finish is not None:
            sequence.events.append(Event("finished", now))
            events = sequence.take_events()
            self._ended.append(Output(id=id, finish=finish, stop_reason=reason, events=events))
            return
        self._sequences[id] = sequence
        self._scheduler.waiting.append(sequence)

    def abort(self, id: str) -> bool:
        """Forget a sequence and free its blocks at once; False when there is none of this id."""
        sequence = self._sequences.pop(id, None)
        if sequence is None:
            ended = len(self._ended)
            self._ended = [output for output in self._ended if output.id != id]
            return len(self._ended) < ended
        self._scheduler.remove(sequence)
        self._check_idle()
        return True

    def close(self) -> None:
        """Let go of the file of evicted blocks; another Engine may open it then."""
        self._tier.close()

    def _check(
        self, id: str, tokens: Items[int], sampling: Sampling, generated: Items[int]
    ) -> None:
        if id in self._sequences:
            raise BadRequest(f"a sequence with the id {id!r} is already here; choose another")
        if not tokens:
            raise BadRequest("the prompt holds no tokens; send at least one", param="prompt")
        if sampling.max_tokens is not None and sampling.max_tokens < 1:
            raise BadRequest(
                f"max_tokens is {sampling.max_tokens}; it must be at least 1", param="max_tokens"
            )
        check(sampling)
        self._check_ids(tokens, "prompt")
        self._check_ids(generated, "generated")
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        self._check_ids(tuple(sampling.logit_bias), "logit_bias")
        if sampling.thinking is not None:
            self._check_ids((sampling.thinking.end,), "thinking")
        if len(tokens) + 1 > self._context:
            raise ContextLength(self._too_long(len(tokens)), param="prompt")
        waiting = len(self._scheduler.waiting)
        if len(self._sequences) >= self._config.max_running + self._config.max_queue:
            raise Overloaded(
                f"{len(self._sequences)} sequences run or wait, the most allowed; {waiting} are "
                "waiting; try again later",
                retry_after=self._wait(),
            )

    def _check_ids(self, ids: Items[int], field: str) -> None:
        if not ids:
            return
        for worst in (min(ids), max(ids)):
            if not 0 <= worst < self._shape.vocabulary:
                raise BadRequest(
                    f"{field}: token id {worst} is not in the vocabulary of "
                    f"{self._shape.vocabulary} tokens (0 to {self._shape.vocabulary - 1})",
                    param=field,
                )

    def _too_long(self, tokens: int) -> str:
        message = (
            f"the prompt has {tokens} tokens; with room for one output token the context of "
            f"{self._context} holds {self._context - 1}; shorten the prompt"
        )
        if self._context < self._shape.context:
            message += (
                f", or give the KV cache more memory (the model itself could take "
                f"{self._shape.context} tokens, {self._config.blocks} blocks of {BLOCK} hold "
                f"{self._context})"
            )
        return message

    def _wait(self) -> float:
        """Roughly when a place will be free: all prompts computed, in seconds; at least 1."""
        pending = sum(sequence.pending for sequence in self._sequences.values())
        return max(1.0, pending * self._cost.token)

    # Steps --------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._sequences or self._ended)

    def step(self) -> list[Output]:
        """Compute one batch and return what it brought, in order of arrival; [] without work.

        An exception of the model's forward pass comes through: the Engine is then of no more use.
        """
        outputs, self._ended = self._ended, []
        if self._sequences:
            outputs += self._compute()
            self._check_idle()
        return outputs

    def _compute(self) -> list[Output]:
        began = self._clock()
        self._steps += 1
        self._speculation.guess(self._scheduler.running)
        work = self._scheduler.schedule(began, self._steps, self._speculation.seconds)
        batch = self._runner.batch(work)
        logits = self._runner.run(batch)
        draws = self._draw(work, logits)
        now = self._clock()
        prefill = sum(count for sequence, count in work if sequence.prefills(count))
        moment = TokenTime(now, self._steps, len(work), prefill)
        outputs = [
            output
            for (sequence, count), drawn in zip(work, draws, strict=True)
            if (output := self._commit(sequence, count, drawn, moment)) is not None
        ]
        size, seconds = self._runner.size(batch), self._clock() - began
        seconds -= self._tier.take_seconds() + self._speculation.seconds
        self._cost.observe(size, seconds)
        if not prefill:
            self._decode_cost.observe(size, seconds)
        return outputs

    def _draw(self, work: list[Work], logits: Array) -> list[list[Draw]]:
        """For each sequence that has caught up a Draw, and one after each of its guesses.

        Only the failure for one that has failed, nothing for the others. The rows of `logits` are
        those of `Runner.batch`.
        """
        draws: list[list[Draw]] = [[] for _ in work]
        rows: list[int] = []
        places: list[int] = []
        end = 0
        for place, (sequence, count) in enumerate(work):
            start = end
            drawn = 1 + len(sequence.guesses) if count == sequence.pending else 0
            end += count if sequence.scored else drawn
            if sequence.scored:
                failure = self._sampler.score_prompt(logits[start:end], sequence)
                if failure is not None:
                    draws[place].append(failure)
                    continue
            rows += range(end - drawn, end)
            places += [place] * drawn
        if rows:
            wanted = logits if len(rows) == len(logits) else logits[rows]
            sequences = [work[place][0] for place in places]
            for place, draw in zip(places, self._sampler.draw(wanted, sequences), strict=True):
                draws[place].append(draw)
        return draws

    def _commit(
        self, sequence: Sequence, count: int, draws: list[Draw], moment: TokenTime
    ) -> Output | None:
        """Let a sequence have what the step computed for it; a failure here is its own."""
        try:
            if draws and draws[0].error is not None:
                return self._fail(sequence, draws[0], moment.time)
            if sequence.prefills(count):
                sequence.events.append(Event("prefill", moment.time, count, moment.step))
            taken = self._accept(sequence, draws)
            self._publish(sequence, count + max(0, len(taken) - 1))
            return self._advance(sequence, taken, moment) if taken else None
        except Exception:
            log.exception("sequence %s failed", sequence.id)
            return self._fail(sequence, INTERNAL, moment.time)

    def _accept(self, sequence: Sequence, draws: list[Draw]) -> list[Draw]:
        """Append the drawn tokens: each is right if the guesses before it were; returns those."""
        guesses, sequence.guesses = sequence.guesses, []
        taken: list[Draw] = []
        for draw, guess in zip_longest(draws, guesses):
            if draw.error is not None:
                break  # the next step finds it again, as the sequence's own
            sequence.push(draw.token)
            taken.append(draw)
            if draw.token != guess or sequence.finish()[0] is not None:
                break
        self._output_tokens += len(taken)
        self._speculation.settle(sequence, guesses, [draw.token for draw in taken])
        return taken

    def _publish(self, sequence: Sequence, count: int) -> None:
        """Count tokens as computed and let others read the blocks that they fill."""
        first = sequence.computed // BLOCK
        sequence.computed += count
        if sequence.hashed:
            for i in range(first, sequence.computed // BLOCK):
                self._pool.publish(sequence.blocks[i], sequence.content(i))

    def _advance(self, sequence: Sequence, taken: list[Draw], moment: TokenTime) -> Output:
        """Tell of the appended tokens."""
        finish, reason = sequence.finish()
        if finish is not None:
            self._drop(sequence)
            sequence.events.append(Event("finished", moment.time, 0, moment.step))
        return Output(
            id=sequence.id,
            tokens=tuple(draw.token for draw in taken),
            logprobs=tuple(draw.logprob for draw in taken if draw.logprob is not None),
            prompt_logprobs=sequence.take_prompt_logprobs() if sequence.scored else (),
            times=(moment,) * len(taken),
            finish=finish,
            complete=finish is not None and sequence.complete,
            stop_reason=reason,
            events=sequence.take_events(),
            cached=sequence.cached,
        )

    def _fail(self, sequence: Sequence, draw: Draw, now: float) -> Output:
        self._drop(sequence)
        sequence.events.append(Event("finished", now, 0, self._steps))
        events = sequence.take_events()
        return Output(id=sequence.id, events=events, cached=sequence.cached, error=draw.error)

    def _drop(self, sequence: Sequence) -> None:
        if self._sequences.pop(sequence.id, None) is not None:
            self._scheduler.remove(sequence)

    def _check_idle(self) -> None:
        """Whenever no sequence is left, every block must be free or cached."""
        if not self._sequences:
            self._pool.check()

    # Numbers ------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters since the start and gauges of now; cheap enough for every step."""
        learned = self._cost.observed > 0
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            blocks=self._pool.size,
            blocks_used=self._pool.used,
            blocks_cached=self._pool.cached,
            steps=self._steps,
            preemptions=self._scheduler.preemptions,
            prompt_tokens=self._scheduler.prompt_tokens,
            cached_tokens=self._scheduler.cached_tokens,
            output_tokens=self._output_tokens,
            drafts=self._speculation.drafts,
            draft_tokens=self._speculation.draft_tokens,
            accepted_tokens=self._speculation.accepted_tokens,
            prefill_seconds_per_token=self._cost.token if learned else 0.0,
            decode_seconds_per_token=self._cost.decode if learned else 0.0,
            step_seconds=self._cost.fixed if learned else 0.0,
            tier=self._tier.stats(),
            draft_model=self._speculation.model,
        )
