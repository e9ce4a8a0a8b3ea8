"""A prepared model: the packed matrices of a checkpoint in a file that is read as it is.

The file lies in the checkpoint's directory and belongs to exactly those files on this machine. It
holds the matrices, one after the other in the order in which the family asks for them, then a
table as JSON, then the table's length and crc32 and MAGIC: a file that was cut has no such end.
Where a matrix lies follows from the sizes of those before it, so the table cannot point anywhere.
Everything small (norms, biases, configuration) is read from the checkpoint, as ever.

What is read was computed once and is distrusted: whatever is wrong with it, `Unusable` says so
before a token is computed, and the checkpoint can be loaded instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, cast

import msgspec
from msgspec import Meta, Struct

from mainspring.engine.architectures import Architecture
from mainspring.engine.checkpoint import Stamp
from mainspring.engine.codes import Codes
from mainspring.engine.plan import PlannedWeight
from mainspring.engine.quantize import Role, format_of
from mainspring.engine.source import Source, packed
from mainspring.errors import BadRequest, Conflict, InsufficientMemory
from mainspring.kernels import Array, CodedFormat, Format, LastingKernels, LastingWeight, Weight

__all__ = [
    "Matrix",
    "PreparedFile",
    "PreparedSource",
    "Table",
    "Unusable",
    "WritingSource",
    "disk_full",
    "prepared_path",
    "replacing",
    "write_table",
]

MAGIC = b"mspring1"
END = struct.Struct("<QI8s")
"""length and crc32 of the table, MAGIC"""
TABLE_LIMIT = 64 << 20
CHUNK = 4 << 20
"""bytes that share a crc32, and that a thread reads at a time"""

Build = Callable[[Source], Architecture]


class Unusable(Exception):
    """The prepared file cannot be used; the text says why."""


class Matrix(Struct, frozen=True, forbid_unknown_fields=True):
    """One packed matrix."""

    name: str
    """of the tensors that it was packed from"""
    sums: tuple[Annotated[int, Meta(ge=0, lt=1 << 32)], ...]
    """crc32 of each CHUNK"""


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """What a prepared file says of itself."""

    layout: str
    """of the kernels that packed it"""
    format: Literal["float32", "bf16", "int8", "int4"]
    files: Mapping[str, Stamp]
    """of the checkpoint"""
    matrices: tuple[Matrix, ...]


def prepared_path(path: Path, format: Format) -> Path:
    """Where the prepared form of a checkpoint lies: in its directory, or beside its file."""
    if path.suffix == ".gguf":
        return path.with_name(f"{path.name}.{format}.prepared")
    return path / f"{format}.prepared"


class WritingSource(Source):
    """Packs each matrix into a file and forgets it, so a model larger than memory is prepared."""

    kernels: LastingKernels

    def write(self, file: BinaryIO, build: Build) -> tuple[Matrix, ...]:
        """Write all that `build` asks for."""
        self._file = file
        self._matrices: list[Matrix] = []
        build(self)
        return tuple(self._matrices)

    def _pack(
        self, name: str, matrix: Array | Codes, bias: Array | None, role: Role | CodedFormat
    ) -> Weight:
        format = format_of(role, self.format)
        memory = cast(LastingWeight, packed(self.kernels, matrix, None, format)).memory.data
        pieces = [memory[start : start + CHUNK] for start in range(0, len(memory), CHUNK)]
        self._matrices.append(Matrix(name, tuple(map(zlib.crc32, pieces))))
        self._file.writelines(pieces)
        n, k = matrix.shape
        return PlannedWeight(n, k, format, 0)


@contextmanager
def replacing(place: Path) -> Iterator[BinaryIO]:
    """A file that takes the `place` of an older one when all of it has reached the disk.

    Raises BadRequest where nothing may be written, InsufficientMemory when the disk is full,
    Conflict when another process writes it too.
    """
    part = place.with_name(f"{place.name}.part")
    try:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                raise BlockingIOError  # another process ended between the two lines before
            try:
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                part.replace(place)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except (BlockingIOError, FileNotFoundError) as error:
        raise Conflict(f"{place.name} is being made by another process: wait for it") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(place) from error
        raise BadRequest(
            f"cannot write {place} ({error.strerror}): bring the model into the home with "
            "`mainspring pull DIRECTORY`, or prepare it as the user that owns it"
        ) from error


def disk_full(place: Path) -> InsufficientMemory:
    free = shutil.disk_usage(place.parent).free
    return InsufficientMemory(
        f"no space left for {place.name} ({free:,} bytes free in {place.parent}): free some, or "
        "serve the model without preparing it"
    )


def write_table(file: BinaryIO, table: Table) -> None:
    """What ends a prepared file."""
    data = msgspec.json.encode(table)
    file.write(data + END.pack(len(data), zlib.crc32(data), MAGIC))


class PreparedFile:
    """One file, open, with its table read and checked. Raises Unusable."""

    def __init__(self, path: Path) -> None:
        try:
            # O_NONBLOCK: opening a FIFO must not wait for its writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            self._file = os.open(path, flags)
        except OSError as error:
            raise Unusable(f"it cannot be opened ({error.strerror})") from error
        try:
            self.table = self._read_table()
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)

    def _read_table(self) -> Table:
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("it is not a regular file")
        end = bytearray(END.size)
        at = found.st_size - END.size
        self._read(memoryview(end), max(0, at))
        length, sum, magic = END.unpack(end)
        if magic != MAGIC or not 0 < length <= min(at, TABLE_LIMIT):
            raise Unusable("it is cut short, or not a prepared model of this version")
        table = bytearray(length)
        self.end = at - length
        """bytes of all matrices"""
        self._read(memoryview(table), self.end)
        if zlib.crc32(table) != sum:
            raise Unusable("its table is damaged")
        try:
            return msgspec.json.decode(table, type=Table)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"its table makes no sense ({error})") from error

    def fill(self, weight: LastingWeight, matrix: Matrix, start: int) -> int:
        """Read a matrix that begins at byte `start`; returns its bytes."""
        memory = weight.memory.data
        places = range(0, len(memory), CHUNK)
        if len(places) != len(matrix.sums):
            raise Unusable(f"{matrix.name} has another size")
        for place, sum in zip(places, matrix.sums, strict=True):
            piece = memory[place : place + CHUNK]
            self._read(piece, start + place)
            if zlib.crc32(piece) != sum:
                raise Unusable(f"{matrix.name} is damaged")
        return len(memory)

    def _read(self, out: memoryview, start: int) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._file, [out[done:]], start + done)
            except OSError as error:
                raise Unusable(f"it cannot be read ({error.strerror})") from error
            if not count:
                raise Unusable("it is cut short")
            done += count


class PreparedSource(Source):
    """A Source whose matrices come packed."""

    numbers = False
    kernels: LastingKernels

    def load(
        self, file: PreparedFile, build: Build, progress: Callable[[int, int], None] | None
    ) -> Architecture:
        """What `build` makes, with all matrices read, by as many threads as the kernels have.

        `progress(done, total)` is called with bytes. Raises Unusable.
        """
        self._file = file
        self._expected = iter(file.table.matrices)
        self._end = 0
        self._fills: list[Future[int]] = []
        with ThreadPoolExecutor(self.kernels.threads) as self._pool:
            model = build(self)
            if self._end != file.end or next(self._expected, None) is not None:
                raise Unusable("it holds more than this model has")
            done = 0
            for fill in self._fills:
                done += fill.result()
                if progress is not None:
                    progress(done, file.end)
        return model

    def _matrix(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        return self._unread(shapes)

    def _codes(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array | Codes:
        return self._unread(shapes)

    def _pack(
        self, name: str, matrix: Array | Codes, bias: Array | None, role: Role | CodedFormat
    ) -> Weight:
        n, k = matrix.shape
        expected = next(self._expected, None)
        if expected is None or expected.name != name:
            raise Unusable(f"it lacks {name}")
        weight = self.kernels.blank(n, k, bias, format=format_of(role, self.format))
        self._fills.append(self._pool.submit(self._file.fill, weight, expected, self._end))
        self._end += len(weight.memory)
        self.weight_bytes += weight.nbytes
        return weight
