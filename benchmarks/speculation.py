"""Decode speed with and without speculation, in turns; figures are medians of ratios of pairs.

    python benchmarks/speculation.py --save

The model is real in cost: random weights of the shape in int8, every row computed in full. What it
says is planted where a trained model would be needed: `Scripted` makes one text all but certain,
the same for all sequences, so guesses are right exactly where that text repeats. The texts:

    copy    the prompt again and again, one token in 24 another: an edit of a given text
    noise   64 different tokens at random: pairs come again, and nothing follows from them
    new     tokens at random of the whole vocabulary: nothing to guess; what looking costs
    own     nothing planted: the weights' own text, which repeats itself when greedy and not else

In cells with `agreement` a draft model guesses too, for "new", where lookup finds nothing. It is
real in cost, too: random weights of DRAFT_SHAPE, about a seventh of the 0.5B shape. What it agrees
with is planted: it says the same token at so many of the positions, and another at the others.

No cell says what a real task gains: that depends on how much of its output stands in its input,
and on how often a trained draft model agrees. Both sides must give the same tokens. `cpu` is the
ratio of the process's CPU time, which other load on the machine disturbs least (take --threads 1
then: threads that wait spin).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from benchmarks.shapes import QWEN_05B, SHAPES
from mainspring.engine.architectures import Architecture, ModelShape
from mainspring.engine.batch import Batch
from mainspring.engine.engine import Engine, EngineConfig
from mainspring.engine.weights import random_model
from mainspring.kernels import Array, Cache, Kernels, blocks_of, load_kernels
from mainspring.types import Sampling

ROOT = Path(__file__).parents[1]
TEXTS = ("copy", "noise", "new", "own")
AGREEMENTS = (0.8, 0.3, 0.0)
DRAFT_SHAPE = {
    **QWEN_05B,
    "hidden_size": 384,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
}
"""with the vocabulary of the model"""
PROMPT, OUTPUT = 64, 192
EDIT = 24
"""one token in so many of a copy is another"""
SURE = 1e4
"""what a planted token's logit is raised by"""


class Scripted:
    """An Architecture that computes everything and then says `text`, by position."""

    def __init__(self, model: Architecture, text: Array | None) -> None:
        self._model = model
        self._text = text

    @property
    def shape(self) -> ModelShape:
        return self._model.shape

    @property
    def progress(self) -> int:
        return self._model.progress

    def forward(self, batch: Batch, cache: Cache) -> Array:
        logits = self._model.forward(batch, cache)
        if self._text is not None:
            rows = np.arange(len(logits))
            logits[rows, self._text[batch.positions[batch.logit_rows] + 1]] += SURE
        return logits


def text_of(name: str, vocabulary: int) -> Array | None:
    """PROMPT + OUTPUT token ids and one more, or None for the model's own."""
    rng = np.random.default_rng(1)
    length = PROMPT + OUTPUT + 1
    if name == "own":
        return None
    text = rng.integers(1, 65 if name == "noise" else vocabulary, length)
    if name == "copy":
        text = np.resize(text[:PROMPT], length)
        edited = np.arange(PROMPT + EDIT - 1, length, EDIT)
        text[edited] = rng.integers(1, vocabulary, len(edited))
    return text


def says(text: Array, agreement: float, vocabulary: int) -> Array:
    """`text` with another token at all but this share of the positions."""
    rng = np.random.default_rng(2)
    other = (text + rng.integers(1, vocabulary, len(text))) % vocabulary
    return np.where(rng.random(len(text)) < agreement, text, other)


