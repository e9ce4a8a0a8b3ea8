"""Batch invariance by trial: each sequence under random circumstances, against itself alone."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from mainspring.engine.architectures import Architecture
from mainspring.engine.disk import DiskPlace
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.quantize import FORMATS
from mainspring.engine.sequence import Output, TokenLogprob
from mainspring.engine.tier import Speed
from mainspring.engine.weights import load_model
from mainspring.kernels import BLOCK, Kernels, KvFormat, load_kernels
from mainspring.types import Finish, Sampling
from tests.parity.checkpoint import write_checkpoint
from tests.parity.rows import ROWS
from tests.unit.engine.test_invariance import random_sampling

__all__ = ["FAMILIES", "Models", "Trials"]

FAMILIES = ("llama3", "qwen2", "gemma2", "mixtral_fused", "gpt_oss", "deepseek_v2", "phi3")
"""rows of the parity table: windows, softcaps, biases, experts, sinks and latents are among them"""
RECORDED = Path(__file__).parents[1] / "parity" / "recorded"
VOCABULARY, CONTEXT = 160, 256
ROUND = 20
"""trials that share an Engine, one life of it after the other"""


class Models:
    """The tiny models, each loaded when first asked for."""

    def __init__(
        self, directory: Path, isa: str = "auto", wrap: Callable[[Kernels], Any] = lambda k: k
    ) -> None:
        self.directory = directory
        self._kernels = cache(lambda threads: wrap(load_kernels(isa, threads)))
        self.load = cache(self._load)

    def _load(self, name: str, format: Any, threads: int) -> tuple[Architecture, Kernels]:
        path = self.directory / name
        if not path.exists():
            with np.load(RECORDED / f"{name}.npz") as recorded:
                layout = json.loads(str(recorded["layout"]))
            write_checkpoint(path, ROWS[name], layout)
        kernels = self._kernels(threads)
        return load_model(path, kernels, format=format, context=CONTEXT), kernels


class Answer(msgspec.Struct):
    """All that an Engine tells of a sequence, but for times and the cache."""

    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    finish: Finish | None = None
    stop_reason: int | None = None

    def take(self, output: Output) -> None:
        assert output.error is None and self.finish is None
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.finish, self.stop_reason = output.finish, output.stop_reason

    @property
    def bits(self) -> bytes:
        """Equal where every token and every bit of every number is."""
        return msgspec.msgpack.encode(self)


@dataclass
class Trial:
    prompt: list[int]
    sampling: Sampling
    salt: bytes
    told: Answer = field(default_factory=Answer)


class Clock:
    """Time that passes in jumps, so that the Engine learns nonsense and cuts prompts anywhere."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._scale = 10 ** rng.uniform(-6, 0)
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self._rng.expovariate(1) * self._scale
        return self.now


