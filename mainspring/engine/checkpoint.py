"""Checkpoints, and the kind that is a Hugging Face directory: config.json and safetensors files,
read and distrusted.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from mainspring.errors import ModelError
from mainspring.kernels import Array

__all__ = [
    "Checkpoint", "LastFile", "SafetensorsCheckpoint", "Stamp", "Tensor", "exactly", "reading",
]  # fmt: skip

JSON_LIMIT = 16 << 20
HEADER_LIMIT = 100_000_000
SHARD_LIMIT = 4096
TENSOR_LIMIT = 1 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the bits
}
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """byte offset in the file"""
    nbytes: int


class Stamp(NamedTuple):
    """What tells that a file is still the one that was read.

    The system sets the time of the last change by itself: whoever writes, copies, moves another
    file there or sets its dates back has changed it.
    """

    size: int
    changed: int
    """ns; of contents, name or owner"""
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_size, found.st_ctime_ns, found.st_ino)


class Checkpoint(Protocol):
    """A model's files. Headers are read and checked when it is made, tensors when asked for.

    Tensors are read, not mapped: nothing of the files stays in memory after packing, and a file
    that shrinks while it is read is an error, not a crash. Raises ModelError naming file and
    reason; messages hold no path of this machine.
    """

    config: dict[str, Any]
    """config.json, or what the files say in its place"""
    generation: dict[str, Any]
    """generation_config.json"""
    stamps: dict[str, Stamp]
    """of each file when it was first opened"""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    def dtype_of(self, name: str) -> np.dtype[Any]:
        """Of what `read` gives: float32, float16, or uint16 holding the bits of bfloat16."""
        ...

    def read(self, name: str, out: Array) -> None:
        """Fill `out`, C-contiguous and of the tensor's dtype (`dtype_of`) and size."""
        ...

    def close(self) -> None:
        """Close the file that the last `read` left open."""
        ...


Open = Callable[[str], BinaryIO]


class LastFile:
    """Reads tensors. A file stays open for the next one: with many experts there are many."""

    def __init__(self) -> None:
        self._last: tuple[str, BinaryIO] | None = None

    def read(self, open: Open, name: str, tensor: Tensor, out: Array, start: int = 0) -> None:
        """Fill `out` with the bytes of the tensor called `name`, from its byte `start` on.

        `open` gives an unbuffered file by its name.
        """
        view = out.reshape(-1).view(np.uint8).data
        with reading(tensor.file):
            if self._last is None or self._last[0] != tensor.file:
                self.close()
                self._last = tensor.file, open(tensor.file)
            file = self._last[1]
            file.seek(tensor.start + start)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise ModelError(f"{tensor.file} ended inside {name}: copy it again")
                done += count

    def close(self) -> None:
        if self._last is not None:
            self._last[1].close()
            self._last = None


