"""Where an Architecture's weights come from: named tensors in, packed Weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from mainspring.engine.adapter import Slot
from mainspring.engine.checkpoint import Checkpoint
from mainspring.engine.codes import Codes, HoldsCodes
from mainspring.engine.fields import Fields
from mainspring.engine.layers.linear import Linear
from mainspring.engine.mxfp4 import Mxfp4Checkpoint
from mainspring.engine.quantize import Role, format_of
from mainspring.engine.quantized.checkpoint import QuantizedCheckpoint
from mainspring.engine.sizes import Sizes
from mainspring.errors import ModelError
from mainspring.kernels import (
    Array,
    CodedFormat,
    Format,
    Kernels,
    Weight,
    WeightFormat,
    bf16_bits,
    bf16_values,
)

__all__ = ["CheckpointTensors", "RandomTensors", "Source", "Tensors", "packed"]

CHUNK = 1 << 20


class Tensors(Protocol):
    """Named arrays, float32, float16 or bfloat16 as uint16 bits."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        """The tensors one under the other (concatenated along the first axis), a new array."""
        ...

    def kept(self, names: Sequence[str]) -> CodedFormat | None:
        """The format that holds all of them as their files do, if there is one."""
        ...

    def codes(self, names: Sequence[str]) -> Codes:
        """The same of tensors that are `kept`."""
        ...


class CheckpointTensors:
    """The tensors of a Checkpoint under the names their family knows them by."""

    def __init__(
        self,
        checkpoint: Checkpoint | QuantizedCheckpoint | Mxfp4Checkpoint,
        rename: Callable[[str], str | None],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.progress = progress
        self.done = 0
        self.total = 0
        """bytes that will be read, for `progress`"""
        self.files: dict[str, str] = {}
        for stored in checkpoint.tensors:
            if (name := rename(stored)) is not None:
                if name in self.files:
                    raise ModelError(f"{stored} and {self.files[name]} are the same tensor")
                self.files[name] = stored

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.tensors[self.files[name]].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.checkpoint.dtype_of(self.files[name])

    def read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        dtypes = {self.dtype(name) for name in names}
        mixed = len(dtypes) > 1
        rows = sum(shape[0] for shape in shapes)
        out = np.empty((rows, *shapes[0][1:]), np.float32 if mixed else dtypes.pop())
        first = 0
        for name, shape in zip(names, shapes, strict=True):
            part = out[first : first + shape[0]]
            first += shape[0]
            if mixed:
                stored = np.empty(shape, self.dtype(name))
                self.checkpoint.read(self.files[name], stored)
                part[:] = _float32(stored)
            else:
                self.checkpoint.read(self.files[name], part)
            self._report(self.checkpoint.tensors[self.files[name]].nbytes)
        return out

    def kept(self, names: Sequence[str]) -> CodedFormat | None:
        holder = self.checkpoint
        if not isinstance(holder, HoldsCodes):
            return None
        formats = {holder.kept(self.files[name]) if name in self else None for name in names}
        return formats.pop() if len(formats) == 1 else None

    def codes(self, names: Sequence[str]) -> Codes:
        assert isinstance(self.checkpoint, HoldsCodes)
        parts = []
        for name in names:
            parts.append(self.checkpoint.codes(self.files[name]))
            self._report(self.checkpoint.tensors[self.files[name]].nbytes)
        return Codes.stacked(parts)

    def float32(self, name: str, shape: tuple[int, ...]) -> Array:
        """One tensor, whatever its type."""
        return _float32(self.read((name,), (shape,)))

    def _report(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)


class RandomTensors:
    """Any tensor that is asked for, filled from one small buffer of normal numbers."""

    def __init__(self, seed: int) -> None:
        normal = np.random.default_rng(seed).standard_normal(CHUNK, np.float32)
        self.buffer = bf16_bits(normal * np.float32(0.02))

    def __contains__(self, name: str) -> bool:
        return False  # where a family may ask, the tensor is stored in the older of two layouts

    def read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if names[0].endswith("norm.weight"):
            return np.ones(shape, np.float32)
        return np.resize(self.buffer, shape)

    def kept(self, names: Sequence[str]) -> CodedFormat | None:
        return None

    def codes(self, names: Sequence[str]) -> Codes:
        raise NotImplementedError  # nothing is kept


class Source:
    """What a family builds its layers from. Names are without `.weight` and `.bias`.

    `context` is the number of positions wanted, 0: as many as the family's rotary embedding has.
    `eos` are the token ids that end a sequence.
    """

    numbers: bool = True
    """whether matrices are read; where not, only their shapes matter"""

    def __init__(
        self,
        fields: Fields,
        sizes: Sizes,
        tensors: Tensors,
        kernels: Kernels,
        *,
        format: Format,
        context: int = 0,
        eos: tuple[int, ...] = (),
    ) -> None:
        self.fields = fields
        self.sizes = sizes
        self.tensors = tensors
        self.kernels = kernels
        self.format: Format = format
        self.served: WeightFormat = format
        """the format that the layers have in memory: one that is kept, or `format`"""
        self.context = context
        self.eos = eos
        self.parameters = 0
        self.weight_bytes = 0
        self.left_out: tuple[str, ...] = ()
        self.slots: dict[str, Slot] = {}
        """of each matrix that an Adapter can change"""

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint has this tensor (full name)."""
        return name in self.tensors

    def vector(self, name: str, n: int) -> Array:
        """float32 [n], kept as it is."""
        values = _float32(self._read((name,), ((n,),)))
        self.weight_bytes += values.nbytes
        return values

    def embedding(self, name: str) -> Weight:
        """The embedding's or the output head's matrix [vocabulary, hidden]."""
        sizes = self.sizes
        return self.weight([name], (sizes.vocabulary,), sizes.hidden, role="embedding")

    def linear(
        self, names: Sequence[str], rows: Sequence[int], k: int, *, bias: bool = False
    ) -> Linear:
        """The same Weight as `weight` gives, as a product that an Adapter can change."""
        index, first = len(self.slots), 0
        for name, n in zip(names, rows, strict=True):
            self.slots[name] = Slot(index, first, n, k)
            first += n
        return Linear(self.kernels, self.weight(names, rows, k, bias=bias), index)

    def weight(
        self,
        names: Iterable[str],
        rows: Sequence[int],
        k: int,
        *,
        bias: bool = False,
        role: Role = "linear",
    ) -> Weight:
        """Matrices [rows[i], k] packed as one [sum(rows), k], so that one product serves them."""
        names = tuple(names)
        full, shapes = [f"{name}.weight" for name in names], [(n, k) for n in rows]
        kept = None if role == "router" else self.tensors.kept(full)
        matrix = self._codes(full, shapes) if kept else self._matrix(full, shapes)
        self.served = kept or self.served
        bias_values = None
        if bias:
            bias_values = _float32(self._read([f"{n}.bias" for n in names], [(n,) for n in rows]))
        return self._pack(" ".join(names), matrix, bias_values, kept or role)

    def stack(self, name: str, count: int, n: int, k: int) -> list[Weight]:
        """A tensor [count, n, k] as `count` Weights."""
        matrices = self._matrix((name,), ((count, n, k),))
        return [self._pack(f"{name} {i}", m, None, "linear") for i, m in enumerate(matrices)]

    def turned_stack(
        self, name: str, count: int, n: int, k: int, *, paired: bool = False
    ) -> list[Weight]:
        """A tensor [count, k, n] as `count` Weights [n, k], their biases [count, n] under
        `name`_bias. `paired`: outputs 0, 2, .. are stored between 1, 3, .., which follow them here.
        """
        matrices = self._matrix((name,), ((count, k, n),))
        biases = _float32(self._read((f"{name}_bias",), ((count, n),)))
        order = np.arange(n).reshape(-1, 2).T.reshape(-1) if paired else np.arange(n)

        def pack(i: int) -> Weight:
            matrix = self._made((n, k), lambda: np.ascontiguousarray(matrices[i].T[order]))
            return self._pack(f"{name} {i}", matrix, biases[i, order], "linear")

        return [pack(i) for i in range(count)]

    def pieces(self, name: str, cuts: Sequence[tuple[int, bool]], k: int) -> list[Weight]:
        """A matrix [rows, k] cut along its rows; `cuts` are the rows of each piece, and whether it
        is turned into [k, rows].
        """
        matrix = self._matrix((f"{name}.weight",), ((sum(rows for rows, _ in cuts), k),))
        ends = np.cumsum([rows for rows, _ in cuts]).tolist()

        def pack(i: int) -> Weight:
            rows, turned = cuts[i]
            piece = matrix[ends[i] - rows : ends[i]]
            shape = (k, rows) if turned else (rows, k)
            made = self._made(shape, lambda: np.ascontiguousarray(piece.T if turned else piece))
            return self._pack(f"{name} {i}", made, None, "linear")

        return [pack(i) for i in range(len(cuts))]

    def leave_out(self, prefix: str) -> None:
        """Tensors whose names begin so belong to the checkpoint and are not read."""
        self.left_out += (prefix,)

    def _made(self, shape: tuple[int, ...], make: Callable[[], Array]) -> Array:
        """What `make` makes of a matrix that was read; only its shape where none is."""
        return make() if self.numbers else np.broadcast_to(np.float32(0), shape)

    def _matrix(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        return self._read(names, shapes)

    def _codes(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array | Codes:
        codes = self.tensors.codes(names)
        self.parameters += codes.size
        return codes

    def _read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        array = self.tensors.read(names, shapes)
        self.parameters += array.size
        return array

    def _unread(self, shapes: Sequence[tuple[int, ...]]) -> Array:
        """Only the shape of what `_read` would give, with no memory behind it."""
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        empty = np.broadcast_to(np.float32(0), shape)
        self.parameters += empty.size
        return empty

    def _pack(
        self, name: str, matrix: Array | Codes, bias: Array | None, role: Role | CodedFormat
    ) -> Weight:
        weight = packed(self.kernels, matrix, bias, format_of(role, self.format))
        self.weight_bytes += weight.nbytes
        return weight


def packed(
    kernels: Kernels, matrix: Array | Codes, bias: Array | None, format: WeightFormat
) -> Weight:
    """A matrix as a Weight: Codes in their own format, others in `format`."""
    if isinstance(matrix, Codes):
        return kernels.coded_weight(
            matrix.codes, matrix.scales, matrix.mins, bias, format=matrix.format
        )
    return kernels.weight(matrix, bias, format=cast(Format, format))


def _float32(array: Array) -> Array:
    values: Any = bf16_values(array) if array.dtype == np.uint16 else array.astype(np.float32)
    return np.ascontiguousarray(values, np.float32)
