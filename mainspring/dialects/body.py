"""Strict JSON: one body in, one typed value out, or a BadRequest that names the place.

msgspec refuses what is not JSON (NaN, trailing bytes, lone surrogates, UTF-16) and checks types
and bounds. It keeps the last of two equal keys, so that a second reader looks for those: two
parsers that disagree on which value counts are a way around every check in front of us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeVar

import msgspec

from mainspring.errors import BadRequest

__all__ = ["KEYS_LIMIT", "read_body"]

T = TypeVar("T")

KEYS_LIMIT = 20_000
"""Object keys in one body at most."""

_COLON = re.compile(rb'"[ \t\r\n]*:')
_KEY = re.compile(rb'"(?:[^"\\]++|\\.)*+"(?P<colon>[ \t\r\n]*:)?', re.DOTALL)
_PLACE = re.compile(r"^(?P<what>.*) - at (?P<key>`key` in )?`\$(?P<path>.*)`$", re.DOTALL)


def read_body(body: bytes, kind: type[T]) -> tuple[T, dict[str, Any]]:
    """Decode `body` as `kind`; also as the plain object, for fields that `kind` does not have.

    Raises BadRequest with `param` as the path of the mistake, such as messages[0].role.
    """
    if not body.strip():
        raise BadRequest("the body is empty: send a JSON object")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadRequest("the body begins with a byte order mark: send JSON as plain UTF-8")
    try:
        body.decode("utf-8")
        _check_keys(body)
        value = msgspec.json.decode(body, type=kind)
        return value, json.loads(body, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deep") from error
    except msgspec.ValidationError as error:
        raise _misplaced(str(error)) from error
    except msgspec.DecodeError as error:
        raise BadRequest(_malformed(str(error))) from error
    except ValueError as error:
        raise BadRequest("the JSON holds an integer with too many digits") from error


def _check_keys(body: bytes) -> None:
    # The quick count also counts `\":` inside strings; only a body that may be over pays for
    # the exact one.
    if _count(_COLON.finditer(body)) <= KEYS_LIMIT:
        return
    if _count(match for match in _KEY.finditer(body) if match["colon"]) > KEYS_LIMIT:
        raise BadRequest(f"the JSON has more than {KEYS_LIMIT} object keys")


def _count(found: Iterable[object]) -> int:
    """How many, as far as it matters."""
    return sum(1 for _ in islice(found, KEYS_LIMIT + 1))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"the key {name[:100]!r} is given twice in one object", param=name[:100])
    return found


def _misplaced(message: str) -> BadRequest:
    if match := _PLACE.match(message):
        path = match["path"].lstrip(".")
        what = f"{match['what']} in a key" if match["key"] else match["what"]
        return BadRequest(f"{path or 'body'}: {_plain(what)}", param=path or None)
    if missing := re.search(r"missing required field `(\w+)`", message):
        return BadRequest(f"{missing[1]}: this field is required", param=missing[1])
    if unknown := re.search(r"contains unknown field `(.*)`", message, re.DOTALL):
        name = unknown[1][:100]
        return BadRequest(f"{name}: there is no such field here; leave it out", param=name)
    return BadRequest(f"body: {_plain(message)}")


def _plain(message: str) -> str:
    """msgspec's words, with the first letter lowered to follow the path."""
    message = re.sub(
        r"Invalid enum value '(.{0,60}).*?'", r"'\1' is not one of the values", message
    )
    return message[:1].lower() + message[1:]


def _malformed(message: str) -> str:
    if message.startswith("Input data was truncated"):
        return "the JSON ends too early, or holds half of a surrogate pair"
    return message.replace("JSON is malformed", "the body is not valid JSON")
