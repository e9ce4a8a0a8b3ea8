"""Whatever a model says under a grammar matches it; whatever is sent as one harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mainspring import LLM
from mainspring.errors import GrammarError
from mainspring.runtimes.grammars import Grammars
from mainspring.runtimes.offline import Result
from mainspring.runtimes.protocol import Vocabulary
from mainspring.types import Finish, Grammar, Sampling
from tests.faults.streams import NATIVE
from tests.tiny import tiny_checkpoint

EOS = (256,)
VOCABULARY = Vocabulary(
    (*(bytes([byte]) for byte in range(256)), b"<|end|>", b"ab", b""), special=(256,), eos=EOS
)
NODE = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tiny_checkpoint(tmp_path_factory.mktemp("grammars"), max_position_embeddings=2048)
    with LLM(path, isa="auto" if NATIVE else "reference", threads=1) as llm:
        yield llm


def drawn(llm: LLM, grammar: Grammar, count: int = 2, **sampling: Any) -> list[Result]:
    wishes = Sampling(**{"temperature": 1.0, "seed": 5, "max_tokens": 400, **sampling})
    return llm.generate(["say: "] * count, wishes, grammar=grammar)


def a_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema whose texts are short enough to end."""
    kinds = ["boolean", "null", "enum", "const", "string", "integer"]
    kind = rng.choice(kinds if depth > 2 else [*kinds, "object", "array", "anyOf"])
    if kind == "enum":
        return {"enum": rng.sample([1, "é\n", None, True, 'a"b', 2.5, [1], {"k": "v"}], 3)}
    if kind == "const":
        return {"const": rng.choice(["x", 7, {"a": [None]}])}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 8)}
    if kind == "integer":
        return {"type": "integer", "minimum": -rng.randint(0, 99), "maximum": rng.randint(0, 99)}
    if kind == "object":
        names = rng.sample(["a", "b c", "é", "d\\"], rng.randint(1, 3))
        return {
            "type": "object",
            "properties": {name: a_schema(rng, depth + 1) for name in names},
            "required": names[:1],
            "additionalProperties": False,
        }
    if kind == "array":
        return {"type": "array", "items": a_schema(rng, depth + 1), "maxItems": 2}
    if kind == "anyOf":
        return {"anyOf": [a_schema(rng, depth + 1) for _ in range(2)]}
    return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of a schema that `a_schema` made."""
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    kind = schema["type"]
    if kind == "object":
        known = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(known)
            and all(fits(item, known[name]) for name, item in value.items())
        )
    if kind == "array":
        short = isinstance(value, list) and len(value) <= schema["maxItems"]
        return short and all(fits(item, schema["items"]) for item in value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    return value is None if kind == "null" else isinstance(value, bool)


def check_schemas(llm: LLM, seeds: range) -> None:
    ended = 0
    for seed in seeds:
        schema = a_schema(random.Random(seed))
        for result in drawn(llm, Grammar("json_schema", json.dumps(schema)), seed=seed):
            if result.finish is Finish.STOP:
                ended += 1
                assert fits(json.loads(result.text), schema), (schema, result.text)
    assert ended > len(seeds)


def test_what_is_said_is_of_the_schema(llm: LLM) -> None:
    check_schemas(llm, range(20))


@pytest.mark.slow
def test_what_is_said_is_of_hundreds_of_schemas(llm: LLM) -> None:
    check_schemas(llm, range(1000, 1400))


@pytest.mark.parametrize(
    ("grammar", "matches"),
    [
        (Grammar("regex", "[0-9]{3}-(é|[a-f]+/)?"), re.compile("[0-9]{3}-(é|[a-f]+/)?").fullmatch),
        (
            Grammar("choice", '["yes", "no", "\\"q\\" \\\\ é\\n"]'),
            ["yes", "no", '"q" \\ é\n'].count,
        ),
        (Grammar("lark", 'start: "a" b\nb: "x" | "(" b ")"'), re.compile(r"a\(*x\)*").fullmatch),
        (Grammar("lark", 'root ::= "a" | "b" [0-9]'), re.compile("a|b[0-9]").fullmatch),
        (Grammar("json_object"), lambda text: isinstance(json.loads(text), dict)),
        (Grammar("json_schema", json.dumps(NODE)), lambda text: "next" in json.loads(text)),
        (Grammar("json_schema", "true"), lambda text: json.loads(text) is not ...),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
def test_every_kind_is_followed_to_its_end(llm: LLM, grammar: Grammar, matches: Any) -> None:
    blanks = dict.fromkeys(llm._prompts.tokenizer.encode(" \t\r\n"), -20.0)
    results = drawn(llm, grammar, 8, logit_bias=blanks)
    ended = [result for result in results if result.finish is Finish.STOP]
    assert ended
    for result in ended:
        assert matches(result.text), result.text
        assert result.stop_reason is None


def test_an_answer_ends_where_nothing_can_follow(llm: LLM) -> None:
    """Without a step for the end of the text, and whatever else is wished."""
    for wishes in ({}, {"ignore_eos": True}, {"min_tokens": 40}, {"logit_bias": {256: 100.0}}):
        (result,) = drawn(llm, Grammar("choice", '["abc"]'), 1, **wishes)
        assert (result.text, result.finish, result.usage.output) == ("abc", Finish.STOP, 3)
    (cut,) = drawn(llm, Grammar("regex", "[a-c]+"), 1, max_tokens=7, min_tokens=7)
    assert re.fullmatch("[a-c]{7}", cut.text) and cut.finish is Finish.LENGTH


def test_a_text_that_must_go_on_and_cannot_is_an_error_of_its_own(llm: LLM) -> None:
    with pytest.raises(GrammarError, match="min_tokens"):
        drawn(llm, Grammar("regex", ""), 1, min_tokens=3)
    assert drawn(llm, Grammar("regex", "a"), 1)[0].text == "a"


def test_log_probabilities_are_the_models_own(llm: LLM) -> None:
    grammar = Grammar("choice", '["zq"]')
    (held,) = drawn(llm, grammar, 1, temperature=0, logprobs=3)
    (free,) = llm.generate("say: ", Sampling(temperature=0, max_tokens=1, logprobs=3))
    assert held.text == "zq" and held.tokens[0].top == free.tokens[0].top
    assert held.tokens[0].logprob < free.tokens[0].logprob


def test_strict_decides_about_what_cannot_be_enforced(llm: LLM) -> None:
    schema = json.dumps({"enum": [1, 2], "unevaluatedProperties": False})
    with pytest.raises(GrammarError, match="unevaluatedProperties") as caught:
        drawn(llm, Grammar("json_schema", schema, field="response_format"))
    assert caught.value.param == "response_format" and "\n" not in caught.value.message
    assert drawn(llm, Grammar("json_schema", schema, strict=False), 1)[0].text in "12"


# Compiling ----------------------------------------------------------------------------------------


def compiled(*grammars: Grammar) -> list[str | GrammarError]:
    """What each of them becomes, one after the other."""

    async def main() -> list[str | GrammarError]:
        async def vocabulary() -> Vocabulary:
            return VOCABULARY

        compiling = Grammars(vocabulary)
        told: list[str | GrammarError] = []
        try:
            for grammar in grammars:
                try:
                    told.append(await compiling.compile(grammar))
                except GrammarError as error:
                    told.append(error)
        finally:
            await compiling.stop()
        return told

    return asyncio.run(main())


DEEP = '{"items":' * 5000 + "{}" + "}" * 5000
REFUSED = {
    "no json": Grammar("json_schema", '{"type"'),
    "no schema": Grammar("json_schema", '{"type":"foo"}'),
    "nothing allowed": Grammar("json_schema", "false"),
    "a list": Grammar("json_schema", "[]"),
    "deep": Grammar("json_schema", DEEP),
    "cyclic": Grammar("json_schema", '{"$ref":"#"}'),
    "remote": Grammar("json_schema", '{"$ref":"http://127.0.0.1:9/x"}'),
    "file": Grammar("json_schema", '{"$ref":"file:///etc/hostname"}'),
    "pattern": Grammar("json_schema", '{"type":"string","pattern":"(?=a)b"}'),
    "huge enum": Grammar("json_schema", json.dumps({"enum": [f"v{i}" for i in range(90_000)]})),
    "open": Grammar("regex", "(a"),
    "look behind": Grammar("regex", "(?<=a)b"),
    "nothing matches": Grammar("regex", r"[^\s\S]"),
    "not in the vocabulary": Grammar("lark", "start: <|none|>"),
    "no rule": Grammar("lark", "start: foo"),
    "endless": Grammar("lark", "start: a\na: b\nb: a"),
    "wide": Grammar("lark", "start: " + " | ".join(f'"v{i}"' for i in range(80_000))),
    "gbnf": Grammar("lark", "root ::= ("),
    "too long": Grammar("regex", "a" * (1 << 21)),
}


def test_what_is_no_grammar_or_too_much_is_refused_and_the_next_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mainspring.runtimes.grammars.COMPILE_SECONDS", 0.6)
    began = time.monotonic()
    good = Grammar("regex", "ab")
    told = compiled(*(grammar for bad in REFUSED.values() for grammar in (bad, good)))
    for name, error in zip(REFUSED, told[::2], strict=True):
        assert isinstance(error, GrammarError), name
        assert error.status == 400 and error.param == "grammar" and len(error.message) < 500
    assert all(isinstance(text, str) for text in told[1::2])
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(.{1,65535}){1,65535}", "(.*a){20}.{20}", "(a|b|ab)*c"]
)
def test_expressions_that_are_bombs_elsewhere(llm: LLM, pattern: str) -> None:
    """Compiled or refused, followed or failed: in little time each."""
    began = time.monotonic()
    with contextlib.suppress(GrammarError):
        drawn(llm, Grammar("regex", pattern), 1, max_tokens=100)
    assert time.monotonic() - began < 8


def test_a_killed_compiler_is_started_again() -> None:
    async def main() -> None:
        async def vocabulary() -> Vocabulary:
            return VOCABULARY

        compiling = Grammars(vocabulary)
        try:
            await compiling.compile(Grammar("regex", "a"))
            assert compiling.pid
            os.kill(compiling.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
            assert await compiling.compile(Grammar("regex", "b"))
        finally:
            await compiling.stop()

    asyncio.run(main())


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainspring.runtimes.grammars.KEPT", 3)

    async def main() -> None:
        async def vocabulary() -> Vocabulary:
            return VOCABULARY

        compiling = Grammars(vocabulary)
        try:
            for i in (0, 1, 2, 3, 4, 3):
                await compiling.compile(Grammar("regex", f"a{i}"))
            assert [text for _, text, _ in compiling._kept] == ["a2", "a4", "a3"]
        finally:
            await compiling.stop()

    asyncio.run(main())
