"""Token ids to text, a token at a time.

The pieces joined are the text of all tokens together, no piece holds half a character, and a
token costs about a microsecond: where the tokenizer's decoder is one of the usual kinds, each id
has bytes of its own (`TokenBytes`) and text is their UTF-8. Other decoders are asked about a
sliding window (`WindowDetokenizer`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

__all__ = [
    "ByteDetokenizer",
    "Detokenizer",
    "ShowingDetokenizer",
    "TokenBytes",
    "WindowDetokenizer",
]

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The text state of one choice."""

    def feed(self, id: int) -> str:
        """The text that the next token completes; characters still in pieces wait."""
        ...

    def end(self) -> str:
        """What still waited; bytes that make no character become U+FFFD."""
        ...


class TokenBytes:
    """Each token's own bytes, found when first asked for.

    `decoder` is the tokenizer's decoder as in tokenizer.json, `token` gives an id's string (None:
    no such id), `skipped` are ids without text.
    """

    def __init__(
        self, decoder: Any, token: Callable[[int], str | None], skipped: frozenset[int]
    ) -> None:
        self._bytes_of = _reading(decoder)
        self.strip = _leading_spaces(decoder)
        """spaces taken from the start of a text; None: all that its first token begins with"""
        self.usable = self._bytes_of is not None
        """whether this kind of decoder gives each token bytes of its own"""
        self._token = token
        self._skipped = skipped
        self._known: dict[int, bytes] = {}

    def __getitem__(self, id: int) -> bytes:
        """The bytes that the token adds to a text; empty for skipped and unknown ids."""
        found = self._known.get(id)
        if found is None:
            found = self._known[id] = b"" if id in self._skipped else self.look(id)
        return found

    def look(self, id: int) -> bytes:
        """The token's bytes, also of a skipped one; nothing is kept."""
        token = self._token(id)
        if token is None:
            return b""
        assert self._bytes_of is not None
        return self._bytes_of(token)


class ByteDetokenizer:
    """For decoders whose tokens have bytes: an incremental UTF-8 decoder.

    `first`: the text starts here, so that a decoder's rule for leading spaces applies; otherwise
    it goes on from a prompt.
    """

    def __init__(self, table: TokenBytes, *, first: bool) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip = table.strip if first else 0

    def feed(self, id: int) -> str:
        data = self._table[id]
        if self._strip != 0 and data:
            data = self._stripped(data)
        return self._decode(data)

    def end(self) -> str:
        return self._decode(b"", True)

    def _stripped(self, data: bytes) -> bytes:
        if self._strip is None:
            self._strip = 0
            return data.lstrip(b" ")
        kept = data[1:] if data.startswith(b" ") else data
        self._strip = self._strip - 1 if len(kept) < len(data) and not kept else 0
        return kept


class ShowingDetokenizer:
    """Writes some of the tokens that another one leaves out; `shown` has their texts."""

    def __init__(self, inner: Detokenizer, shown: Mapping[int, str]) -> None:
        self._inner = inner
        self._shown = shown

    def feed(self, id: int) -> str:
        text = self._shown.get(id)
        return self._inner.feed(id) if text is None else self._inner.end() + text

    def end(self) -> str:
        return self._inner.end()


class WindowDetokenizer:
    """For any decoder: the difference that a token makes to the decoding of the last few.

    `decode` gives the text of ids, `before` are the tokens that the text goes on from.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(before[-WINDOW:])
        self._told = decode(self._ids) if self._ids else ""
        """the text of `_ids` that has been given"""

    def feed(self, id: int) -> str:
        self._ids.append(id)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) < 2 * WINDOW:
            return ""
        piece = text[len(self._told) :]
        self._told = text
        if len(self._ids) >= 2 * WINDOW:
            self._ids = self._ids[-WINDOW:]
            self._told = self._decode(self._ids)
        return piece

    def end(self) -> str:
        piece = self._decode(self._ids)[len(self._told) :] if self._ids else ""
        self._ids, self._told = [], ""
        return piece


WINDOW = 16
"""tokens; longer than any character is split into"""


def _reading(decoder: Any) -> Callable[[str], bytes] | None:
    """How this decoder reads a token's string as bytes; None: not token by token."""
    kinds = [part.get("type") for part in _parts(decoder)]
    if kinds == ["ByteLevel"]:
        return _byte_level()
    if kinds == ["Metaspace"]:
        mark = _parts(decoder)[0].get("replacement", "▁")
        return lambda token: token.replace(mark, " ").encode()
    replaces = [part for part in _parts(decoder) if part.get("type") == "Replace"]
    rest = [kind for kind in kinds if kind != "Replace"]
    fallback = rest[:1] == ["ByteFallback"]
    if rest[fallback:] not in (["Fuse"], ["Fuse", "Strip"]) or kinds[-1] == "Replace":
        return None
    pairs = [(part.get("pattern", {}).get("String"), part.get("content")) for part in replaces]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        return None
    return _replacing([(str(old), str(new)) for old, new in pairs], fallback)


def _parts(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder.get("decoders", ()) for part in _parts(inner)]
    return [decoder]


def _leading_spaces(decoder: Any) -> int | None:
    for part in _parts(decoder):
        if part.get("type") == "Metaspace":
            added = part.get("prepend_scheme", "always") != "never"
            return None if added and part.get("add_prefix_space", True) else 0
        if part.get("type") == "Strip" and part.get("content") == " ":
            return int(part.get("start", 0))
    return 0


def _byte_level() -> Callable[[str], bytes]:
    """GPT-2's alphabet: each byte is a printable character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    codes = {chr(byte): byte for byte in plain}
    codes |= {chr(256 + i): byte for i, byte in enumerate(others)}

    def read(token: str) -> bytes:
        try:
            return bytes([codes[character] for character in token])
        except KeyError:  # an added token is written as it is
            return token.encode()

    return read


def _replacing(pairs: list[tuple[str, str]], fallback: bool) -> Callable[[str], bytes]:
    """SentencePiece's: a mark for the space, and tokens such as <0xE2> for bytes."""

    def read(token: str) -> bytes:
        if fallback and (byte := BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in pairs:
            token = token.replace(old, new)
        return token.encode()

    return read
