"""Fill in the middle: how a model is told what stands before and after the text it is to write."""

from __future__ import annotations

from mainspring.errors import BadRequest
from mainspring.runtimes.tokenizer import Tokenizer

__all__ = ["infill"]

PREFIX, SUFFIX = 0, 1
ORDERS: tuple[tuple[str | int, ...], ...] = (
    ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),  # qwen2.5-coder
    ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),  # starcoder2, granite
    ("<fim-prefix>", PREFIX, "<fim-suffix>", SUFFIX, "<fim-middle>"),  # santacoder
    ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),  # deepseek-coder
    ("▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"),  # codellama
    ("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX),  # codestral
)
"""Token names, and which text comes between them (Bavarian et al. 2022). The tokens alone say that
a model was trained for this: no other file of a checkpoint does."""


def infill(name: str, tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """The prompt that asks the model `name` for what stands between the two texts.

    Special tokens inside the texts are plain text: a source file may well hold their names.
    Raises BadRequest if the tokenizer has no tokens for this.
    """
    for order in ORDERS:
        marks = {mark: tokenizer.id_of(mark) for mark in order if isinstance(mark, str)}
        if None in marks.values():
            continue
        ids = tokenizer.encode("")  # what every prompt begins with
        for item in order:
            if isinstance(item, str):
                ids.append(marks[item] or 0)
            elif item == PREFIX:
                ids += tokenizer.encode_plain(prefix)
            else:
                ids += tokenizer.encode_plain(suffix, inner=True)
        return ids
    raise BadRequest(
        f"suffix: the tokenizer of {name} has no tokens to fill in the middle with; take a model "
        "that was trained for it, or leave suffix out",
        param="suffix",
    )
