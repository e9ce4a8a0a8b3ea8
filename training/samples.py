"""Training samples: conversations as token ids with the loss weight of each token."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tokenizers import Tokenizer

from training.corpus import Corpus, Entry, normalized
from training.phrasing import GLUE, ask_about, ask_how, expand, rephrase
from training.tokenizer import encode_turn

__all__ = ["Mixture", "Sampler"]

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


IDENTIFIER = re.compile(r"`((?:--|MAINSPRING_|HF_)[\w-]+|\w+_\w+)")


def _canonical(name: str) -> str:
    """A setting's name, however it is spelled: flag, variable or field."""
    return name.removeprefix("--").removeprefix("MAINSPRING_").lower().replace("-", "_")


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
    keywords: float = 0.10
    identifiers: float = 0.03
    """Share of questions for a flag, variable or field that only this entry's answer names."""
    subword_dropout: float = 0.08
    prompt_share: float = 0.3
    prompt_weight: float = 0.15
    """Share of the question tokens that are learned too, and their loss weight; small, only to
    learn which words go together."""
    invented: float = 0.12
    """Share of the topics to refuse that are made-up words: no list has all that people ask."""


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

        self.apart = {normalized(question) for question in corpus.scored()}
        named = {entry.id: set(IDENTIFIER.findall(entry.answer)) for entry in corpus.entries}
        every = [key for names in named.values() for key in {_canonical(n) for n in names}]
        self.own = {
            id: sorted(name for name in names if every.count(_canonical(name)) == 1)
            for id, names in named.items()
        }

    def pair(self) -> tuple[str, str]:
        """A question as someone might type it, and its answer; never one that is scored."""
        while True:
            question, answer = self._drawn()
            if normalized(question) not in self.apart:
                return question, answer

    def _drawn(self) -> tuple[str, str]:
        if self.rng.random() < self.mixture.out_of_domain:
            return self._refused()
        entry: Entry = self.rng.choice(self.corpus.entries)
        return self._question(entry), entry.answer

    def _question(self, entry: Entry) -> str:
        rng = self.rng
        draw = rng.random()
        if draw < self.mixture.keywords:
            return self._keywords(entry)
        if draw < self.mixture.keywords + self.mixture.identifiers and self.own[entry.id]:
            word = rng.choice(self.own[entry.id])
            return rephrase(rng.choice(("what does {} do", "what is {}", "{}")).format(word), rng)
        return rephrase(self._wording(entry), rng)

    def _wording(self, entry: Entry) -> str:
        """A written question, or a reading of a pattern, before it is rephrased."""
        rng = self.rng
        patterns = (*entry.tasks, *entry.subjects, *entry.sayings)
        if not patterns or rng.random() < 0.4:
            return rng.choice(entry.questions)
        chosen = rng.choice(patterns)
        text = expand(chosen, rng)
        if chosen in entry.tasks:
            return ask_how(text, rng)
        return ask_about(text, rng) if chosen in entry.subjects else text

    def _keywords(self, entry: Entry) -> str:
        """Words of two wordings, mixed: which words occur counts, not only how they are put."""
        rng = self.rng
        words = f"{self._wording(entry)} {self._wording(entry)}".lower().split()
        content = [w for w in (word.strip("?.!,") for word in words) if w and w not in GLUE]
        rng.shuffle(content)
        return " ".join(content[: rng.randint(2, 5)]) or entry.questions[0]

    def _refused(self) -> tuple[str, str]:
        rng, out = self.rng, self.corpus.out_of_domain
        draw = rng.random()
        if draw < 0.18:
            return rephrase(expand(rng.choice(out.patterns), rng), rng), out.refusals["general"]
        if draw < 0.40:
            return rephrase(expand(rng.choice(out.shared), rng), rng), out.refusals["general"]
        if draw < 0.60:
            question = rng.choice(out.templates).replace("{topic}", self._topic())
            return rephrase(question, rng), out.refusals["general"]
        if draw < 0.74:
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

    def _topic(self) -> str:
        if self.rng.random() >= self.mixture.invented:
            return self.rng.choice(self.corpus.out_of_domain.topics)
        pairs = self.rng.randint(2, 4)
        word = "".join(self.rng.choice(CONSONANTS) + self.rng.choice(VOWELS) for _ in range(pairs))
        return self.rng.choice(("{}", "the {}", "{}s", "a {}", "{}n")).format(word)

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
        mixture, rng = self.mixture, self.rng
        weights = [mixture.prompt_weight * (rng.random() < mixture.prompt_share) for _ in prompt]
        return prompt + reply, [0.0, *weights[1:], 0.0] + [1.0] * (len(reply) - 1)

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
