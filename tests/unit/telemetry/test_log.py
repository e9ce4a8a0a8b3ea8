from __future__ import annotations

import io
import logging

from hypothesis import given
from hypothesis import strategies as st

from mainspring.telemetry.log import configure, escaped, pairs


def lines(level: str = "info") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    configure(level, stream)
    return stream, logging.getLogger("mainspring.test")


def test_a_line() -> None:
    stream, log = lines()
    log.info("request %s", pairs(id="a", seconds=0.12345, model="my model", none=None, n=3))
    time, level, rest = stream.getvalue().split(" ", 2)
    assert time.endswith("Z") and level == "info"
    assert rest == 'request id=a seconds=0.123 model="my model" n=3\n'
    log.debug("quiet")
    assert stream.getvalue().count("\n") == 1


def test_nothing_forges_a_line() -> None:
    stream, log = lines()
    log.info("%s", pairs(model='x"\r\n2026 info fake=1\x1b[2J\u202e\x00', other="a=b"))
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert "\x1b" not in text and "\u202e" not in text and "\r" not in text
    assert 'other="a=b"' in text


def test_tracebacks_are_indented() -> None:
    stream, log = lines()
    try:
        raise ValueError("a\n2026-01-01T00:00:00.000Z info fake")
    except ValueError:
        log.exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error failed")
    assert rest and all(line.startswith("    ") for line in rest)


def test_values_are_cut() -> None:
    assert len(pairs(a="x" * 10_000)) < 210


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    safe = escaped(text)
    assert len(safe.splitlines()) <= 1
    safe.encode("utf-8")
