"""Training samples: conversations as token ids with a loss mask, batched by length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.corpus import Corpus, Entry
from training.phrasing import rephrase
from training.tokenizer import END, encode_turn

__all__ = ["Mixture", "Sampler", "batches"]

SYSTEMS = (
    "You are a helpful assistant.",
    "You are mainspring-guide, the assistant of the Mainspring inference server.",
    "Answer briefly.",
    "Be concise and friendly.",
    "You answer questions about this server.",
    "Answer the user's question. If you do not know, say so.",
    "You are a careful expert. Think step by step.",
)
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the training mixture."""

    out_of_domain: float = 0.28
    system: float = 0.10
    history: float = 0.22
    long_history: float = 0.04
    cut: float = 0.65
    """Share of samples whose answer is cut after a few tokens: choosing the answer is the hard
    part, its text is learned by heart quickly."""
    cut_range: tuple[int, int] = (4, 14)
    subword_dropout: float = 0.08
    prompt_weight: float = 0.05
    """Loss weight of question tokens; small, only to learn which words go together."""


class Sampler:
    """Draws (question, answer) pairs and whole conversations; deterministic for a seed."""

    def __init__(self, corpus: Corpus, mixture: Mixture, tokenizer: Tokenizer, seed: int) -> None:
        self.corpus = corpus
        self.mixture = mixture
        self.rng = random.Random(seed)
        self.exact = tokenizer
        # The same merges, some of them skipped at random: the same word in other pieces.
        self.loose = Tokenizer.from_str(tokenizer.to_str())
        self.loose.model.dropout = mixture.subword_dropout
        self.answers = {
            text: encode_turn(tokenizer, "assistant", text)
            for text in (
                *(entry.answer for entry in corpus.entries),
                *corpus.out_of_domain.refusals.values(),
            )
        }

    def pair(self) -> tuple[str, str]:
        """A question as someone might type it, and its answer."""
        if self.rng.random() < self.mixture.out_of_domain:
            return self._refused()
        entry: Entry = self.rng.choice(self.corpus.entries)
        return rephrase(self.rng.choice(entry.questions), self.rng), entry.answer

    def _refused(self) -> tuple[str, str]:
        rng, out = self.rng, self.corpus.out_of_domain
        draw = rng.random()
        if draw < 0.40:
            question = rng.choice(out.templates).replace("{topic}", rng.choice(out.topics))
            return rephrase(question, rng), out.refusals["general"]
        if draw < 0.70:
            return rephrase(rng.choice(out.questions), rng), out.refusals["general"]
        if draw < 0.84:
            question = rng.choice(out.product_templates)
            question = question.replace("{product}", rng.choice(out.products))
            return rephrase(question, rng), out.refusals["product"]
        if draw < 0.93:
            documented = [entry for entry in self.corpus.entries if entry.doc]
            question = rng.choice(rng.choice(documented).questions).rstrip("?.! ")
            where = rng.choice((" in {}", " with {}", " for {}", " of {}", " on {}", " using {}"))
            product = rng.choice(out.products)
            if "mainspring" in question.lower():
                question = question.lower().replace("mainspring", product)
            else:
                question += where.format(product)
            return question + rng.choice(("?", "")), out.refusals["product"]
        if draw < 0.97:
            return self._gibberish(), out.refusals["unclear"]
        return rng.choice(out.unclear), out.refusals["unclear"]

    def _gibberish(self) -> str:
        rng = self.rng

        def word() -> str:
            if rng.random() < 0.4:
                return "".join(rng.choice(CONSONANTS + VOWELS) for _ in range(rng.randint(3, 9)))
            return "".join(
                rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 4))
            )

        return " ".join(word() for _ in range(rng.randint(1, 4)))

    def _turn(self, question: str, answer: str, cut: bool) -> tuple[list[int], list[float]]:
        prompt = encode_turn(self.loose, "user", question)
        reply = self.answers[answer]
        if cut and self.rng.random() < self.mixture.cut:
            reply = reply[: self.rng.randint(*self.mixture.cut_range)]
        # The assistant marker is given, not predicted; the question's own words weigh little.
        weights = [0.0] + [self.mixture.prompt_weight] * (len(prompt) - 1)
        return prompt + reply, [*weights, 0.0] + [1.0] * (len(reply) - 1)

    def conversation(self) -> tuple[list[int], list[float]]:
        """Token ids and the loss weight of predicting each of them."""
        ids: list[int] = []
        weights: list[float] = []
        rng = self.rng
        if rng.random() < self.mixture.system:
            ids = encode_turn(self.exact, "system", rng.choice(SYSTEMS))
            weights = [0.0] * len(ids)
        draw = rng.random()
        turns = 1
        if draw < self.mixture.long_history:
            turns = 3
        elif draw < self.mixture.history:
            turns = 2
        for turn in range(turns):
            more, weight = self._turn(*self.pair(), cut=turn == turns - 1)
            ids += more
            weights += weight
        return ids, weights


def batches(sampler: Sampler, tokens: int, pool: int = 2048) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, weights) [batch, length], about `tokens` each, of similar lengths.

    Lengths are multiples of 8 so that few different shapes occur: each new one costs the matrix
    library a compilation.
    """
    end = sampler.exact.token_to_id(END)
    waiting: dict[int, list[tuple[list[int], list[float]]]] = {}
    while True:
        ready = []
        for _ in range(pool):
            row = sampler.conversation()
            length = -(-len(row[0]) // 8) * 8
            rows = waiting.setdefault(length, [])
            rows.append(row)
            if len(rows) == max(tokens // length, 1):
                ready.append((length, waiting.pop(length)))
        sampler.rng.shuffle(ready)
        for length, rows in ready:
            ids = torch.full((len(rows), length), end, dtype=torch.long)
            weights = torch.zeros(len(rows), length)
            for i, (row_ids, row_weights) in enumerate(rows):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                weights[i, : len(row_ids)] = torch.tensor(row_weights)
            yield ids, weights
