"""How a checkpoint likes to be sampled: the part of generation_config.json that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from mainspring.errors import ModelError
from mainspring.registry.verify import read_limited

__all__ = ["sampling_defaults"]

NAME = "generation_config.json"
LIMIT = 1 << 20


class Generation(Struct, frozen=True):
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None


def sampling_defaults(checkpoint: Path) -> dict[str, Any]:
    """Fields of `Sampling` for a client that leaves them out; empty where the file is absent.

    `do_sample: false` is a temperature of 0. Raises ModelError for a file that cannot be used.
    """
    path = checkpoint / NAME
    if not path.exists():
        return {}
    try:
        found = msgspec.json.decode(read_limited(path, LIMIT), type=Generation)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{NAME}: {error}") from error
    values = msgspec.structs.asdict(found)
    if values.pop("do_sample") is False:
        values["temperature"] = 0.0
    return {name: value for name, value in values.items() if value is not None}
