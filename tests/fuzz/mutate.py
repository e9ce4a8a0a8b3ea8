"""Changes to bytes and texts, of the kinds that break readers."""

from __future__ import annotations

import os
import random

import pytest

__all__ = ["CASES", "mutated", "nasty_text"]

FAST, LONG = 500, 200_000
CASES = [
    pytest.param(FAST, id="short"),
    pytest.param(
        int(os.environ.get("MAINSPRING_FUZZ", LONG)),
        id="long",
        marks=[pytest.mark.slow, pytest.mark.timeout(3600)],
    ),
]
"""cases for each test; the long form runs under `make sanitize` too"""
NUMBERS = [0, 1, 7, 8, 255, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63]
WORDS = [b"-1", b"1e999", b"null", b"[]", b"{}", b'"', b"\\u0000", b"[" * 50, b"\xff", b"\0"]
PIECES = [
    "\0", "\x7f", "\u00e9", "e\u0301", "\u200d", "\u202e", "\ufeff", "\ufffd", "\ud7ff", "\ue000",
    "\U0001f600", "\U0010ffff", "\U000e0001", " ", "\t", "\n", "\r\n", "\u2028", "a", "A", "0",
    "<|", "|>", "<|end|>", "<|END|>", "<|user", "{{", "}}", "{%", "%}", "{#", "'", '"', "\\",
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` with one to four changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice((1, 2, 8, 100, len(out)))]
        elif kind == 2:
            width = rng.choice((1, 4, 8))
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, "little")
        elif kind == 3:
            out[at:at] = rng.choice(WORDS)
        elif kind == 4:
            out[at:at] = str(rng.choice(NUMBERS)).encode()
        else:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.randint(1, 64)]
    return bytes(out)


def nasty_text(rng: random.Random, most: int) -> str:
    """A text of up to `most` pieces: characters that readers stumble over, and a few plain ones."""
    return "".join(
        rng.choice(PIECES) if rng.random() < 0.7 else chr(rng.randrange(0x20, 0x2FF))
        for _ in range(rng.randint(0, most))
    )
