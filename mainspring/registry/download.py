"""One file from a hub to disk: resumed, bounded by its listed size, checked against its digest."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mainspring.errors import ModelError, Unavailable
from mainspring.registry.hub import Cut, Hub, HubFile, Listing
from mainspring.registry.verify import git_blob_start

__all__ = ["Download"]

ATTEMPTS = 6
"""Failures in a row, without a single new byte, before giving up."""
PIECE = 1 << 20


class Download:
    """`run` leaves the whole, checked file at `directory / file.name`.

    Until then its bytes are in `NAME.part`, which survives an interruption; the next run goes on
    from there, after hashing what is already here. `report(bytes)` is called as bytes arrive.
    """

    def __init__(
        self,
        hub: Hub,
        listing: Listing,
        file: HubFile,
        directory: Path,
        *,
        report: Callable[[int], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.hub, self.listing, self.file = hub, listing, file
        self.path = directory / file.name
        self.part = directory / f"{file.name}.part"
        self.report, self.pause = report, pause
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.blob = hashlib.sha1(git_blob_start(self.file.size), usedforsecurity=False)

    def run(self) -> str:
        """Fetch what is missing and return the file's sha256.

        Raises ModelError for a wrong digest, Unavailable when the hub stays away, OSError.
        """
        if self.path.exists():
            self.path.replace(self.part)
        old = self._take_what_is_here()
        self._fetch()
        if not self._right() and old:
            # The bytes of the earlier run may be the wrong ones: once more, from the start.
            self._discard()
            self._fetch()
        if not self._right():
            self._discard()
            raise ModelError(
                f"{self.file.name} arrived with another digest than {self.hub.endpoint} lists: it "
                "was deleted; pull again, and if it happens again do not trust the source"
            )
        self.part.replace(self.path)
        return self.sha256.hexdigest()

    def _right(self) -> bool:
        if self.size != self.file.size:
            return False
        if self.file.sha256:
            return self.sha256.hexdigest() == self.file.sha256
        return self.blob.hexdigest() == self.file.blob

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.report(-self.size)
        self._begin()

    def _take_what_is_here(self) -> int:
        if not self.part.exists():
            return 0
        if self.part.stat().st_size > self.file.size:
            self.part.unlink()
            return 0
        with self.part.open("rb") as file:
            while piece := file.read(PIECE):
                self._count(piece)
        return self.size

    def _count(self, piece: bytes) -> None:
        self.sha256.update(piece)
        self.blob.update(piece)
        self.size += len(piece)
        self.report(len(piece))

    def _fetch(self) -> None:
        failures = 0
        self.part.touch()
        while self.size < self.file.size:
            before = self.size
            try:
                self._attempt()
            except Cut as error:
                failures = 1 if self.size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise Unavailable(
                        f"{self.hub.endpoint} does not send {self.file.name} ({error}): run the "
                        "same command later, it goes on from here"
                    ) from error
                self.pause(min(8.0, 0.25 * 2**failures))

    def _attempt(self) -> None:
        with self.hub.open(self.listing, self.file.name, self.size) as reply:
            expected = f"bytes {self.size}-"
            if self.size and reply.status != 206:
                self._discard()  # this hub cannot continue a file
            elif self.size and not reply.headers.get("Content-Range", "").startswith(expected):
                raise Cut("the hub continues at another place than asked")
            with self.part.open("ab") as out:
                self._copy(reply, out)
                out.flush()
                os.fsync(out.fileno())

    def _copy(self, reply: http.client.HTTPResponse, out: BinaryIO) -> None:
        while self.size < self.file.size:
            try:
                piece = reply.read1(min(PIECE, self.file.size - self.size))
            except (OSError, http.client.HTTPException) as error:
                raise Cut(str(error) or type(error).__name__) from error
            if not piece:
                raise Cut(f"the connection ended at byte {self.size} of {self.file.size}")
            out.write(piece)
            self._count(piece)
