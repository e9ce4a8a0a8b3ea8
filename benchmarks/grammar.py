"""What holding an answer to a grammar costs a token, by itself: no model computes here.

    python benchmarks/grammar.py --save

The vocabulary has 151,936 tokens: all bytes, and words of letters, digits and the signs of JSON at
random, 1 to 12 long, half of them after a blank. Each grammar is followed for 300 tokens drawn at
random of those allowed (starting again where a text ends). Times are of the thread's processor,
microseconds: `mask` is finding the tokens that may come, `apply` making the others impossible in
the logits, `push` following the token drawn. `compile` is the Worker's part once for a grammar,
`first` the first mask. `learn` is reading the vocabulary, once for a model, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from mainspring.engine.grammar import forbid
from mainspring.errors import GrammarError
from mainspring.runtimes.compiler import OWN, lark_of
from mainspring.runtimes.matcher import Matchers
from mainspring.runtimes.protocol import Vocabulary

SIZE, EOS, STEPS = 151_936, 256, 300
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.[a-z]{2,4}$"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, tuple[str, str]] = {
    "JSON object": ("json_object", ""),
    "schema": ("json_schema", json.dumps(PERSON)),
    "enum of 10,000": ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(10_000)]})),
    "regex": ("regex", "[A-Z][a-z]+( [A-Z][a-z]+)*, [0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "choice of 3": ("choice", '["positive", "negative", "neutral"]'),
    "lark": ("lark", 'start: e\ne: t (("+" | "-") t)*\nt: /[0-9]+/ | "(" e ")"'),
    "bomb": ("regex", "(.*a){20}.{20}"),
}


def vocabulary(size: int = SIZE) -> Vocabulary:
    """Random words after all bytes; the same each time."""
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b'etaoinshrdlucmfwypvbgkqjxzETAOIN0123456789{}[]":,_.-', np.uint8)
    words: dict[bytes, None] = {bytes([byte]): None for byte in range(256)}
    words[b"<|end|>"] = None
    while len(words) < size:
        word = letters[rng.integers(0, len(letters), rng.integers(1, 13))].tobytes()
        words[(b" " if rng.random() < 0.5 else b"") + word] = None
    return Vocabulary(tuple(words), (EOS,), (EOS,))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives and how long it took, in microseconds of this thread's processor."""
    began = time.thread_time()
    result = work()
    return result, (time.thread_time() - began) * 1e6


def measure(name: str, matchers: Matchers, rng: np.random.Generator) -> dict[str, Any]:
    kind, text = GRAMMARS[name]
    grammar = lark_of(kind, text, True) + OWN
    prototype, compiling = timed(lambda: matchers.make(grammar))
    (_, first), matcher = timed(prototype.mask), matchers.make(grammar)
    times: dict[str, list[float]] = {"mask": [], "apply": [], "push": []}
    logits, failed = np.zeros(SIZE, np.float32), ""
    for _ in range(STEPS):
        try:
            mask, spent = timed(matcher.mask)
        except GrammarError as error:
            failed, matcher = error.message, matchers.make(grammar)
            continue
        times["mask"].append(spent)
        logits[:] = 0
        times["apply"].append(timed(partial(forbid, logits, mask))[1])
        token = int(rng.choice(np.flatnonzero(logits == 0)))
        times["push"].append(timed(partial(matcher.push, token))[1])
        if matcher.complete or token == EOS:
            matcher = matchers.make(grammar)
    each = np.sum(list(times.values()), axis=0)
    return {
        "grammar": name,
        "compile": round(compiling),
        "first": round(first),
        **{part: round(statistics.median(found), 1) for part, found in times.items()},
        "token": round(float(np.median(each)), 1),
        "p99": round(float(np.quantile(each, 0.99)), 1),
        "worst": round(float(each.max()), 1),
        "failed": failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    matchers, learning = timed(lambda: Matchers(vocabulary()))
    print(f"vocabulary of {SIZE} tokens read in {learning / 1e3:.0f} ms")
    rows = []
    for name in GRAMMARS:
        rows.append(measure(name, matchers, np.random.default_rng(2)))
        print(rows[-1], flush=True)
    if args.save:
        save("grammar", rows, vocabulary=SIZE, learn=round(learning / 1e3))


if __name__ == "__main__":
    main()