class SafetensorsCheckpoint:
    """One directory."""

    CONFIG = "config.json"
    WEIGHTS = "model.safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.stamps: dict[str, Stamp] = {}
        self._last = LastFile()
        with reading("the checkpoint"):
            if not path.is_dir():
                raise ModelError(f"{path.name} is not a directory with a checkpoint")
            self.config = self._json(self.CONFIG, required=True)
            self.generation = self._json("generation_config.json", required=False)
            for file, names in self._shards():
                self._read_header(file, names)

    def read(self, name: str, out: Array, index: int = 0) -> None:
        """Fill `out`, C-contiguous and of the tensor's dtype, with as many numbers as it holds.

        They begin at the `index`-th part of that size: 0 where `out` takes the whole tensor.
        """
        tensor = self.tensors[name]
        if (index + 1) * out.nbytes > tensor.nbytes:
            raise ModelError(f"{tensor.file}: {name} has {tensor.nbytes} bytes, too few")
        self._last.read(self._open, name, tensor, out, index * out.nbytes)

    def close(self) -> None:
        self._last.close()

    def dtype_of(self, name: str) -> np.dtype[Any]:
        tensor = self.tensors[name]
        if tensor.dtype not in DTYPES:
            raise ModelError(
                f"{tensor.file}: {name} is {tensor.dtype}; weights must be F32, F16 or BF16"
            )
        return DTYPES[tensor.dtype]

    def _open(self, name: str) -> BinaryIO:
        """A regular file of this directory, unbuffered. A hub cache's links to blobs are fine."""
        path = self.path / name
        try:
            real = path.resolve(strict=True)
            root = self.path.resolve()
            blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
            if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
                raise ModelError(f"{name} is a link out of the checkpoint's directory")
            # O_NONBLOCK: opening a FIFO must not wait for its writer.
            descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ModelError(f"{name} is missing from the checkpoint") from error
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "cannot be resolved"
            raise ModelError(f"{name} cannot be read: {reason}") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise ModelError(f"{name} is not a regular file")
        self.stamps.setdefault(name, Stamp.of(found))
        return os.fdopen(descriptor, "rb", buffering=0)

    def _json(self, name: str, *, required: bool) -> dict[str, Any]:
        if not required and not (self.path / name).exists():
            return {}
        with self._open(name) as file:
            data = exactly(file, min(os.fstat(file.fileno()).st_size, JSON_LIMIT + 1), name)
        if len(data) > JSON_LIMIT:
            raise ModelError(f"{name} is larger than {JSON_LIMIT >> 20} MiB")
        return _parse(data, name)

    @property
    def _index(self) -> str:
        return f"{self.WEIGHTS}.index.json"

    def _shards(self) -> Iterator[tuple[str, set[str] | None]]:
        """Files with the tensors the index expects in them; None: whatever is in the file."""
        if (self.path / self._index).exists():
            yield from self._indexed()
        elif (self.path / self.WEIGHTS).exists():
            yield self.WEIGHTS, None
        else:
            raise self._no_weights()

    def _indexed(self) -> Iterator[tuple[str, set[str] | None]]:
        weight_map = self._json(self._index, required=True).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(
                f"{self._index}: weight_map must be an object of tensor and file names"
            )
        files: dict[str, set[str]] = {}
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or file != Path(file).name or "\\" in file or "\0" in file:
                raise ModelError(f"{self._index}: {_short(file)} is not a plain file name")
            if file in {"", ".", ".."} or not file.endswith(".safetensors"):
                raise ModelError(f"{self._index}: {_short(file)} is not a .safetensors file")
            files.setdefault(file, set()).add(tensor)
        if len(files) > SHARD_LIMIT:
            raise ModelError(f"{self._index} names {len(files)} files; the limit is {SHARD_LIMIT}")
        missing = sorted(file for file in files if not (self.path / file).exists())
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(files)} weight files missing: {_list(missing)}; "
                "pull the model again"
            )
        yield from sorted(files.items())

    def _no_weights(self) -> ModelError:
        names = sorted(entry.name for entry in self.path.iterdir())
        if any(name.endswith(".gguf") for name in names):
            return ModelError("a directory of GGUF files: give the path of one of them")
        if pickles := [name for name in names if name.endswith(PICKLES)]:
            return ModelError(
                f"{_list(pickles)} may run code when opened, so it is not; convert to safetensors: "
                'AutoModelForCausalLM.from_pretrained("DIR").save_pretrained("NEW", '
                "safe_serialization=True) on a machine you can lose"
            )
        return ModelError(f"no {self.WEIGHTS} and no {self._index} in the checkpoint")

    def _read_header(self, file: str, expected: set[str] | None) -> None:
        with self._open(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(exactly(stream, 8, file), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ModelError(
                    f"{file}: header length {length} does not fit a file of {size} bytes"
                )
            header = _parse(exactly(stream, length, file), file)
        found = _entries(header, file, 8 + length, size)
        if expected is not None and (missing := sorted(expected - found.keys())):
            raise ModelError(f"{file} lacks {_list(missing)}, which {self._index} places there")
        if twice := sorted(found.keys() & self.tensors.keys()):
            raise ModelError(f"{_list(twice)}: in {file} and in {self.tensors[twice[0]].file}")
        self.tensors.update(found)
        if len(self.tensors) > TENSOR_LIMIT:
            raise ModelError(f"more than {TENSOR_LIMIT} tensors")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """The disk's own errors are the checkpoint's."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}") from error


def _entries(header: dict[str, Any], file: str, base: int, size: int) -> dict[str, Tensor]:
    """The header's tensors. They must tile the rest of the file: no hole, no overlap, no tail."""
    found = {
        name: _entry(name, entry, file, base)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = base
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            kind = "overlaps the one before" if tensor.start < end else "leaves a hole before it"
            raise ModelError(f"{file}: {_short(name)} at byte {tensor.start} {kind} (byte {end})")
        end += tensor.nbytes
    if end != size:
        raise ModelError(f"{file}: tensors end at byte {end}, the file at {size}; copy it again")
    return found


def _entry(name: str, entry: Any, file: str, base: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{file}: {_short(name)} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or len(shape) > 8:
        raise ModelError(f"{file}: {_short(name)} has a dtype or shape that cannot be")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(f"{file}: {_short(name)} has impossible data_offsets {_short(offsets)}")
    nbytes = offsets[1] - offsets[0]
    width = DTYPES[dtype].itemsize if dtype in DTYPES else WIDTHS.get(dtype, 1)
    elements = 1
    for n in shape:
        elements *= n
    if width > 1 and elements * width != nbytes:
        raise ModelError(
            f"{file}: {_short(name)} {dtype} {_short(shape)} takes {_short(elements * width)} "
            f"bytes, data_offsets give {nbytes}"
        )
    return Tensor(file, dtype, tuple(shape), base + offsets[0], nbytes)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in values
    )


def exactly(file: BinaryIO, count: int, name: str) -> bytes:
    """The next `count` bytes of the file called `name`. Raises ModelError where it ends before."""
    parts = []
    while count > 0:
        part = file.read(count)
        if not part:
            raise ModelError(f"{name} is cut short; copy it again")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ModelError(f"{name} has the same key twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not valid JSON: {_short(str(error))}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} must hold a JSON object")
    return value


def _list(names: list[str], most: int = 5) -> str:
    shown = ", ".join(name[:100] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 100 else text[:97] + "..."
