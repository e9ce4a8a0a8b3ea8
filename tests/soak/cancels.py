"""Sequences cancelled in a chosen phase of their life, on an Engine that is never idle."""

from __future__ import annotations

import random
from collections import Counter

from mainspring.engine.engine import Engine
from mainspring.engine.sequence import Sequence
from mainspring.kernels import Kernels
from mainspring.types import Sampling
from tests.unit.engine.toy import Toy, prompt, toy_engine

__all__ = ["PHASES", "Cancels", "phase"]

PHASES = (
    "waiting",
    "preempted",
    "first chunk",
    "between chunks",
    "decoding",
    "guessing",
    "sharing",
    "ended",
)


def phase(engine: Engine, sequence: Sequence) -> str:
    """What an added sequence is doing between two steps."""
    if not sequence.blocks:
        return "preempted" if sequence.admitted else "waiting"
    holders = engine._pool._holders
    if any(holders[block] > 1 for block in sequence.blocks):
        return "sharing"
    if sequence.pending > 1:
        chunks = sum(event.name == "prefill" for event in sequence.events)
        return "first chunk" if chunks == 1 else "between chunks"
    guessed = sequence.draft is not None and sequence.draft._source
    return "guessing" if guessed else "decoding"


class Cancels:
    """One Engine whose sequences are cancelled, each time in the phase met least so far."""

    def __init__(self, kernels: Kernels, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self._added = 0
        self.engine = toy_engine(
            model=Toy(kernels),
            kernels=kernels,
            blocks=rng.choice([16, 24, 64]),
            max_running=rng.choice([2, 6, 16]),
            step_seconds=rng.choice([1e-9, 0.02]),
            prefix_cache=rng.random() < 0.8,
        )

    def run(self, count: int) -> None:
        """Until `count` are cancelled and no sequence is left."""
        while self.tally.total() < count:
            if len(self.engine._sequences) < 20:
                self._add()
            if self.rng.random() < 0.06:  # in between they grow, until some are preempted
                for _ in range(self.rng.randint(1, 4)):
                    self._cancel()
            self.engine.step()
            self._check()
        while self.engine._sequences:
            self._cancel()
        assert not self.engine.has_work

    def _add(self) -> None:
        rng = self.rng
        tokens = prompt(rng.choice([5, 30, 30, 300]), rng.randrange(4)) * rng.choice([1, 1, 2])
        sampling = Sampling(
            temperature=rng.choice([0.0, 1.0]),
            max_tokens=rng.randint(1, 200),
            ignore_eos=True,
            presence_penalty=rng.choice([0.0, 0.5]),
            prompt_logprobs=rng.choice([None, None, 1]),
        )
        self._added += 1
        id = str(self._added)
        if rng.random() < 0.05:
            told = [1] * (sampling.max_tokens or 1)
            self.engine.add(id, tokens[:100], sampling, generated=told)
            self._abort(id, "ended")  # replayed, but it had said all; nobody was told yet
            return
        self.engine.add(id, tokens[:400], sampling)

    def _cancel(self) -> None:
        sequences = list(self.engine._sequences.values())
        self.rng.shuffle(sequences)
        phases = {phase(self.engine, sequence): sequence for sequence in sequences}
        if phases:
            rarest = min(phases, key=lambda name: self.tally[name])
            self._abort(phases[rarest].id, rarest)

    def _abort(self, id: str, met: str) -> None:
        """The blocks that it held alone are free at once, all others stay."""
        pool, sequence = self.engine._pool, self.engine._sequences.get(id)
        blocks = list(sequence.blocks) if sequence else []
        alone = sum(pool._holders[block] == 1 for block in blocks)
        used = pool.used
        assert self.engine.abort(id) and not self.engine.abort(id)
        assert pool.used == used - alone
        self.tally[met] += 1
        self._check()

    def _check(self) -> None:
        engine = self.engine
        engine._pool.check([s.blocks for s in engine._scheduler.running])
        assert not any(s.blocks for s in engine._scheduler.waiting)
        known = len(engine._scheduler.running) + len(engine._scheduler.waiting)
        assert known == len(engine._sequences)
