"""The header of a GGUF file, versions 2 and 3: metadata and where the tensors lie.

Nothing in a file is believed before it is checked: every length against the bytes that are there,
every product against a limit. Python's integers do not overflow, so no sum or product can wrap.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mainspring.engine.checkpoint import Stamp, Tensor, exactly, reading
from mainspring.engine.fields import Fields
from mainspring.errors import ModelError
from mainspring.kernels import Array

__all__ = ["Header", "Metadata", "open_regular", "read_metadata", "row_bytes"]

MAGIC = b"GGUF"
FIRST, HEADER_LIMIT = 16 << 20, 64 << 20
"""bytes read at once; and at most, for four million tokens and more"""
KEY_LIMIT, NAME_LIMIT, PAIRS_LIMIT = 1 << 16, 256, 1 << 16
ITEMS_LIMIT = 1 << 22
"""entries of an array"""
ELEMENTS_LIMIT = 1 << 48
DIMENSIONS = 4
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18),
    "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q2_K": (256, 84), "Q3_K": (256, 110),
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}  # fmt: skip
"""numbers of a block along a row, and its bytes"""
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16",
}  # fmt: skip
UNREAD = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""types known by name only"""


class Header:
    """What one file says of itself.

    `pairs` holds the metadata: numbers, bool, str, numpy arrays, `Strings`. `tensors` are by their
    stored names, shapes with the rows first as numpy has them. Raises ModelError naming the file,
    the byte and what is wrong there, and OSError.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        size = os.fstat(file.fileno()).st_size
        length = min(size, FIRST)
        while True:
            file.seek(0)
            try:
                cursor = Cursor(exactly(file, length, name), name, whole=length == size)
                self._read(cursor, size)
                return
            except Short as short:
                if length == HEADER_LIMIT:
                    raise ModelError(
                        f"{name}: the header is larger than {HEADER_LIMIT >> 20} MiB"
                    ) from short
                length = min(size, HEADER_LIMIT)

    def _read(self, cursor: Cursor, size: int) -> None:
        if cursor.take(4) != MAGIC:
            raise cursor.refuse("this is no GGUF file", 0)
        version = cursor.number(U32)
        if version not in (2, 3):
            found = "big-endian" if version in (2 << 24, 3 << 24) else f"version {version}"
            raise cursor.refuse(f"{found}; GGUF versions 2 and 3, little-endian, are read", 4)
        count = cursor.count(size // 24, "tensors")
        self.pairs: dict[str, Any] = {}
        for _ in range(cursor.count(PAIRS_LIMIT, "metadata pairs")):
            at = cursor.at
            key = cursor.text(KEY_LIMIT)
            if key in self.pairs:
                raise cursor.refuse(f"{key[:100]} is there twice", at)
            self.pairs[key] = cursor.value(cursor.number(U32))
        self.alignment = self.pairs.get("general.alignment", 32)
        if self.alignment not in (1 << i for i in range(17)):
            raise cursor.refuse("general.alignment must be a power of two up to 65536")
        self.tensors: dict[str, Tensor] = {}
        for _ in range(count):
            self._tensor(cursor)
        self._place(cursor, size)

    def _tensor(self, cursor: Cursor) -> None:
        at = cursor.at
        name = cursor.text(NAME_LIMIT)
        shape, elements = [], 1
        for _ in range(cursor.small(DIMENSIONS, f"dimensions of {name}", low=1)):
            shape.append(cursor.count(ELEMENTS_LIMIT, f"entries of {name}", low=1))
            elements *= shape[-1]
        if elements > ELEMENTS_LIMIT:
            raise cursor.refuse(f"{name} has {elements} numbers", at)
        number = cursor.number(U32)
        if number not in TYPES:
            kind = UNREAD.get(number, number)
            raise cursor.refuse(
                f"{name} is of type {kind}; read are {', '.join(BLOCKS)}: take another file of "
                "the model"
            )
        values, _ = BLOCKS[dtype := TYPES[number]]
        if shape[0] % values:
            raise cursor.refuse(f"{name} has rows of {shape[0]}; {dtype} needs whole {values}s", at)
        if name in self.tensors:
            raise cursor.refuse(f"{name[:100]} is there twice", at)
        start = cursor.number(U64)
        nbytes = elements // shape[0] * row_bytes(dtype, shape[0])
        self.tensors[name] = Tensor(cursor.file, dtype, tuple(reversed(shape)), start, nbytes)

    def _place(self, cursor: Cursor, size: int) -> None:
        """Starts from the file's beginning. The tensors must tile its rest, each aligned."""
        end = base = _aligned(cursor.at, self.alignment)
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].start):
            start = base + tensor.start
            if start != end:
                kind = "overlaps the one before" if start < end else "leaves a hole before it"
                raise ModelError(f"{cursor.file}: {name} at byte {start} {kind} (byte {end})")
            if start + tensor.nbytes > size:
                raise ModelError(
                    f"{cursor.file}: {name} at byte {start} takes {tensor.nbytes} bytes, the file "
                    f"has {size}; copy it again"
                )
            self.tensors[name] = Tensor(
                tensor.file, tensor.dtype, tensor.shape, start, tensor.nbytes
            )
            end = _aligned(start + tensor.nbytes, self.alignment)