class Whim(Speed):
    """Moving a block pays or not, whatever it costs: on so small a model it hardly ever would."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(0.0)
        self._rng = rng

    def beats(self, seconds: float) -> bool:
        return self._rng.random() < 0.7


class Trials:
    """One round: the same model, cache type and instruction set, everything else at random.

    The seed decides everything but when a disk answers, so a difference can be looked at again.
    """

    def __init__(self, models: Models, seed: int, **fixed: Any) -> None:
        self.rng = rng = random.Random(seed)
        self._models = models
        self._name = fixed.get("name") or rng.choice(FAMILIES)
        self._format = fixed.get("format") or rng.choice(FORMATS)
        self._dtype: KvFormat = rng.choice(get_args(KvFormat))
        self._file = models.directory / f"{seed}.blocks"
        self.tally: Counter[str] = Counter()
        self._ids = itertools.count()
        self._beginnings = [self._text(rng.randint(1, 150)) for _ in range(3)]
        self.trials = [self._trial() for _ in range(ROUND)]
        self._live: dict[str, Trial] = {}
        self._engine = self._start()

    def _text(self, length: int) -> list[int]:
        """Random tokens, repeating after a while."""
        words = [self.rng.randrange(VOCABULARY) for _ in range(self.rng.choice([3, 20, 200]))]
        return list(itertools.islice(itertools.cycle(words), length))

    def _trial(self) -> Trial:
        rng = self.rng
        beginning = rng.choice(self._beginnings)
        prompt = beginning[: rng.choice([len(beginning), rng.randint(1, 150)])]
        prompt = prompt + self._text(rng.choice([0, 1, rng.randint(1, 50)]))
        sampling = msgspec.structs.replace(
            random_sampling(rng),
            max_tokens=rng.choice([rng.randint(1, 20), rng.randint(1, 120)]),
            logprobs=rng.randrange(4),
            prompt_logprobs=rng.choice([None, None, None, 0, 2]),
        )
        return Trial(prompt, sampling, rng.choice([b"", b"", b"a"]))

    # One sequence alone -------------------------------------------------------------------------

    def alone(self, trial: Trial) -> Answer:
        """One thread, the prompt in one piece, nothing cached, nothing guessed."""
        model, kernels = self._models.load(self._name, self._format, 1)
        config = EngineConfig(
            blocks=CONTEXT // BLOCK,
            max_running=1,
            step_seconds=1e9,
            prefix_cache=False,
            speculation=False,
            dtype=self._dtype,
        )
        engine = Engine(model, kernels, config)
        engine.add("alone", trial.prompt, trial.sampling)
        answer = Answer()
        while engine.has_work:
            for output in engine.step():
                answer.take(output)
        return answer

    # All of them together -----------------------------------------------------------------------

    def _start(self) -> Engine:
        rng = self.rng
        threads = rng.choice([1, 1, 2, 3])
        config = EngineConfig(
            blocks=CONTEXT // BLOCK + rng.choice([0, 0, 1, 2, 4, 40]),
            max_running=rng.choice([1, 4, ROUND, ROUND]),
            step_seconds=10 ** rng.uniform(-6, 1),
            prefix_cache=rng.random() < 0.8,
            prefix_memory=rng.choice([0, 1 << 16, 1 << 20]),
            prefix_disk=rng.choice([None, DiskPlace(self._file, 1 << 20, b"")]),
            speculation=rng.random() < 0.8,
            dtype=self._dtype,
        )
        self.tally[f"{self._dtype} cache"] += 1
        self.tally[f"{threads} threads"] += 1
        model, kernels = self._models.load(self._name, self._format, threads)
        engine = Engine(model, kernels, config, Clock(rng))
        engine._tier._copies = engine._tier._reads = Whim(rng)
        return engine

    def run(self) -> None:
        """Until every trial has ended; some are begun again by a new Engine in the middle."""
        rng, waiting = self.rng, list(self.trials)
        mates: list[str] = []
        while waiting or self._live:
            chance = rng.random()
            if waiting and chance < 0.3:
                for trial in [waiting.pop() for _ in waiting[: rng.choice([1, 1, 3, ROUND])]]:
                    self._live[self._add(trial)] = trial
            elif chance < 0.34:
                mates.append(self._add(self._trial()))
            elif mates and chance < 0.38:
                self.tally["aborts"] += self._engine.abort(mates.pop())
            elif chance < 0.39:
                self._restart()
            self._step()
        self._end()
        self._file.unlink(missing_ok=True)

    def _add(self, trial: Trial) -> str:
        id = str(next(self._ids))
        told = trial.told.tokens
        self._engine.add(id, trial.prompt, trial.sampling, salt=trial.salt, generated=told)
        return id

    def _restart(self) -> None:
        self._end()
        self._engine = self._start()
        self.tally["restarts"] += 1
        self.tally["replays"] += sum(bool(trial.told.tokens) for trial in self._live.values())
        self._live = {self._add(trial): trial for trial in self._live.values()}

    def _step(self) -> None:
        for output in self._engine.step():
            if (trial := self._live.get(output.id)) is None:
                continue
            trial.told.take(output)
            batch = max((time.batch for time in output.times), default=0)
            self.tally["largest batch"] = max(batch, self.tally["largest batch"])
            self.tally["chunks"] += sum(event.name == "prefill" for event in output.events)
            if output.finish is not None:
                del self._live[output.id]

    def _end(self) -> None:
        self._engine.close()
        stats = self._engine.stats()
        for name in ("steps", "preemptions", "cached_tokens", "draft_tokens", "accepted_tokens"):
            self.tally[name] += getattr(stats, name)
        self.tally["tokens from memory"] += stats.tier.memory_tokens
        self.tally["tokens from disk"] += stats.tier.disk_tokens

    def differences(self) -> list[Trial]:
        """Trials that were told anything else than alone."""
        self.tally["trials"] += len(self.trials)
        self.tally["tokens"] += sum(len(trial.told.tokens) for trial in self.trials)
        return [trial for trial in self.trials if trial.told.bits != self.alone(trial).bits]
