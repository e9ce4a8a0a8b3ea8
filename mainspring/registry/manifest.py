"""What was pulled, from where, file by file: the `manifest.json` of a model's directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mainspring.errors import ModelError
from mainspring.registry.verify import combined, read_limited, sha256_of

__all__ = ["MANIFEST", "Manifest", "ManifestFile", "is_plain_name", "read_manifest"]

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 8 << 20
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


def is_plain_name(name: str) -> bool:
    """Whether `name` is one file of a directory: no separator, no NUL, no leading dot."""
    return PLAIN_NAME.fullmatch(name) is not None


class ManifestFile(Struct, frozen=True, kw_only=True):
    name: str
    size: Annotated[int, Meta(ge=0)]
    sha256: Digest


class Manifest(Struct, frozen=True, kw_only=True):
    """The files of a model as they were when they came, each with its digest."""

    name: str
    source: str
    """A hub's URL with the model's id, or a directory."""
    revision: str = ""
    """The commit that was pulled; empty for a directory."""
    pulled: str
    """RFC 3339, UTC"""
    linked: bool = False
    """The files stay in the directory `source`; here is only this manifest."""
    files: tuple[ManifestFile, ...]

    @property
    def digest(self) -> str:
        """sha256 over names and digests of all files, hexadecimal."""
        return combined({file.name: file.sha256 for file in self.files})

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def damage(self, directory: Path, *, contents: bool = False) -> list[str]:
        """What differs from the files in `directory`; sizes only, unless `contents`."""
        found = []
        for file in self.files:
            path = directory / file.name
            if not path.is_file():
                found.append(f"{file.name} is missing")
            elif (size := path.stat().st_size) != file.size:
                found.append(f"{file.name} has {size} bytes, not {file.size}")
            elif contents and sha256_of(path) != file.sha256:
                found.append(f"{file.name} was changed after it came (sha256 differs)")
        return found

    def write(self, directory: Path) -> None:
        data = msgspec.json.format(msgspec.json.encode(self), indent=2)
        (directory / MANIFEST).write_bytes(data + b"\n")


def read_manifest(directory: Path) -> Manifest | None:
    """The directory's manifest, None where it has none. Raises ModelError for a broken one."""
    try:
        manifest = msgspec.json.decode(
            read_limited(directory / MANIFEST, MANIFEST_LIMIT), type=Manifest
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{MANIFEST} of {directory.name} cannot be read ({error}): remove the model and pull "
            "it again"
        ) from error
    if bad := [file.name for file in manifest.files if not is_plain_name(file.name)]:
        raise ModelError(f"{MANIFEST} of {directory.name} names {bad[0]!r}, which is not a file")
    return manifest
