"""The corpus: what the guide knows, as questions and answers in TOML files.

An entry has one answer, the place in the manual where it is documented, questions to learn from,
and two kinds of questions that are never trained on: those that the corpus was developed against,
and held-out ones, which were only ever scored. `patterns.toml` has more phrasings of the entries,
with alternatives in brackets; `out_of_domain.toml` has what the guide must refuse; `held_out.toml`
has the held-out questions, apart from what people edit.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Corpus", "Entry", "OutOfDomain", "load_corpus", "normalized"]

FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    doc: str
    """`docs/<page>.md#<anchor>` where the answer is documented; empty for small talk."""
    answer: str
    questions: tuple[str, ...]
    tasks: tuple[str, ...]
    """patterns of what may follow "how do I" """
    subjects: tuple[str, ...]
    """patterns of nouns to ask about"""
    sayings: tuple[str, ...]
    """patterns of whole questions and statements"""
    development: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutOfDomain:
    """What to refuse: whole questions, patterns, and templates with {topic} and {product}."""

    refusals: dict[str, str]
    """kind -> wording: `general` knowledge, another `product`, `unclear` input"""
    questions: tuple[str, ...]
    templates: tuple[str, ...]
    topics: tuple[str, ...]
    product_templates: tuple[str, ...]
    products: tuple[str, ...]
    unclear: tuple[str, ...]
    patterns: tuple[str, ...]
    shared: tuple[str, ...]
    """patterns that use the manual's own words for something else, such as "exchange rate" """
    development: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    entries: tuple[Entry, ...]
    out_of_domain: OutOfDomain

    def scored(self) -> list[str]:
        """All questions that the guide is scored with, and so must not be trained on."""
        kinds = [*self.entries, self.out_of_domain]
        return [question for kind in kinds for question in (*kind.development, *kind.held_out)]


def normalized(text: str) -> str:
    """Text without differences of case, spacing or surrounding punctuation."""
    return " ".join(text.casefold().split()).strip(" ?!.,:;")


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _entries(path: Path, patterns: dict[str, Any], held_out: dict[str, Any]) -> list[Entry]:
    return [
        Entry(
            id=row["id"],
            doc=row["doc"],
            answer=row["answer"].strip(),
            questions=tuple(row["questions"]),
            tasks=tuple(patterns.get(row["id"], {}).get("do", ())),
            subjects=tuple(patterns.get(row["id"], {}).get("about", ())),
            sayings=tuple(patterns.get(row["id"], {}).get("say", ())),
            development=tuple(row["development"]),
            held_out=tuple(held_out.get(row["id"], ())),
        )
        for row in _read(path)["entry"]
    ]


def load_corpus(folder: Path = FOLDER) -> Corpus:
    """Every entry, checked: ids are unique, and no held-out question is also trained on."""
    special = {name: folder / f"{name}.toml" for name in ("out_of_domain", "patterns", "held_out")}
    patterns, held_out = _read(special["patterns"]), _read(special["held_out"])
    table = _read(special["out_of_domain"])
    refusals = table.pop("refusals")
    lists = {name: tuple(values) for name, values in table.items()}
    outside = OutOfDomain(
        refusals=refusals, held_out=tuple(held_out.pop("out_of_domain", ())), **lists
    )
    files = sorted(path for path in folder.glob("*.toml") if path not in special.values())
    entries = tuple(entry for path in files for entry in _entries(path, patterns, held_out))
    if unknown := {*patterns, *held_out} - {entry.id for entry in entries}:
        raise ValueError(f"no entry has these ids: {sorted(unknown)}")
    corpus = Corpus(entries, outside)
    _check(corpus)
    return corpus


def _check(corpus: Corpus) -> None:
    ids = [entry.id for entry in corpus.entries]
    if twice := {id for id in ids if ids.count(id) > 1}:
        raise ValueError(f"corpus ids are not unique: {sorted(twice)}")
    owner: dict[str, str] = {}
    for entry in corpus.entries:
        for question in entry.questions:
            other = owner.setdefault(normalized(question), entry.id)
            if other != entry.id:
                raise ValueError(f"{question!r} is asked by both {other} and {entry.id}")
    known = set(owner) | {normalized(q) for q in corpus.out_of_domain.questions}
    if leaked := [q for q in corpus.scored() if normalized(q) in known]:
        raise ValueError(f"questions to score with are also trained on: {leaked}")
