"""A model as a person names it to `doctor` and `bench`: a name, a directory, or a config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mainspring.engine.weights import (
    CheckpointInfo,
    inspect_checkpoint,
    inspect_config,
    open_checkpoint,
)
from mainspring.errors import ModelError
from mainspring.registry import resolve
from mainspring.registry.verify import read_limited

__all__ = ["Subject", "config_of", "inspect_config_file", "subject_of"]

CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured or predicted."""

    name: str
    config: dict[str, Any]
    info: CheckpointInfo
    path: Path | None
    """the checkpoint; None when only a config.json was given"""


def subject_of(model: str, home: Path) -> Subject:
    """Raises ModelNotFound, ModelError, BadRequest as `resolve` and the Engine do."""
    config = config_of(model, home)
    if model.endswith(".json"):
        name = Path(model).expanduser().resolve().parent.name
        return Subject(name, config, inspect_config(config), None)
    found = resolve(model, home)
    return Subject(found.name, config, inspect_checkpoint(found.path), found.path)


def config_of(model: str, home: Path) -> dict[str, Any]:
    """The config.json of a name, a directory or its own path, or what a GGUF file says instead.

    Of a directory the weights need not be there.
    """
    if model.endswith(".json"):
        return read_config(Path(model).expanduser())
    path = resolve(model, home).path
    return open_checkpoint(path).config if path.is_file() else read_config(path / "config.json")


def inspect_config_file(path: Path) -> CheckpointInfo:
    """What the checkpoint of this config.json will be. Raises ModelError, UnknownArchitecture."""
    return inspect_config(read_config(path))


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises ModelError naming file and reason."""
    try:
        found = msgspec.json.decode(read_limited(path, CONFIG_LIMIT), type=dict[str, Any])
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except ValueError as error:
        raise ModelError(f"{path} is not a config.json: {error}") from error
    return found
