"""Which sequences guess what comes next, and how far."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from typing import NamedTuple

from mainspring.engine.blocks import BlockPool
from mainspring.engine.cost import CostModel, StepSize
from mainspring.engine.draft import MOST, Trust, worth
from mainspring.engine.draft_model import DraftModel, Wish
from mainspring.engine.sequence import Sequence
from mainspring.kernels import BLOCK, blocks_of
from mainspring.types import DraftStats

__all__ = ["Speculation"]

log = logging.getLogger(__name__)

STEP_TOKENS = 1024
"""Rows that a draft model catches up in a step at most, which bounds memory."""
UNGUESSED = 100
"""After so many steps without guesses, one sequence's are computed if they seem worth it at ..."""
CHEAP = 0.2
"""... this cost: what rows cost is known only from steps of different numbers of them."""
TRIAL = 2
"""Guesses of a draft model that is not trusted, to see whether it should be."""
TRIAL_SHARE = 0.005
"""Of the time, what such trials take; the first needs no credit."""
HITS, TRIALS = 0.1, 0.5
"""What is believed of a draft model before the first trial, and how firmly."""
FIRM = 4.0
"""So many trials of a sequence count as much as what is believed of the draft model in general."""
FADE = 0.98
"""What a trial still counts after the next one, or of a sequence after the next step."""
HORIZON = 100
"""A sequence is expected to go on for so many tokens, if it may."""


class Part(NamedTuple):
    """What the steps of now are made of."""

    step: float
    """seconds, without guesses"""
    sequences: int
    """that decode"""

    @property
    def each(self) -> float:
        """Seconds of one sequence's part."""
        return max(self.step, 1e-9) / self.sequences


