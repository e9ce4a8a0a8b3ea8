"""Which tokens the next step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, takewhile

from mainspring.engine.blocks import BlockPool
from mainspring.engine.cost import CostModel, StepSize, attended
from mainspring.engine.sequence import Sequence
from mainspring.engine.tier import Tier
from mainspring.kernels import BLOCK, Array, blocks_of
from mainspring.types import Event

__all__ = ["Scheduler", "Work"]

IDLE = 4.0
"""While nobody decodes, a step may take this many times longer. Still longer ones gain nothing:
a row costs the same from about 100 rows on, and a newcomer waits for the step to end."""
STEP_TOKENS = 1024
"""Prefill tokens in a step at most, which bounds the memory of activations."""
LEAST = 8
"""Prefill tokens in a step at least: up to about so many, rows cost hardly more than one does."""
Work = tuple[Sequence, int]
"""A sequence and how many of its pending tokens to compute."""


class Budget:
    """What is left of a step's time for prefill."""

    def __init__(self, cost: CostModel, seconds: float, scored_rows: int) -> None:
        self._cost = cost
        self._seconds = seconds
        self._tokens = STEP_TOKENS
        self._scored_rows = scored_rows
        self._fed = False

    @property
    def open(self) -> bool:
        """Whether there may be something left for a newcomer."""
        return not self._fed or (self._seconds > 0 and self._tokens > 0)

    def spend(self, seconds: float) -> None:
        """Something else took so long."""
        self._seconds -= seconds

    def take(self, sequence: Sequence, *, shared: bool) -> int:
        """How many of the sequence's pending tokens the step computes; 0 when the time is used up.

        A sequence that wants a single token always gets it. The first prefill of a step always
        gets something, so that nobody starves; the others are not cut smaller than a block. One
        that has `shared` leaves half of what is left.
        """
        pending = sequence.pending
        if pending == 1:
            return 1
        most = self._scored_rows if sequence.scored else STEP_TOKENS
        part = 2 if shared else 1
        fits = self._cost.fitting(self._seconds / part, sequence.computed)
        count = min(pending, most, self._tokens // part, fits)
        if self._fed and count < min(BLOCK, pending, most):
            return 0
        count = max(count, min(LEAST, pending, most))
        self._fed = True
        self._tokens -= count
        self._seconds -= self._cost.prefill(count, sequence.computed)
        return count


class Scheduler:
    """One rule: every sequence's `computed` tokens catch up with its tokens.

    Sequences run in order of arrival, running ones before waiting ones. All running arrived
    before all waiting, so the worst to preempt is the last running and goes to the queue's front.
    """

    def __init__(
        self,
        pool: BlockPool,
        tier: Tier,
        cost: CostModel,
        *,
        max_running: int,
        step_seconds: float,
        logit_rows: int,
        copy: Callable[[int, int, int], None],
    ) -> None:
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._pool = pool
        self._tier = tier
        self._cost = cost
        self._max_running = max_running
        self._step_seconds = step_seconds
        self._logit_rows = logit_rows
        """rows of a scored prompt in a step at most"""
        self._copy = copy
        """`Cache.copy_block`"""

    def schedule(self, now: float, step: int, spent: float = 0.0) -> list[Work]:
        """The next step's work, in order of arrival; its sequences hold the blocks for it.

        `spent` seconds of the step are gone already. Never empty while any sequence is running or
        waiting.
        """
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        budget = self._budget(decoding, spent)
        work: list[Work] = []
        for sequence in self._each_running():
            count = budget.take(sequence, shared=self._shares(sequence))
            if count and self._allocate(sequence, count, now, step):
                work.append((sequence, count))
        while budget.open:
            before = self._tier.seconds
            if (admitted := self._admit(now, step)) is None:
                break
            budget.spend(self._tier.seconds - before)
            if not (count := budget.take(admitted, shared=self._shares(admitted))):
                break
            work.append((admitted, count))
        return work

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or aborted sequence and release its blocks."""
        if sequence.blocks:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.blocks = []

    def _release(self, sequence: Sequence) -> None:
        """Let go of its blocks; the last one, begun only, can still be copied."""
        if sequence.hashed and sequence.computed % BLOCK:
            last = sequence.computed // BLOCK
            self._pool.publish(sequence.blocks[last], sequence.content(last))
        self._pool.release(sequence.blocks)

    def _budget(self, decoding: list[Sequence], spent: float) -> Budget:
        """The step's time less what its decoding sequences take, and at least as long as that.

        So prefill at most doubles the time of a step that is too long without it.
        """
        rows = [1 + len(sequence.guesses) for sequence in decoding]
        reads = (attended(n, s.computed) for n, s in zip(rows, decoding, strict=True))
        base = self._cost.predict(StepSize(sum(rows), 0, sum(reads)))
        seconds = self._step_seconds * (1.0 if decoding else IDLE)
        return Budget(self._cost, max(seconds - spent - base, base), self._logit_rows)

    def _shares(self, sequence: Sequence) -> bool:
        """Whether a shorter prompt is behind this one: it need not wait until this is computed."""
        if sequence.pending == 1:
            return False
        running = takewhile(lambda other: other is not sequence, reversed(self.running))
        behind = chain(reversed(self.waiting), running)
        return any(1 < other.pending < sequence.pending for other in behind)

    def _each_running(self) -> Iterator[Sequence]:
        """Running sequences by arrival, while preemption may shorten the list from its end."""
        position = 0
        while position < len(self.running):
            yield self.running[position]
            position += 1

    def _allocate(self, sequence: Sequence, count: int, now: float, step: int) -> bool:
        """Get blocks for `count` more tokens, preempting later arrivals, at last itself."""
        need = blocks_of(sequence.computed + count) - len(sequence.blocks)
        if need <= 0:
            return True
        while need > self._pool.available:
            worst = self.running[-1]
            self._preempt(worst, now, step)
            if worst is sequence:
                return False
        sequence.hold(self._pool.allocate(need))
        return True

    def _preempt(self, sequence: Sequence, now: float, step: int) -> None:
        """Back to the queue's front; what it computed is lost but for the prefix cache."""
        self.running.pop()
        self._release(sequence)
        sequence.events.append(Event("preempted", now, sequence.computed, step))
        sequence.restart()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, now: float, step: int) -> Sequence | None:
        """Let the first waiting sequence run, if all its tokens fit and it has no one to wait for.

        A block for each running sequence stays available, so that the newcomer is not preempted
        at once, nor one just preempted admitted again. With nobody running it always fits: the
        Engine refuses what the pool cannot hold.
        """
        if not self.waiting or len(self.running) >= self._max_running:
            return None
        sequence = self.waiting[0]
        readable = [] if sequence.scored else sequence.readable()
        hits = self._pool.match(readable)
        known = len(hits)
        kept = self._tier.find(
            readable[known:], lambda i: self._cost.prefill(BLOCK, (known + i) * BLOCK)
        )
        need = blocks_of(len(sequence.tokens)) - len(hits)
        spare = self._pool.available - self._pool.idle(hits)
        if need + len(self.running) > spare or self._awaits(sequence, known + len(kept)):
            return None
        # With others running nobody waits for the disk but this sequence and those behind it.
        if (bits := self._tier.fetch(kept, wait=not self.running)) is None:
            return None
        self.waiting.popleft()
        self.running.append(sequence)
        self._pool.share(hits)
        sequence.hold(hits + self._pool.allocate(need))
        self._restore(sequence, known, bits)
        self._begin(sequence)
        sequence.events.append(Event("admitted", now, sequence.computed, step))
        self._count(sequence)
        return sequence

    def _restore(self, sequence: Sequence, known: int, bits: list[Array]) -> None:
        """Fill the blocks after the first `known` with what the tier gave; the rest is computed."""
        computed = known + len(bits)
        self._tier.restore(sequence.blocks[known:computed], bits)
        sequence.computed = computed * BLOCK
        for i in range(known, computed):
            self._pool.publish(sequence.blocks[i], sequence.content(i))

    def _begin(self, sequence: Sequence) -> None:
        """Copy what the first block to compute has in common with a known one."""
        if sequence.scored or not sequence.hashed:
            return
        start = sequence.computed
        wanted = sequence.tokens[start : min(start + BLOCK, len(sequence.tokens) - 1)]
        source, tokens = self._pool.begun(sequence.parent(start // BLOCK), wanted)
        if tokens:
            self._copy(source, sequence.blocks[start // BLOCK], tokens)
            sequence.computed += tokens

    def _awaits(self, sequence: Sequence, hits: int) -> bool:
        """Whether a running sequence is about to compute the block after this one's `hits`.

        Choices of one prompt come together: the first computes it, the others read it.
        """
        if sequence.scored or hits >= len(readable := sequence.readable()):
            return False
        return any(
            other.computed < (hits + 1) * BLOCK
            and other.digests[hits : hits + 1] == [readable[hits]]
            for other in self.running
        )

    def _count(self, sequence: Sequence) -> None:
        if not sequence.admitted:
            sequence.admitted = True
            sequence.cached = min(sequence.computed, sequence.prompt)
            self.prompt_tokens += sequence.prompt
            self.cached_tokens += sequence.cached
