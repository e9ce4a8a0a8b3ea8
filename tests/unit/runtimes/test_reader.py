"""Reasoning, content and calls are told apart, wherever the text is cut."""

from __future__ import annotations

import asyncio
import random

import pytest

from mainspring.runtimes.calls import Calls
from mainspring.runtimes.reader import Reader
from mainspring.runtimes.reasoning import Marks, learn_marks
from tests.unit.runtimes.test_calls import FORMATS, TOOLS
from tests.unit.runtimes.toolstyles import renderer

MARKS = Marks("<think>", "</think>")
HEADER = "{% for m in messages %}<|{{ m.role }}|>"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("source", "marks"),
    [
        (
            HEADER + "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
            "{% endif %}{{ m.content }}<|end|>{% endfor %}" + PROMPT,
            MARKS,
        ),
        (
            HEADER + "{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}{{ m.content }}"
            "{% endfor %}" + PROMPT,
            Marks("[THINK]", "[/THINK]", "thinking"),
        ),
        (
            HEADER + "{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}" + PROMPT,
            MARKS,
        ),
        (
            HEADER + "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
            "<seed:think>\n{% endif %}",
            Marks("<seed:think>", "</seed:think>"),
        ),
        (HEADER + "{{ m.content }}<|end|>{% endfor %}" + PROMPT, None),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_marks_are_learned_from_the_template(source: str, marks: Marks | None) -> None:
    assert asyncio.run(learn_marks(renderer(source), source)) == marks


def told(text: list[str] | str, *, opened: bool = False) -> tuple[str, str, int]:
    """Reasoning, content and the number of calls."""
    calls = Calls(FORMATS["hermes"], TOOLS)
    reader = Reader(MARKS, calls, opened=opened)
    parts = [*map(reader.feed, text), reader.end()]
    reasoning, content = "".join(p.reasoning for p in parts), "".join(p.content for p in parts)
    return reasoning, content, calls.count


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\na </thin b\n\n</think>\n\nhello\n", False, ("a </thin b", "hello\n", 0)),
        (" \n<think>a", False, ("a", "", 0)),
        ("a\nb </think> c", True, ("a\nb", "c", 0)),
        ("<think>a</think>b", True, ("a", "b", 0)),
        ("</think>b", True, ("", "b", 0)),
        ("<thinker> says <think>", False, ("", "<thinker> says <think>", 0)),
        ("  b <think>c</think>", False, ("", "  b <think>c</think>", 0)),
        ("<thi", False, ("", "<thi", 0)),
        ("<think></think>", False, ("", "", 0)),
        ("<think>x\n ", False, ("x\n ", "", 0)),
        ('<think><tool_call>{"name": "f"}</tool_call>', False, (
            '<tool_call>{"name": "f"}</tool_call>', "", 0)),
        ('a</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', True, ("a", "", 1)),
    ],
)  # fmt: skip
def test_what_is_reasoning(text: str, opened: bool, expected: tuple[str, str, int]) -> None:
    assert told([text], opened=opened) == expected
    assert told(text, opened=opened) == expected
    for cut in range(len(text)):
        assert told([text[:cut], text[cut:]], opened=opened) == expected


def test_any_text_is_read_alike_however_it_is_cut() -> None:
    """Soup of what formats are made of: nothing is lost without a call, and no cut matters."""
    crumbs = [
        "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "get_weather"', "}", "{",
        ', "arguments": ', '"', "\\", "[", "]", "<function=", "<parameter=x>", "</parameter>", ">",
        "</function>", "[TOOL_CALLS]", "f", " ", "\n", "\\u00e9", "\\ud83d", "null", "é", ", ",
    ]  # fmt: skip
    rng = random.Random(7)
    for _ in range(150):
        text = "".join(rng.choices(crumbs, k=rng.randint(1, 20)))
        for format in FORMATS.values():
            readings = []
            for pieces in ([text], list(text)):
                numbers = iter(range(99))
                calls = Calls(format, TOOLS, ids=lambda numbers=numbers: str(next(numbers)))
                parts = [*map(calls.feed, pieces), calls.end()]
                content = "".join(part[0] for part in parts)
                told = "".join(c.id + c.name + c.arguments for p in parts for c in p[1])
                readings.append((content, told, calls.count))
            assert readings[0] == readings[1]
            if not readings[0][2]:
                assert readings[0][0] == text