def decode(
    model: Scripted,
    kernels: Kernels,
    prompts: Array,
    temperature: float,
    speculation: bool,
    draft: Scripted | None,
) -> tuple[float, float, list[list[int]], Engine]:
    """Seconds and CPU seconds once every sequence has its first token, all tokens, the Engine."""
    blocks = len(prompts) * (blocks_of(PROMPT + OUTPUT) + 1)
    config = EngineConfig(blocks=blocks, prefix_cache=False, speculation=speculation)
    engine = Engine(model, kernels, config, draft=draft)
    tokens: dict[str, list[int]] = {}
    for seed, prompt in enumerate(prompts.tolist()):
        sampling = Sampling(temperature=temperature, seed=seed, max_tokens=OUTPUT, ignore_eos=True)
        tokens[str(seed)] = []
        engine.add(str(seed), prompt, sampling)
    began, cpu = 0.0, 0.0
    while engine.has_work:
        for output in engine.step():
            tokens[output.id] += output.tokens
        if not began and all(tokens.values()):
            began, cpu = time.perf_counter(), time.process_time()
    seconds = time.perf_counter() - began
    return seconds, time.process_time() - cpu, list(tokens.values()), engine


def compare(
    model: Architecture,
    kernels: Kernels,
    name: str,
    temperature: float,
    sequences: int,
    pairs: int,
    draft: Architecture | None = None,
    agreement: float | None = None,
) -> dict[str, Any]:
    """One cell: `pairs` runs of each side, by turns one and the other first."""
    vocabulary = model.shape.vocabulary
    text = text_of(name, vocabulary)
    small = None
    if draft is not None and text is not None and agreement is not None:
        small = Scripted(draft, says(text, agreement, vocabulary))
    rng = np.random.default_rng(1)
    prompts = rng.integers(1, vocabulary, (sequences, PROMPT))
    if text is not None:
        prompts[:] = text[:PROMPT]
    walls: list[float] = []
    cpus: list[float] = []
    stats, given = {}, []
    for turn in range(pairs):
        took = {}
        for side in (False, True) if turn % 2 else (True, False):
            took[side] = decode(
                Scripted(model, text), kernels, prompts, temperature, side, small if side else None
            )
            stats[side] = took[side][3].stats()
            given.append(took[side][2])
        walls.append(took[False][0] / took[True][0])
        cpus.append(took[False][1] / took[True][1])
    if any(tokens != given[0] for tokens in given):
        raise RuntimeError(f"{name}: speculation changed the tokens")
    return {
        "text": name,
        "agreement": agreement,
        "temperature": temperature,
        "sequences": sequences,
        "ratio": round(statistics.median(walls), 3),
        "spread": [round(min(walls), 3), round(max(walls), 3)],
        "cpu": round(statistics.median(cpus), 3),
        "cpu_spread": [round(min(cpus), 3), round(max(cpus), 3)],
        "steps_off": stats[False].steps,
        "steps_on": stats[True].steps,
        "draft_tokens": stats[True].draft_tokens,
        "accepted_tokens": stats[True].accepted_tokens,
        "output_tokens": stats[True].output_tokens,
        "model_draft_tokens": stats[True].draft_model.tokens,
        "draft_seconds": round(stats[True].draft_model.seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--texts", nargs="*", choices=TEXTS, default=TEXTS)
    parser.add_argument("--agreements", nargs="*", type=float, default=AGREEMENTS)
    parser.add_argument("--temperatures", nargs="+", type=float, default=(0.0,))
    parser.add_argument("--sequences", nargs="+", type=int, default=(1, 4, 16))
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    kernels = load_kernels(threads=options.threads)
    model = random_model(SHAPES[options.shape], kernels, format="int8", seed=0)
    vocabulary = model.shape.vocabulary
    draft = random_model({**DRAFT_SHAPE, "vocab_size": vocabulary}, kernels, format="int8", seed=1)
    compare(model, kernels, "new", 0.0, 1, 1, draft, 0.0)  # memory is touched
    cells = [(name, None) for name in options.texts]
    cells += [("new", agreement) for agreement in options.agreements]
    rows = []
    for name, agreement in cells:
        for temperature in options.temperatures:
            for sequences in options.sequences:
                cell = (name, temperature, sequences, options.pairs)
                rows.append(compare(model, kernels, *cell, draft, agreement))
                print(json.dumps(rows[-1]), flush=True)
    if options.save:
        about = {"kernels": kernels.name, "threads": options.threads, "format": "int8"}
        save(f"speculation-{options.shape}", about=about, rows=rows)


main()
