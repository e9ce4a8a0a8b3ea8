"""What a model thinks before it answers: its marks, learned from the chat template."""

from __future__ import annotations

import re

from msgspec import Struct

from mainspring.runtimes.toolformat import QUESTION, SAID, Render, common_start

__all__ = ["FIELD", "Marks", "learn_marks"]

FIELD = "reasoning_content"
"""of a message, as most templates call it"""
FIELDS = (FIELD, "reasoning", "thinking")
THOUGHT = "Ωthought"
SPLIT = re.compile(r"""split\(\s*['"](</[\w:]+>)['"]""")
"""how templates take the reasoning out of earlier answers"""
OPENING = re.compile(r"<[\w:]+>$")


class Marks(Struct, frozen=True):
    """The texts that begin and end reasoning."""

    begin: str
    end: str
    field: str = FIELD
    """of an assistant's message, for the template"""


async def learn_marks(render: Render, source: str) -> Marks | None:
    """The marks of the template `source`; None where it knows no reasoning.

    They show where it writes the reasoning of an earlier answer, takes it out of one, or begins
    one itself.
    """
    plain = await render([QUESTION, {"role": "assistant", "content": SAID}], {})
    if plain is None or SAID not in plain:
        return None
    for field in FIELDS:
        turn = {"role": "assistant", "content": SAID, field: THOUGHT}
        text = await render([QUESTION, turn], {})
        if text and (found := _around(plain, text)):
            return Marks(*found, field)
    if split := SPLIT.search(source):
        return Marks(_opening(split[1]), split[1])
    prompt = await render([QUESTION], {"add_generation_prompt": True}) or ""
    added = prompt[len(common_start(prompt, plain)) :].rstrip()
    if opening := OPENING.search(added):
        return Marks(opening[0], f"</{opening[0][1:]}")
    return None


def _around(plain: str, text: str) -> tuple[str, str] | None:
    before, thought, after = text.rpartition(THOUGHT)
    between, said, _ = after.partition(SAID)
    end = between.strip()
    if not (thought and said and end):
        return None
    if before.rstrip().endswith(opening := _opening(end)):
        return opening, end
    head = plain.partition(SAID)[0]
    begin = before[len(head) :].strip() if before.startswith(head) else ""
    return (begin, end) if begin else None


def _opening(end: str) -> str:
    return end.replace("/", "", 1)
