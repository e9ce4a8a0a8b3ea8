"""The shipped checkpoint: small, whole, and right about questions that it never saw."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from mainspring.registry.model import EMBEDDED_PATH as GUIDE
from training.corpus import load_corpus
from training.evaluate import ROOT, digest, mainspring_answerer

MIB = 1 << 20


def test_the_weights_fit_the_wheel() -> None:
    assert (GUIDE / "model.safetensors").stat().st_size <= 12 * MIB
    assert sum(path.stat().st_size for path in GUIDE.iterdir()) <= 13 * MIB


def test_the_tokenizer_keeps_any_text() -> None:
    tokenizer = Tokenizer.from_file(str(GUIDE / "tokenizer.json"))
    for text in ("how do I add an API key?", "naïve 東京 🙂\n\tx", "`--kv-memory 2GiB`"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    config = json.loads((GUIDE / "config.json").read_text())
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert tokenizer.token_to_id("<|end|>") == config["eos_token_id"]


def test_the_recorded_score_is_of_this_checkpoint_and_good() -> None:
    results = json.loads((ROOT / "results.json").read_text())
    assert results["evaluation"]["weights_sha256"] == digest(GUIDE)
    assert results["evaluation"]["right"] >= 0.9
    assert results["evaluation"]["refused"] >= 0.9


@pytest.fixture(scope="module")
def asked() -> dict[str, str]:
    """Held-out questions of this test -> the text that the guide gives greedily."""
    corpus = load_corpus()
    wrong = {
        row["question"]
        for row in json.loads((ROOT / "results.json").read_text())["evaluation"]["mistakes"]
    }
    inside = [q for e in corpus.entries[::16] for q in e.held_out[:1] if q not in wrong]
    outside = [q for q in corpus.out_of_domain.held_out[::20] if q not in wrong]
    questions = ["how do I add an API key?", "hello", *inside, *outside]
    answers = mainspring_answerer(GUIDE)(questions)
    return dict(zip(questions, answers, strict=True))


def test_the_guide_answers_from_the_manual(asked: dict[str, str]) -> None:
    corpus = load_corpus()
    wanted = {q: e.answer for e in corpus.entries for q in e.held_out if q in asked}
    assert len(wanted) >= 5
    assert {q: asked[q] for q in wanted} == wanted
    assert "MAINSPRING_API_KEY" in asked["how do I add an API key?"]
    assert "mainspring-guide" in asked["hello"]


def test_the_guide_refuses_what_it_cannot_know(asked: dict[str, str]) -> None:
    corpus = load_corpus()
    outside = [q for q in corpus.out_of_domain.held_out if q in asked]
    assert len(outside) >= 3
    assert all(asked[q] in corpus.out_of_domain.refusals.values() for q in outside)