class Speculation:
    """Lets decoding sequences guess what comes next, as far as that makes their tokens cheaper.

    Guesses come from the sequence's own text (`Draft`) or, where that is less likely to be right,
    from the draft model if there is one. How many depends on how often such guesses were right and
    on what more rows and the draft model's steps cost, all measured, in the batch of now.

    A draft model that fails is let go: the text never depends on it.
    """

    def __init__(
        self, pool: BlockPool, cost: CostModel, draft: DraftModel | None, logit_rows: int
    ) -> None:
        self.seconds = 0.0
        """that the draft model took for the coming step"""
        self.drafts = self.draft_tokens = self.accepted_tokens = 0
        self.model = DraftStats()
        self._pool = pool
        self._cost = cost
        """of steps without prefill"""
        self._logit_rows = logit_rows
        """guesses in a step at most"""
        self._unguessed = 0
        """steps since guesses were last computed"""
        self._draft = draft
        self._trust = Trust(HITS, TRIALS)
        """in the draft model"""
        self._debt = 0.0
        """seconds that trials of the draft model took and that are not yet their share"""
        self._tried = ""
        """the sequence that a trial waits for to catch up"""
        self._drawn: set[str] = set()
        """sequences whose guesses are the draft model's"""

    def guess(self, running: list[Sequence]) -> None:
        """Set the guesses of the coming step; the sequences hold the blocks for them."""
        self.seconds = 0.0
        self._drawn.clear()
        decoding = [sequence for sequence in running if sequence.pending == 1]
        able = [s for s in decoding if s.draft is not None and not s.scored]
        if not able:
            return
        contexts = sum(len(sequence.tokens) for sequence in decoding)
        step = self._cost.predict(StepSize(len(decoding), 0, contexts))
        part = Part(step, len(decoding))
        self._look_up(able, part)
        wishes = {} if self._draft is None else dict(self._wishes(self._draft, able, part))
        left = self._logit_rows
        for sequence in able:
            wish = wishes.pop(sequence, 0)
            count = self._fit(sequence, min(left, wish or len(sequence.guesses)), len(running))
            left -= count
            if wish and count:
                wishes[sequence] = count
            del sequence.guesses[count:]
        if wishes and self._draft is not None:
            self._draw(self._draft, list(wishes.items()), part)
        if any(sequence.guesses for sequence in able):
            self._unguessed = 0

    def settle(self, sequence: Sequence, guesses: list[int], taken: Items[int]) -> None:
        """Learn from the tokens that a step with these guesses brought."""
        if not guesses:
            return
        right = 0
        drawn = sequence.id in self._drawn
        for token, guess in zip(taken, guesses, strict=False):
            right += token == guess
            if drawn:
                self._learn(sequence, token == guess)
        self.drafts += 1
        self.draft_tokens += len(guesses)
        self.accepted_tokens += len(taken) - 1
        if drawn and self._draft is not None:
            self._count(len(guesses), len(taken) - 1, 0.0)
            self._draft.accept(sequence, min(right, len(guesses) - 1))

    def _look_up(self, able: list[Sequence], part: Part) -> None:
        self._unguessed += 1
        for sequence in able:
            share = self._cost.row(len(sequence.tokens)) / part.each
            if self._unguessed > UNGUESSED:
                share = min(share, CHEAP)
            sequence.guesses = sequence.look_up(self._most(sequence), share)
            if sequence.guesses:
                self._unguessed = 0

    def _fit(self, sequence: Sequence, count: int, running: int) -> int:
        """Get a block for so many guesses; else, how many fit into those held.

        Nobody is preempted for a guess: a block for each running sequence stays available.
        """
        length, held = len(sequence.tokens), len(sequence.blocks)
        need = blocks_of(length + count) - held
        if not count or need <= 0:
            return count
        if need + running > self._pool.available:
            return max(0, held * BLOCK - length)
        sequence.hold(self._pool.allocate(need))
        return count

    def _most(self, sequence: Sequence) -> int:
        """Guesses that may be of use: the step brings one token more than are guessed."""
        return min(MOST, sequence.limit - len(sequence.tokens) - 1)

    # The draft model ----------------------------------------------------------------------------

    def _wishes(self, draft: DraftModel, able: list[Sequence], part: Part) -> list[Wish]:
        """Whom the draft model shall guess for, and how many tokens.

        The fewer they are, the more of its step each of them pays: those drop out whom it does not
        pay for, until it does for all that are left.
        """
        self._debt = max(0.0, self._debt - TRIAL_SHARE * part.step)
        for sequence in able:
            sequence.trust.fade(FADE)
        asked = [
            s
            for s in able
            if s.draft is not None and (not s.guesses or s.draft.chance < self._chance(s))
        ]
        wishes: list[Wish] = [(sequence, 0) for sequence in asked]
        while wishes:
            kept = [(s, k) for s, _ in wishes if (k := self._wish(draft, s, part, len(wishes)))]
            if len(kept) == len(wishes):
                return kept
            wishes = kept
        return self._trial(draft, asked)

    def _wish(self, draft: DraftModel, sequence: Sequence, part: Part, sharing: int) -> int:
        """How many guesses pay, when `sharing` sequences share the draft model's steps."""
        chance, length = self._chance(sequence), len(sequence.tokens)
        share = self._share(draft, length, part, sharing) + self._cost.row(length) / part.each
        most = min(self._most(sequence), draft.context - length)
        count, speed = worth(lambda _: chance, most, share)
        if not count:
            return 0
        saved = part.each * (1 - 1 / speed) * min(sequence.limit - length, HORIZON)
        behind = draft.cost.prefill(draft.lag(sequence) - 1, sequence.drafted)
        return count if saved > behind else 0

    def _trial(self, draft: DraftModel, asked: list[Sequence]) -> list[Wish]:
        """A single sequence's guesses now and then: what they cost now shows from them, too."""
        able = [s for s in asked if min(self._most(s), draft.context - len(s.tokens)) >= TRIAL]
        if not able or (self._debt and all(s.id != self._tried for s in able)):
            return []
        tried = min(able, key=lambda s: (s.id != self._tried, draft.lag(s)))
        self._tried = tried.id
        return [(tried, TRIAL)]

    def _draw(self, draft: DraftModel, wishes: list[Wish], part: Part) -> None:
        """Let the draft model guess. While it catches up, a step about doubles at most."""
        before = draft.seconds
        room = max(BLOCK, min(STEP_TOKENS, draft.cost.fitting(part.step, 0)))
        try:
            ready = draft.guess(wishes, room)
        except Exception:
            log.exception("the draft model failed; speculation goes on without it")
            self._draft = None
            for sequence, _ in wishes:
                sequence.guesses = []
            ready = []
        self.seconds = draft.seconds - before
        self._count(0, 0, self.seconds)
        self._drawn.update(sequence.id for sequence in ready)
        for sequence in ready:
            if not sequence.guesses:
                self._learn(sequence, False)
        if [sequence.id for sequence, _ in wishes] == [self._tried]:
            rows = sum(len(s.guesses) * self._cost.row(len(s.tokens)) for s in ready)
            self._debt += self.seconds + rows
            self._tried = "" if ready else self._tried

    def _learn(self, sequence: Sequence, right: bool) -> None:
        self._trust.fade(FADE)
        self._trust.learn(right)
        sequence.trust.learn(right)

    def _count(self, guesses: int, accepted: int, seconds: float) -> None:
        old = self.model
        self.model = DraftStats(
            tokens=old.tokens + guesses,
            accepted=old.accepted + accepted,
            seconds=old.seconds + seconds,
        )

    def _chance(self, sequence: Sequence) -> float:
        """Of the draft model's next guess for the sequence to be right."""
        general, own = self._trust, sequence.trust
        believed = FIRM * general.hits / general.trials
        return (own.hits + believed) / (own.trials + FIRM)

    @staticmethod
    def _share(draft: DraftModel, length: int, part: Part, sharing: int) -> float:
        """What the draft model takes for a guess, over what the sequence's part of a step does."""
        return (draft.cost.row(length) + draft.cost.fixed / sharing) / part.each
