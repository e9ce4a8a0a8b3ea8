"""Which checkpoint drafts for a model, and whether it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from mainspring.config import ModelConfig
from mainspring.engine.weights import CheckpointInfo, inspect_checkpoint
from mainspring.errors import BadRequest, ModelError
from mainspring.registry import resolve
from mainspring.runtimes.tokenizer_json import tokenizer_json

__all__ = ["Drafting", "find_draft"]


class Drafting(NamedTuple):
    """The checkpoint of a draft model."""

    path: Path
    info: CheckpointInfo


class _Vocabulary(Struct):
    vocab: Any = None


class _Tokens(Struct):
    """What decides in tokenizer.json which text a token id stands for."""

    model: _Vocabulary
    added_tokens: list[Any] = []


def find_draft(
    path: Path, info: CheckpointInfo, config: ModelConfig, home: Path
) -> Drafting | None:
    """The draft model that `config` names for the model in directory `path`; None without one.

    Only headers and tokenizer.json are read. Raises BadRequest for a draft that cannot guess for
    this model, and as `resolve` and `inspect_checkpoint` for one that is not there or damaged.
    """
    if not config.draft:
        return None
    if not config.speculation:
        raise BadRequest(
            "draft names a model that guesses, and speculation is off: leave out "
            "--no-speculation, or draft",
            param="draft",
        )
    found = resolve(config.draft, home)
    try:
        draft = inspect_checkpoint(found.path)
    except ModelError as error:
        raise ModelError(f"draft {config.draft[:100]!r}: {error.message}") from error
    if draft.vocabulary != info.vocabulary:
        reason = f"has {draft.vocabulary} tokens, the model {info.vocabulary}"
    elif _tokens(found.path) != _tokens(path):
        reason = "has other tokens in its tokenizer.json than the model"
    else:
        return Drafting(found.path, draft)
    raise BadRequest(
        f"draft {config.draft[:100]!r} {reason}: take a smaller model of the same family",
        param="draft",
    )


def _tokens(path: Path) -> _Tokens | None:
    """None where there is no readable tokenizer; for the model itself others say why."""
    try:
        return msgspec.json.decode(tokenizer_json(path), type=_Tokens)
    except (ModelError, msgspec.DecodeError):
        return None
