"""Training samples: phrasings vary, tokens and weights line up, nothing held out is drawn."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer

from mainspring.registry.model import EMBEDDED_PATH
from training.corpus import load_corpus, normalized
from training.phrasing import expand, rephrase
from training.samples import Mixture, Sampler


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


def test_a_pattern_reads_as_each_of_its_alternatives() -> None:
    rng = random.Random(2)
    readings = {expand("[set|change] the [port|port [number|]]", rng) for _ in range(200)}
    assert readings == {f"{verb} the {noun}" for verb in ("set", "change") for noun in NOUNS}


NOUNS = ("port", "port number")


def test_every_pattern_can_be_read() -> None:
    corpus = load_corpus()
    rng = random.Random(3)
    patterns = [*corpus.out_of_domain.patterns, *corpus.out_of_domain.shared]
    for entry in corpus.entries:
        patterns += [*entry.tasks, *entry.subjects, *entry.sayings]
    assert len(patterns) > 400
    for pattern in patterns:
        for _ in range(5):
            text = expand(pattern, rng)
            assert text.strip(), pattern
            assert not set("[]") & set(text), pattern


def test_no_scored_question_is_ever_drawn_for_training() -> None:
    corpus = load_corpus()
    tokenizer = Tokenizer.from_file(str(EMBEDDED_PATH / "tokenizer.json"))
    sampler = Sampler(corpus, Mixture(), tokenizer, seed=4)
    scored = {normalized(question) for question in corpus.scored()}
    drawn = [sampler.pair() for _ in range(5000)]
    assert not scored & {normalized(question) for question, _ in drawn}
    refusals = set(corpus.out_of_domain.refusals.values())
    share = sum(answer in refusals for _, answer in drawn) / len(drawn)
    assert share == pytest.approx(Mixture().out_of_domain, abs=0.03)


def test_weights_fall_on_what_the_model_must_say() -> None:
    corpus = load_corpus()
    tokenizer = Tokenizer.from_file(str(EMBEDDED_PATH / "tokenizer.json"))
    sampler = Sampler(corpus, Mixture(history=0.0, long_history=0.0, cut=0.0), tokenizer, seed=5)
    for _ in range(200):
        ids, weights = sampler.conversation()
        assert len(ids) == len(weights)
        start = ids.index(tokenizer.token_to_id("<|assistant|>"))
        assert all(weight < 0.5 for weight in weights[: start + 1])
        assert all(weight == 1.0 for weight in weights[start + 1 :])
        assert ids[-1] == tokenizer.token_to_id("<|end|>")
