"""From a name that a person types to the directory of a checkpoint."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import BadRequest, ModelError, ModelNotFound
from mainspring.registry.catalog import Catalog, Entry, check_name, is_name
from mainspring.registry.verify import combined, sha256_of

__all__ = ["EMBEDDED", "EMBEDDED_PATH", "ModelPath", "resolve"]

EMBEDDED = "mainspring-guide"
"""The model that comes with the package."""
EMBEDDED_PATH = Path(__file__).parent / EMBEDDED
CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class ModelPath:
    """A checkpoint's directory, the name it is served under and, where known, its digest."""

    name: str
    path: Path
    digest: str
    """sha256 over the files, as pulled; empty for a plain directory."""


def resolve(name: str, home: Path) -> ModelPath:
    """Find the checkpoint of `name`.

    A name is, in this order: the embedded model, NAME=DIRECTORY, a model of the home, or an
    existing directory, which is then served under its last part.

    Raises ModelNotFound with the nearest names, BadRequest for a name that cannot be one, and
    ModelError for a pulled model with missing or cut files.
    """
    if name == EMBEDDED:
        return _embedded()
    if not name or name.endswith("="):
        raise BadRequest("the model's name is empty: give a name or a directory", param="model")
    if "=" in name:
        given, _, directory = name.partition("=")
        return ModelPath(check_name(given), _directory(directory), "")
    catalog = Catalog(home)
    if entry := catalog.get(name):
        return ModelPath(name, entry.path, _digest(entry))
    path = _as_path(name)
    if path is not None and path.is_dir():
        return ModelPath(_name_of(path), _directory(name), "")
    if path is not None and path.is_file():
        raise BadRequest(f"{name!r} is a file: give the directory that holds config.json")
    raise _not_found(name, catalog)


def _embedded() -> ModelPath:
    if not (EMBEDDED_PATH / "config.json").is_file():
        raise ModelNotFound(f"this installation came without {EMBEDDED}: install it again")
    files = (path for path in EMBEDDED_PATH.iterdir() if path.suffix in CHECKPOINT_SUFFIXES)
    digest = combined({path.name: sha256_of(path) for path in files})
    return ModelPath(EMBEDDED, EMBEDDED_PATH, digest)


def _digest(entry: Entry) -> str:
    if entry.manifest is None:
        return ""
    if damage := entry.manifest.damage(entry.path):
        what = "differs from what was linked" if entry.manifest.linked else "is damaged"
        raise ModelError(
            f"model {entry.name!r} {what} ({damage[0]}): "
            f"`mainspring rm {entry.name}` and pull it again"
        )
    return entry.manifest.digest


def _as_path(text: str) -> Path | None:
    """The path, or None for text that no file system takes (NUL, far too long)."""
    if "\0" in text or len(text) > 4096:
        return None
    return Path(text).expanduser()


def _directory(text: str) -> Path:
    path = _as_path(text)
    if path is None or not path.is_dir():
        raise ModelNotFound(f"{text[:200]!r} is not a directory", param="model")
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{text!r} has no config.json: give the directory of a Hugging Face checkpoint"
        )
    return path.resolve()


def _name_of(path: Path) -> str:
    name = path.resolve().name
    if not is_name(name):
        raise BadRequest(f"{name!r} cannot be a model's name: write NAME={path}")
    return name


def _not_found(name: str, catalog: Catalog) -> ModelNotFound:
    known = [EMBEDDED, *catalog.names()]
    shown = name[:100]
    lower = {other.lower(): other for other in known}
    lower |= {other.rpartition("/")[2].lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    if near:
        names = " or ".join(dict.fromkeys(lower[other] for other in near))
        return ModelNotFound(f"no model {shown!r} here: did you mean {names}?", param="model")
    if name.count("/") == 1 and is_name(name):
        return ModelNotFound(
            f"no model {shown!r} here: bring it with `mainspring pull {shown}`", param="model"
        )
    return ModelNotFound(
        f"no model {shown!r} here: known are {', '.join(known[:10])}; `mainspring pull ID` brings "
        "another",
        param="model",
    )
