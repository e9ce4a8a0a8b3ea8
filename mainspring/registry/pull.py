"""Bring a model into the home, from a hub or from a directory: whole and checked, or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mainspring.errors import (
    BadRequest,
    Conflict,
    InsufficientMemory,
    ModelError,
    ModelNotFound,
    Unavailable,
)
from mainspring.registry.catalog import Catalog, check_name
from mainspring.registry.download import Download
from mainspring.registry.files import (
    GGUF,
    directory_of,
    first_files,
    gguf_files,
    refuse_hostile,
    weight_files,
)
from mainspring.registry.hub import Cut, Hub, HubFile, Listing
from mainspring.registry.manifest import Manifest, ManifestFile
from mainspring.registry.model import EMBEDDED
from mainspring.registry.verify import read_limited

__all__ = ["Progress", "pull_from_hub", "pull_path"]

PIECE = 4 << 20
SMALL_LIMIT = 256 << 20
LISTING_ATTEMPTS = 3
FULL = {errno.ENOSPC, errno.EDQUOT}


class Progress(Protocol):
    """Who shows how a pull goes on."""

    def files(self, sizes: Mapping[str, int]) -> None:
        """These files will come; called once more when the weight files are known."""

    def moved(self, name: str, size: int) -> None:
        """`size` more bytes of the file are here; negative when it starts again."""


Check = Callable[[Path], None]
"""Called with a directory that has the model's small files, before the weights come, or with a GGUF
file that has come."""


def pull_from_hub(
    hub: Hub,
    id: str,
    home: Path,
    *,
    progress: Progress,
    revision: str = "main",
    tag: str = "",
    name: str = "",
    check: Check = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> Manifest:
    """Fetch the model `id` at `revision` and put it into the home under `name` (default: the id).

    `tag` says which GGUF file of several is wanted; the default name is then ID-TAG.
    The revision is pinned to its commit, every file is checked against the hub's digest, and the
    model is listed only when all of it is here. An interrupted pull goes on where it stopped.
    Raises ModelNotFound, Forbidden, ModelError, InsufficientMemory (of the disk), Unavailable.
    """
    catalog = Catalog(home)
    name = _free_name(name or (f"{id}-{tag.removesuffix(GGUF)}" if tag else id))
    listing = _listing(hub, id, revision, pause)
    refuse_hostile(listing.names, hub.url(id))
    whole = gguf_files(listing.names, tag, hub.url(id))
    if (here := _already(catalog, name, hub.url(id), listing.commit, whole)) is not None:
        return here
    with _building(catalog, name, listing.commit[:12]) as directory:
        sums: dict[str, str] = {}

        def fetch(names: list[str]) -> None:
            wanted = [_listed(listing, file, hub) for file in names]
            progress.files({file.name: file.size for file in wanted})
            _need_space(directory, {file.name: file.size for file in wanted})
            for file in wanted:
                sums[file.name] = Download(
                    hub, listing, file, directory, report=_reporter(progress, file.name),
                    pause=pause,
                ).run()  # fmt: skip

        if whole:
            fetch(whole)
            check(directory / whole[0])
        else:
            fetch(first_files(listing.names, hub.url(id)))
            check(directory)
            fetch(weight_files(listing.names, hub.url(id), lambda n: _small(directory / n)))
        return _finish(catalog, name, directory, sums, hub.url(id), listing.commit)


def pull_path(
    source: Path,
    home: Path,
    *,
    progress: Progress,
    name: str = "",
    link: bool = False,
    check: Check = lambda _: None,
) -> Manifest:
    """Copy a checkpoint's directory or GGUF file into the home, or `link`: only record its digests.

    Raises ModelError for what is no checkpoint, InsufficientMemory when the disk is too small.
    """
    catalog = Catalog(home)
    source = source.resolve()
    place = directory_of(source)
    name = _free_name(name or source.name.removesuffix(GGUF))
    check(source)
    if place == source:
        names = [path.name for path in source.iterdir() if path.is_file()]
        wanted = first_files(names, str(source))
        wanted += weight_files(names, str(source), lambda n: _small(source / n))
    else:
        wanted = [source.name]
    sizes = {file: (place / file).stat().st_size for file in wanted}
    progress.files(sizes)
    with _building(catalog, name, "copy") as directory:
        if not link:
            _need_space(directory, sizes)
        sums = {
            file: _copied(place / file, None if link else directory / file, progress)
            for file in wanted
        }
        return _finish(catalog, name, directory, sums, str(source), "", linked=link)


def _listing(hub: Hub, id: str, revision: str, pause: Callable[[float], None]) -> Listing:
    for attempt in range(LISTING_ATTEMPTS):
        try:
            return hub.listing(id, revision)
        except Cut as error:
            if attempt == LISTING_ATTEMPTS - 1:
                raise Unavailable(
                    f"cannot reach {hub.endpoint} ({error}): check the network and HF_ENDPOINT"
                ) from error
            pause(0.5 * 2**attempt)
        except ModelNotFound as error:
            if near := [other for other in hub.similar(id) if other != id]:
                raise ModelNotFound(f"{error.message}; similar: {', '.join(near)}") from error
            raise
    raise AssertionError("unreachable")


def _free_name(name: str) -> str:
    if name == EMBEDDED:
        raise BadRequest(f"{EMBEDDED} is the model of the package: choose another --name")
    return check_name(name)


def _already(
    catalog: Catalog, name: str, source: str, commit: str, files: Sequence[str]
) -> Manifest | None:
    """The manifest of the same commit, with these files, if it is here undamaged (by sizes)."""
    entry = catalog.get(name)
    if entry is None or entry.manifest is None:
        return None
    manifest = entry.manifest
    if manifest.damage(directory_of(entry.path)):
        return None
    same = (manifest.source, manifest.revision) == (source, commit)
    return manifest if same and {*files} <= {file.name for file in manifest.files} else None


def _listed(listing: Listing, name: str, hub: Hub) -> HubFile:
    file = listing.files[name]
    if file.size < 0 or not (file.sha256 or file.blob):
        raise ModelError(
            f"{hub.endpoint} lists no size or no digest for {name}, so it cannot be checked: use a "
            "hub that does"
        )
    return file


def _reporter(progress: Progress, name: str) -> Callable[[int], None]:
    return lambda size: progress.moved(name, size)


def _small(path: Path) -> bytes:
    return read_limited(path, SMALL_LIMIT)


@contextmanager
def _building(catalog: Catalog, name: str, version: str) -> Iterator[Path]:
    """A directory under `partial/` for this model's files, held by one process at a time.

    It stays when the body fails, for the next attempt; those of other versions are deleted.
    """
    slug = catalog.path(name).name
    try:
        catalog.partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(
            f"cannot write to the home {catalog.home} ({error.strerror}): choose another place "
            "with --home or MAINSPRING_HOME"
        ) from error
    with (catalog.partial / f"{slug}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"{name} is being pulled by another process: wait for it") from error
        directory = catalog.partial / f"{slug}@{version}"
        for other in catalog.partial.glob(f"{slug}@*"):
            if other != directory:
                shutil.rmtree(other)
        directory.mkdir(exist_ok=True)
        try:
            yield directory
        except OSError as error:
            if error.errno not in FULL:
                raise
            free = shutil.disk_usage(catalog.home).free
            raise InsufficientMemory(
                f"no space left for {name} in {catalog.home} ({free:,} bytes free): free some or "
                "choose another disk with --home; the pull goes on from here"
            ) from error


def _need_space(directory: Path, sizes: Mapping[str, int]) -> None:
    here = 0
    for name in sizes:
        for path in (directory / name, directory / f"{name}.part"):
            here += path.stat().st_size if path.exists() else 0
    needed = sum(sizes.values()) - here
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InsufficientMemory(
            f"the download needs {needed:,} bytes, {free:,} are free in {directory.parent.parent}: "
            "free some or choose another disk with --home"
        )


def _copied(source: Path, target: Path | None, progress: Progress) -> str:
    """The sha256 of `source`, which is copied on the way when there is a target."""
    digest = hashlib.sha256()
    with source.open("rb") as file, (target or Path(os.devnull)).open("wb") as out:
        while piece := file.read(PIECE):
            digest.update(piece)
            out.write(piece)
            progress.moved(source.name, len(piece))
        if target is not None:
            out.flush()
            os.fsync(out.fileno())
    return digest.hexdigest()


def _finish(
    catalog: Catalog,
    name: str,
    directory: Path,
    sums: Mapping[str, str],
    source: str,
    revision: str,
    *,
    linked: bool = False,
) -> Manifest:
    """Write the manifest and let the model appear in the catalog."""
    origin = directory_of(Path(source)) if linked else directory
    manifest = Manifest(
        name=name,
        source=source,
        revision=revision,
        pulled=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        linked=linked,
        files=tuple(
            ManifestFile(name=file, size=(origin / file).stat().st_size, sha256=sums[file])
            for file in sorted(sums)
        ),
    )
    for path in directory.iterdir():
        if linked or path.name not in sums:
            path.unlink()
    manifest.write(directory)
    catalog.put(name, directory)
    return manifest
