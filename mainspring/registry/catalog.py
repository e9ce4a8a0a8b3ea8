"""What is in the home: one directory a model under `models/`, and what is still coming."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import BadRequest, ModelError
from mainspring.registry.files import GGUF
from mainspring.registry.manifest import MANIFEST, Manifest, read_manifest

__all__ = ["Catalog", "Entry", "check_name", "checkpoint_in", "is_name"]

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
NAME = re.compile(rf"{PART}(?:/{PART})?")
NAME_RULE = (
    "a name is one part or OWNER/PART of letters, digits, '.', '_' and '-', at most 96 long, "
    "without '..' or '--', not beginning with '.' or '-'"
)


def check_name(name: str, param: str = "model") -> str:
    """`name`, if a model may be called so. Raises BadRequest with the rule otherwise."""
    if not is_name(name):
        raise BadRequest(f"{name[:100]!r} is not a model name: {NAME_RULE}", param=param)
    return name


def is_name(name: str) -> bool:
    """Whether a model may be called so; then no path built from it leaves the home."""
    return NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def checkpoint_in(directory: Path) -> Path | None:
    """The checkpoint of a directory: itself if it has a config.json, else its only GGUF file."""
    if (directory / "config.json").is_file():
        return directory
    files = list(directory.glob(f"*{GGUF}"))
    return files[0] if len(files) == 1 else None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the home. `manifest` is None for a directory that someone put there.

    `path` is the checkpoint, a directory or a GGUF file: of a linked model, where it always was.
    """

    name: str
    path: Path
    manifest: Manifest | None


class Catalog:
    """The models under a home directory. A name `a/b` lives in `models/a--b`.

    Only whole models are ever under `models/`: they are built under `partial/` and renamed.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser()
        self.models = self.home / "models"
        self.partial = self.home / "partial"

    def path(self, name: str) -> Path:
        """Where the model of that name is or would be. Raises BadRequest for a bad name."""
        return self.models / check_name(name).replace("/", "--")

    def names(self) -> list[str]:
        """All names, sorted."""
        if not self.models.is_dir():
            return []
        names = (path.name.replace("--", "/", 1) for path in self.models.iterdir() if path.is_dir())
        return sorted(name for name in names if name in self)

    def __contains__(self, name: str) -> bool:
        if not is_name(name):
            return False
        path = self.path(name)
        return (path / MANIFEST).exists() or checkpoint_in(path) is not None

    def get(self, name: str) -> Entry | None:
        """The entry of that name. Raises ModelError when its manifest cannot be read."""
        if name not in self:
            return None
        path = self.path(name)
        manifest = read_manifest(path)
        if manifest is None:
            return Entry(name, checkpoint_in(path) or path, None)
        if manifest.linked:
            return Entry(name, Path(manifest.source), manifest)
        single = [file.name for file in manifest.files if file.name.endswith(GGUF)]
        return Entry(name, path / single[0] if single else path, manifest)

    def put(self, name: str, built: Path) -> Path:
        """Move the finished directory `built` (under `partial`) to its place, over an older one."""
        place = self.path(name)
        self.models.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            return built.rename(place)
        old = self._set_aside(place)
        try:
            built.rename(place)
        except OSError:
            old.rename(place)
            raise
        shutil.rmtree(old.parent)
        return place

    def remove(self, name: str) -> int:
        """Delete the model and return how many bytes it had. Raises ModelError if it is absent."""
        if name not in self:
            raise ModelError(f"model {name!r} is not in {self.models}")
        path = self.path(name)
        size = sum(f.lstat().st_size for f in path.iterdir() if f.is_file())
        if path.is_symlink():
            path.unlink()
            return 0
        shutil.rmtree(self._set_aside(path).parent)
        return size

    def _set_aside(self, place: Path) -> Path:
        """Rename out of `models` at once, so that a half-deleted model is never listed."""
        self.partial.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="removed-", dir=self.partial)) / place.name
        place.rename(aside)
        return aside
