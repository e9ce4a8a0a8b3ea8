"""The corpus: what the guide knows, as questions and answers in TOML files.

An entry has one answer, the place in the manual where it is documented, questions to learn from
and held-out questions that are never trained on. `out_of_domain.toml` has what it must refuse.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Corpus", "Entry", "OutOfDomain", "load_corpus", "normalized"]

FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    doc: str
    """`docs/<page>.md#<anchor>` where the answer is documented; empty for small talk."""
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutOfDomain:
    """What to refuse: whole questions, and templates with `{topic}` and `{product}` holes."""

    refusals: dict[str, str]
    """kind -> wording: `general` knowledge, another `product`, `unclear` input"""
    questions: tuple[str, ...]
    templates: tuple[str, ...]
    topics: tuple[str, ...]
    product_templates: tuple[str, ...]
    products: tuple[str, ...]
    unclear: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    entries: tuple[Entry, ...]
    out_of_domain: OutOfDomain


def normalized(text: str) -> str:
    """Text without differences of case, spacing or surrounding punctuation."""
    return " ".join(text.casefold().split()).strip(" ?!.,:;")


def _read(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _entries(path: Path) -> list[Entry]:
    rows = _read(path)["entry"]
    assert isinstance(rows, list)
    return [
        Entry(
            id=row["id"],
            doc=row["doc"],
            answer=row["answer"].strip(),
            questions=tuple(row["questions"]),
            held_out=tuple(row["held_out"]),
        )
        for row in rows
    ]


def _out_of_domain(path: Path) -> OutOfDomain:
    table = _read(path)
    refusals = table.pop("refusals")
    assert isinstance(refusals, dict)
    lists = {name: tuple(values) for name, values in table.items()}  # type: ignore[call-overload]
    return OutOfDomain(refusals=refusals, **lists)


def load_corpus(folder: Path = FOLDER) -> Corpus:
    """Every entry, checked: ids are unique, and no held-out question is also trained on."""
    special = folder / "out_of_domain.toml"
    files = sorted(path for path in folder.glob("*.toml") if path != special)
    corpus = Corpus(tuple(e for path in files for e in _entries(path)), _out_of_domain(special))
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
    held_out = [q for entry in corpus.entries for q in entry.held_out]
    if leaked := [q for q in (*held_out, *corpus.out_of_domain.held_out) if normalized(q) in known]:
        raise ValueError(f"held-out questions are also trained on: {leaked}")
