"""Train mainspring-guide and export it: `python -m training.train`, then `training.evaluate`.

Needs torch and transformers, which the package itself never needs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from training.batches import batches
from training.corpus import Corpus, load_corpus
from training.export import check_export, export
from training.model import Llama, Shape
from training.phrasing import expand
from training.samples import Mixture, Sampler
from training.tokenizer import encode_turn, train_tokenizer

ROOT = Path(__file__).parent
TARGET = ROOT.parent / "mainspring" / "registry" / "mainspring-guide"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end earlier, if it must")
    parser.add_argument("--output", type=Path, default=TARGET, help="where the checkpoint goes")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint and its tokenizer")
    parser.add_argument("--vocabulary", type=int, default=3072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def texts(corpus: Corpus, seed: int) -> list[str]:
    """What the tokenizer learns its merges from: everything that is trained on."""
    rng = random.Random(seed)
    out = corpus.out_of_domain
    asked = [q for entry in corpus.entries for q in entry.questions]
    patterns = [p for e in corpus.entries for p in (*e.tasks, *e.subjects, *e.sayings)]
    asked += [
        expand(pattern, rng)
        for pattern in (*patterns, *out.patterns, *out.shared)
        for _ in range(4)
    ]
    asked += [*out.questions, *out.templates, *out.product_templates, *out.unclear]
    lists = [*out.topics, *out.products]
    # A word inside a sentence starts with a space, and people type in lower case.
    spaced = [f" {text}" for text in (*asked, *lists)]
    answers = [entry.answer for entry in corpus.entries] * 3
    return [*asked, *spaced, *(text.lower() for text in asked), *answers, *out.refusals.values()]


def loss_of(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next token.

    Logits are computed only where a token has a weight: they are a quarter of the work. The rows
    are filled up to a multiple of 128 with the first, at no weight, to have few shapes.
    """
    wanted = weights[:, 1:].flatten()
    rows = wanted.nonzero().flatten()
    rows = F.pad(rows, (0, -len(rows) % 128))
    wanted = wanted[rows] * (rows.diff(prepend=rows.new_tensor([-1])) > 0)
    logits = model.logits(model.model(ids[:, :-1]).flatten(0, 1)[rows])
    losses = F.cross_entropy(logits.float(), ids[:, 1:].flatten()[rows], reduction="none")
    return (losses * wanted).sum() / wanted.sum()


def optimizer_of(model: Llama, rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def schedule(done: float, warmup: float = 0.03, floor: float = 0.02) -> float:
    """Share of the peak rate when the share `done` of the training is over."""
    if done < warmup:
        return max(done / warmup, 0.01)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def fit(model: Llama, sampler: Sampler, options: argparse.Namespace) -> int:
    """Train for the asked steps, or for the asked minutes if they are over first.

    Returns the number of steps. The same seed and steps give the same model; minutes do not.
    """
    optimizer = optimizer_of(model, options.rate)
    model.train()
    start = time.monotonic()
    recent = 0.0
    for step, (ids, weights) in enumerate(batches(sampler, options.batch)):
        elapsed = (time.monotonic() - start) / 60
        done = max(step / options.steps, elapsed / options.minutes)
        if done >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = options.rate * schedule(done)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, ids, weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += loss.item()
        if step % 100 == 99:
            rate = (step + 1) / elapsed
            print(f"step {step + 1}  {done:5.1%}  {recent / 100:.4f}  {rate:.0f}/min", flush=True)
            recent = 0.0
    raise AssertionError("batches are endless")


def beginning(corpus: Corpus, options: argparse.Namespace) -> tuple[Tokenizer, Llama]:
    """A new tokenizer and random weights, or those of the checkpoint to start from."""
    shape = Shape(
        vocabulary=options.vocabulary,
        hidden=options.hidden,
        inner=options.inner,
        layers=options.layers,
    )
    model = Llama(shape, dropout=options.dropout)
    if options.start is None:
        return train_tokenizer(texts(corpus, options.seed), options.vocabulary), model
    tokenizer = Tokenizer.from_file(str(options.start / "tokenizer.json"))
    model.load_state_dict(load_file(options.start / "model.safetensors"))
    return tokenizer, model


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    corpus = load_corpus()
    tokenizer, model = beginning(corpus, options)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(corpus.entries)} entries, {parameters:,} parameters", flush=True)
    sampler = Sampler(corpus, Mixture(), tokenizer, options.seed)
    start = time.monotonic()
    steps = fit(model, sampler, options)
    export(model, tokenizer, options.output)
    asked = itertools.islice((e.questions[0] for e in corpus.entries), 8)
    prompts = [encode_turn(tokenizer, "user", question) for question in asked]
    worst = check_export(model, options.output, prompts)
    record = {
        "entries": len(corpus.entries),
        "parameters": parameters,
        "start": options.start and options.start.name,
        "steps": steps,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "threads": options.threads,
        "seed": options.seed,
        "logits_against_transformers": float(f"{worst:.1e}"),
        "weight_bytes": (options.output / "model.safetensors").stat().st_size,
    }
    print(json.dumps(record))
    runs = ROOT / "runs"
    runs.mkdir(exist_ok=True)
    (runs / f"{options.output.name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
