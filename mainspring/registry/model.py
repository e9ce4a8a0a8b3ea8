"""From a name that a person types to a checkpoint."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import BadRequest, ModelError, ModelNotFound
from mainspring.registry.catalog import Catalog, Entry, check_name, checkpoint_in, is_name
from mainspring.registry.files import GGUF, directory_of
from mainspring.registry.verify import combined, sha256_of

__all__ = ["EMBEDDED", "EMBEDDED_PATH", "ModelPath", "resolve"]

EMBEDDED = "mainspring-guide"
"""The model that comes with the package."""
EMBEDDED_PATH = Path(__file__).parent / EMBEDDED
CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class ModelPath:
    """A checkpoint (directory or GGUF file), the name it is served under, its digest if known."""

    name: str
    path: Path
    digest: str
    """sha256 over the files, as pulled; empty for what was not."""


def resolve(name: str, home: Path) -> ModelPath:
    """Find the checkpoint of `name`.

    A name is, in this order: the embedded model, NAME=PATH, a model of the home (of one pulled as
    ID:TAG also that), or the path of a directory or a GGUF file, which is then served under its
    last part.

    Raises ModelNotFound with the nearest names, BadRequest for a name that cannot be one, and
    ModelError for a pulled model with missing or cut files.
    """
    if name == EMBEDDED:
        return _embedded()
    if not name or name.endswith("="):
        raise BadRequest("the model's name is empty: give a name or a directory", param="model")
    if "=" in name:
        given, _, path = name.partition("=")
        return ModelPath(check_name(given), _checkpoint(path), "")
    catalog = Catalog(home)
    if entry := catalog.get(name) or catalog.get(name.replace(":", "-")):
        return ModelPath(entry.name, entry.path, _digest(entry))
    found = _as_path(name)
    if found is not None and found.exists():
        return ModelPath(_name_of(found), _checkpoint(name), "")
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
    if damage := entry.manifest.damage(directory_of(entry.path)):
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


def _checkpoint(text: str) -> Path:
    """The checkpoint at a path: a directory of files or a GGUF file, also the only one there."""
    path = _as_path(text)
    if path is None or not path.exists():
        raise ModelNotFound(f"{text[:200]!r} is not a directory or a file", param="model")
    if path.is_dir():
        if (found := checkpoint_in(path)) is None:
            raise ModelError(
                f"{text!r} has no config.json: give the directory of a Hugging Face checkpoint, or "
                "a GGUF file"
            )
        path = found
    elif path.suffix != GGUF:
        raise BadRequest(
            f"{text!r} is a file: give the directory that holds config.json, or a {GGUF} file"
        )
    # A link keeps its name: in a hub's cache the file itself has none.
    return path.parent.resolve() / path.name if path.suffix == GGUF else path.resolve()


def _name_of(path: Path) -> str:
    path = path.parent.resolve() / path.name if path.name else path.resolve()
    name = path.stem if path.suffix == GGUF else path.resolve().name
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
