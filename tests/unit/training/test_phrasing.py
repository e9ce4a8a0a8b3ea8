"""Training samples: phrasings vary, tokens and weights line up, nothing held out is drawn."""

from __future__ import annotations

import random

import pytest

from training.corpus import load_corpus, normalized
from training.phrasing import rephrase


def test_a_question_becomes_many_that_keep_its_words() -> None:
    rng = random.Random(0)
    phrasings = {rephrase("How do I add an API key?", rng) for _ in range(300)}
    assert len(phrasings) > 150
    assert sum("key" in text.lower() for text in phrasings) > 0.6 * len(phrasings)


def test_phrasings_repeat_for_a_seed() -> None:
    first = [rephrase("What does --threads do?", random.Random(7)) for _ in range(5)]
    assert first == [rephrase("What does --threads do?", random.Random(7)) for _ in range(5)]


@pytest.mark.parametrize("question", ["hi", "?", "", "x", "  ", "--isa", "Port?!"])
def test_the_shortest_questions_survive(question: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        assert isinstance(rephrase(question, rng), str)


def test_held_out_questions_are_not_trained_on() -> None:
    corpus = load_corpus()
    trained = {normalized(q) for entry in corpus.entries for q in entry.questions}
    trained |= {normalized(q) for q in corpus.out_of_domain.questions}
    held = [q for entry in corpus.entries for q in entry.held_out]
    assert not trained & {normalized(q) for q in (*held, *corpus.out_of_domain.held_out)}
