"""A GGUF file as a Checkpoint: the family's names, row orders and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mainspring.engine.checkpoint import DTYPES, LastFile, Stamp, Tensor, reading
from mainspring.engine.codes import Codes
from mainspring.engine.gguf.codes import KEPT, unpacked
from mainspring.engine.gguf.families import EXPERT, FACTORS, Layout, find_layout
from mainspring.engine.gguf.header import Header, open_regular, row_bytes
from mainspring.errors import ModelError
from mainspring.kernels import Array, CodedFormat, dequantize

__all__ = ["GgufCheckpoint"]

PIECE = 1 << 20
"""bytes read at a time, so that they are still in the processor's cache when they are decoded"""
EXPERTS_LIMIT = 4096
FACTORS_LIMIT = 1 << 12
"""bytes of a tensor of FACTORS"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one of the family's tensors lies, and how."""

    tensor: Tensor
    heads: int
    """of a q or k whose rows are to be put in order; 0: they are"""
    raised: bool
    """1 is to be taken off"""


class GgufCheckpoint:
    """One file. Blocks become float32 (`mainspring.kernels.dequantize`) as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamps: dict[str, Stamp] = {}
        self.generation: dict[str, Any] = {}
        self._last = LastFile()
        with reading(path.name), self._open(path.name) as file:
            self.header = Header(file, path.name)
        count = self.header.pairs.get("split.count", 1)
        if count != 1:
            raise ModelError(
                f"{path.name} is one of {count} parts; join them with "
                "`llama-gguf-split --merge FIRST.gguf WHOLE.gguf`"
            )
        with closing(self):
            factors = {name: self._factors(name) for name in FACTORS & self.header.tensors.keys()}
        layout, self.config = find_layout(self.header, path.name, factors)
        self._places = _places(self.header.tensors, layout, self.config)
        self.tensors: Mapping[str, Tensor] = {n: p.tensor for n, p in self._places.items()}

    def dtype_of(self, name: str) -> np.dtype[Any]:
        place = self._places[name]
        return np.dtype("<f4") if place.raised else _dtype(place.tensor)

    def read(self, name: str, out: Array) -> None:
        place, values = self._places[name], out.reshape(-1)
        stored = np.empty(out.size, _dtype(place.tensor)) if place.raised else values
        if place.heads:
            _decode(place.tensor.dtype, self._ordered(name, place), stored)
        else:
            self._read_rows(name, place.tensor, stored)
        if place.raised:
            np.subtract(stored, 1, out=values, dtype=np.float32)

    def kept(self, name: str) -> CodedFormat | None:
        """See `mainspring.engine.codes.HoldsCodes`."""
        place = self._places[name]
        known = place.tensor.dtype in KEPT and len(place.tensor.shape) == 2 and not place.raised
        return KEPT[place.tensor.dtype][0] if known else None

    def codes(self, name: str) -> Codes:
        place = self._places[name]
        data = self._ordered(name, place).reshape(place.tensor.shape[0], -1)
        return unpacked(place.tensor.dtype, data, place.tensor.shape[1], name)

    def close(self) -> None:
        self._last.close()

    def _read_rows(self, name: str, tensor: Tensor, out: Array) -> None:
        """All numbers of a tensor, flat."""
        k = tensor.shape[-1]
        width = row_bytes(tensor.dtype, k)
        step = max(1, PIECE // width)
        data = np.empty(min(step * width, tensor.nbytes), np.uint8)
        for start in range(0, tensor.nbytes, step * width):
            part = data[: tensor.nbytes - start]
            self._last.read(self._open, name, tensor, part, start)
            first = start // width * k
            _decode(tensor.dtype, part, out[first : first + len(part) // width * k])

    def _ordered(self, name: str, place: Place) -> Array:
        """The bytes; of a q or k the rows of each head, first all even ones, then all odd ones."""
        tensor = place.tensor
        data = np.empty(tensor.nbytes, np.uint8)
        self._last.read(self._open, name, tensor, data)
        if not place.heads:
            return data
        pairs = data.reshape(place.heads, -1, 2, tensor.nbytes // tensor.shape[0])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)

    def _factors(self, name: str) -> list[float]:
        tensor = self.header.tensors[name]
        if tensor.dtype != "F32" or tensor.nbytes > FACTORS_LIMIT:
            raise ModelError(f"{self.path.name}: {name} must be a short list of F32")
        values = np.empty(tensor.nbytes // 4, np.float32)
        self._last.read(self._open, name, tensor, values)
        return [float(value) for value in values]

    def _open(self, name: str) -> BinaryIO:
        file, stamp = open_regular(self.path.with_name(name))
        self.stamps.setdefault(name, stamp)
        return file


def _places(
    tensors: Mapping[str, Tensor], layout: Layout, config: Mapping[str, Any]
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for stored in tensors.keys() - FACTORS:
        name = layout.name(stored)
        for one, place in _placed(name, stored, tensors[stored], layout, config):
            if one in places:
                raise ModelError(f"{place.tensor.file}: {stored} and another are both {one}")
            places[one] = place
    return places


def _placed(
    name: str, stored: str, tensor: Tensor, layout: Layout, config: Mapping[str, Any]
) -> Iterator[tuple[str, Place]]:
    """The one tensor that is stored so, or one for each expert."""
    if name != stored and EXPERT in name:
        if len(tensor.shape) != 3 or tensor.shape[0] > EXPERTS_LIMIT:
            raise ModelError(
                f"{tensor.file}: {stored} has shape {list(tensor.shape)}; experts, rows "
                "and columns are needed"
            )
        for expert, part in enumerate(_parts(tensor)):
            yield name.replace(EXPERT, str(expert)), Place(part, 0, False)
        return
    heads = 0
    if layout.interleaved and ".self_attn.q_proj." in name:
        heads = config["num_attention_heads"]
    elif layout.interleaved and ".self_attn.k_proj." in name:
        heads = config["num_key_value_heads"]
    if heads and tensor.shape[0] % (2 * heads):
        raise ModelError(
            f"{tensor.file}: {stored} has {tensor.shape[0]} rows, not a multiple of twice its "
            f"{heads} heads"
        )
    yield name, Place(tensor, heads, layout.raised and stored.endswith("norm.weight"))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors [n, k] of one [count, n, k]."""
    count, *shape = tensor.shape
    nbytes = tensor.nbytes // count
    for i in range(count):
        start = tensor.start + i * nbytes
        yield replace(tensor, shape=tuple(shape), start=start, nbytes=nbytes)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    return DTYPES.get(tensor.dtype, np.dtype("<f4"))


def _decode(dtype: str, data: Array, out: Array) -> None:
    if dtype in DTYPES:
        out.view(np.uint8)[:] = data
    else:
        dequantize(dtype, data, out)
