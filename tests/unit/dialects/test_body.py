"""What is JSON, and what only looks like it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from mainspring.dialects.body import KEYS_LIMIT, read_body
from mainspring.errors import BadRequest


class Thing(Struct):
    a: int = 0
    s: str = ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"[]", "expected `object`"),
        (b'"a"', "expected `object`"),
        (b"null", "expected `object`"),
        (b"{", "ends too early"),
        (b'{"a":1}x', "trailing"),
        (b'{"a":1}{"a":1}', "trailing"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a":1}'.encode("utf-16"), "byte order mark"),
        ('{"a":1}'.encode("utf-16-le"), "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"x":Infinity}', "not valid JSON"),
        (b'{"x":-Infinity}', "not valid JSON"),
        (b'{"a":1e999}', "a: "),
        (b'{"a":' + b"1" * 5000 + b"}", "a: "),
        (b'{"x":' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"s":"\\ud800"}', "surrogate"),
        (b'{"s":"\xff"}', "not UTF-8"),
        (b'{"x":"\xff"}', "not UTF-8"),
        (b'{"s":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
        (b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "object keys"),
        (b'{"x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}", "too deep"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"x":{"b":1,"\\u0062":2}}', "twice"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":1,}', "not valid JSON"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"s":"a\nb"}', "not valid JSON"),
        (b'{"a":true}', "a: expected `int`, got `bool`"),
        (b'{"a":"1"}', "a: expected `int`, got `str`"),
    ],
)
def test_refused(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_body(body, Thing)
    assert words in caught.value.message
    assert "0x" not in caught.value.message
    assert "Traceback" not in caught.value.message


def test_too_many_keys_are_refused_fast() -> None:
    body = b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}"
    began = time.perf_counter()
    with pytest.raises(BadRequest, match=f"more than {KEYS_LIMIT}"):
        read_body(body, Thing)
    assert time.perf_counter() - began < 0.5


def test_colons_inside_strings_are_not_keys() -> None:
    text = '"name": ' * (KEYS_LIMIT + 1)
    value, raw = read_body(json.dumps({"s": text, "other": [1]}).encode(), Thing)
    assert value.s == text
    assert raw["other"] == [1]


def test_escapes_and_spaces() -> None:
    value, raw = read_body(b' {"s" : "\\u0000\\ud83d\\ude00", "z": null}\r\n', Thing)
    assert value.s == "\0\U0001f600"
    assert raw == {"s": "\0\U0001f600", "z": None}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        read_body(body, Thing)
    except BadRequest as error:
        assert error.message
