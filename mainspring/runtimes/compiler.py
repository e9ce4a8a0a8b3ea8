"""The process that compiles one model's grammars: `python compiler.py FD`, run as a plain script.

A grammar is a program of whoever sends it. Here it is made what the Worker takes, one Lark text,
and tried out: if it is none, or compiling it takes too much time or memory, that shows here and
not in the Worker. First frame: {"tokens", "special", "eos"}, the vocabulary, bytes as Latin-1.
Then {"kind", "text", "strict"} of a Grammar. Out: {"text"} or {"error"}.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from mainspring.runtimes.confined import MIB, serve

__all__ = ["first_line", "limits", "vocabulary_of"]

MEMORY, MEMORY_FACTOR = 256 * MIB, 64
CPU_SECONDS = 2
LEXER_STATES = 30_000
"""that the expressions of one grammar may have: at 1 to 2 kB each, the memory of a matcher"""
MESSAGE_LIMIT = 300
WHITESPACE = r"[ \n\r\t]{1,40}"
"""between the parts of a JSON text, so that a model does not fill its context with blanks"""
OWN = '\n%llguidance {"no_forcing": true}\n'
"""Where only one text is possible, the model still chooses its tokens. The last line counts."""


class Spelling:
    """A vocabulary as llguidance wants it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], eos: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("a text is never made tokens: nothing is forced")


def vocabulary_of(
    tokens: Sequence[bytes], special: Sequence[int], eos: Sequence[int]
) -> llguidance.LLTokenizer:
    """A vocabulary that grammars can be matched over. Takes 0.3 s for 150k tokens."""
    if not eos:  # a text must be able to end: by a token that there is not
        tokens, eos = [*tokens, b""], [len(tokens)]
    spelling: Any = Spelling(tokens, special, eos[0])
    return llguidance.LLTokenizer(spelling, eos_token=list(eos))


def limits() -> llguidance.LLParserLimits:
    """What compiling a grammar, and a step through it, may cost; others as llguidance has them.

    A step that needs more fails after about 20 ms.
    """
    return llguidance.LLParserLimits(max_lexer_states=LEXER_STATES, verbose_errors=False)


def first_line(error: str) -> str:
    """The part of llguidance's words that is for a user."""
    line = error.strip().partition("\n")[0]
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def lark_of(kind: str, text: str, strict: bool) -> str:
    """The grammar as Lark. Raises ValueError."""
    if kind == "json_object":
        return f"start: %json {_schema({'type': 'object'}, True)}"
    if kind == "json_schema":
        return f"start: %json {_schema(json.loads(text), strict)}"
    if kind == "regex":
        return f"start: /{llguidance.regex_to_lark(text)}/"
    if kind == "choice":
        # One terminal: as alternatives of a rule they would cost a thousand times more.
        return f"start: CHOICE\nCHOICE: {' | '.join(map(_literal, json.loads(text)))}"
    return any_to_lark(text)


def _literal(choice: str) -> str:
    return json.dumps(choice, ensure_ascii=False)


def _schema(schema: Any, strict: bool) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema that allows a value must be an object")
    own = {"whitespace_pattern": WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    return json.dumps({**schema, "x-guidance": own})


class Compiler:
    """Takes the vocabulary with the first frame, and a grammar with each of the others."""

    def __init__(self) -> None:
        self._vocabulary: llguidance.LLTokenizer | None = None

    def start(self, frame: bytes) -> dict[str, str]:
        asked = json.loads(frame)
        tokens = [token.encode("latin-1") for token in asked["tokens"]]
        self._vocabulary = vocabulary_of(tokens, asked["special"], asked["eos"])
        return {"text": ""}

    def answer(self, frame: bytes) -> dict[str, str]:
        try:
            return {"text": self._compile(**json.loads(frame))}
        except RecursionError:
            return {"error": "it is nested too deeply"}
        except MemoryError:
            return {"error": "it needs too much memory"}
        except Exception as error:  # noqa: BLE001 - whatever a foreign grammar brings about
            return {"error": first_line(str(error))}

    def _compile(self, kind: str, text: str, strict: bool) -> str:
        assert self._vocabulary is not None
        lark = lark_of(kind, text, strict) + OWN
        matcher = llguidance.LLMatcher(self._vocabulary, lark, log_level=0, limits=limits())
        matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        if matcher.is_stopped() and not matcher.is_accepting():
            raise ValueError("no text of this model's tokens matches it")
        return lark


if __name__ == "__main__":
    sys.setrecursionlimit(2000)
    compiler = Compiler()
    serve(
        socket.socket(fileno=int(sys.argv[1])),
        compiler.start,
        compiler.answer,
        memory=lambda size: MEMORY + MEMORY_FACTOR * size,
        seconds=CPU_SECONDS,
    )