class Short(Exception):
    """The header goes on after the bytes that were read."""


class Strings:
    """An array of strings, walked and checked, decoded when asked for."""

    def __init__(self, data: bytes, start: int, count: int, file: str) -> None:
        self._data, self._start, self._count, self._file = data, start, count, file

    def __len__(self) -> int:
        return self._count

    def list(self) -> list[str]:
        """Raises ModelError where one is not UTF-8."""
        data, at, read = self._data, self._start, U64.unpack_from
        found = []
        try:
            for _ in range(self._count):
                end = at + 8 + read(data, at)[0]
                found.append(data[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError as error:
            raise ModelError(f"{self._file}: the string at byte {at} is not UTF-8") from error
        return found


class Metadata(Fields):
    """The pairs of a header, read with types and limits checked."""

    def __init__(self, header: Header, file: str) -> None:
        super().__init__(header.pairs, where=file)
        self.header = header

    def strings(self, key: str) -> list[str]:
        value = self.values.get(key)
        if isinstance(value, Strings):
            return value.list()
        if isinstance(value, np.ndarray) and not len(value):
            return []
        raise self.refuse(key, "must be a list of strings")

    def array(self, key: str) -> Any:
        """A list of numbers as a numpy array; absent: empty."""
        value = self.values.get(key, np.zeros(0, np.int32))
        if not isinstance(value, np.ndarray):
            raise self.refuse(key, "must be a list of numbers")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "must be a string")
        return value


class Cursor:
    """Walks over the first bytes of a file. Raises Short past them, ModelError if they are all."""

    def __init__(self, data: bytes, file: str, *, whole: bool) -> None:
        self.data = data
        self.file = file
        self.at = 0
        self._whole = whole

    def refuse(self, reason: str, at: int | None = None) -> ModelError:
        return ModelError(f"{self.file}: byte {self.at if at is None else at}: {reason}")

    def take(self, count: int) -> bytes:
        return self.data[self.skip(count) : self.at]

    def skip(self, count: int) -> int:
        """Where the `count` bytes start that are passed over."""
        start = self.at
        if start + count > len(self.data):
            if self._whole or start + count > HEADER_LIMIT:
                raise self.refuse(f"{count} bytes should follow; the file is cut short or damaged")
            raise Short
        self.at += count
        return start

    def number(self, kind: struct.Struct) -> int:
        value: int = kind.unpack(self.take(kind.size))[0]
        return value

    def count(self, most: int, what: str, *, low: int = 0) -> int:
        return self._within(self.number(U64), low, most, what, 8)

    def small(self, most: int, what: str, *, low: int = 0) -> int:
        return self._within(self.number(U32), low, most, what, 4)

    def _within(self, value: int, low: int, most: int, what: str, size: int) -> int:
        if not low <= value <= most:
            raise self.refuse(f"{value} {what}; the limits are {low} to {most}", self.at - size)
        return value

    def text(self, most: int) -> str:
        at = self.at
        try:
            return self.take(self.count(most, "bytes of a name")).decode()
        except UnicodeDecodeError as error:
            raise self.refuse("the name is not UTF-8", at) from error

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text(HEADER_LIMIT)
        if kind != ARRAY:
            found = self._numbers(kind, 1)[0].item()
            return bool(found) if kind == BOOL else found
        kind = self.number(U32)
        if kind == ARRAY:
            raise self.refuse("an array of arrays, which no model needs", self.at - 4)
        count = self.count(ITEMS_LIMIT, "entries of an array")
        return self._strings(count) if kind == STRING else self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> Array:
        if kind not in NUMBERS:
            raise self.refuse(f"a value of the unknown type {kind}", self.at - 4)
        dtype = NUMBERS[kind]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _strings(self, count: int) -> Strings:
        start, data, read = self.at, self.data, U64.unpack_from
        at = start
        try:
            for _ in range(count):
                at += 8 + read(data, at)[0]
        except (struct.error, OverflowError):
            at = len(data) + 1
        self.skip(at - start)
        return Strings(data, start, count, self.file)


def row_bytes(dtype: str, k: int) -> int:
    """Bytes of a row of `k` numbers."""
    values, nbytes = BLOCKS[dtype]
    return k // values * nbytes


def read_metadata(path: Path) -> Metadata:
    """What the file at `path` says of itself. Raises ModelError."""
    file, _ = open_regular(path)
    with reading(path.name), file:
        return Metadata(Header(file, path.name), path.name)


def open_regular(path: Path) -> tuple[BinaryIO, Stamp]:
    """The file, unbuffered; a FIFO or a device is refused. Raises ModelError."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ModelError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0), Stamp.of(found)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
