"""A model without its numbers: what it will ask of a checkpoint, and what it will weigh."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import numpy as np

from mainspring.engine.architectures import ModelShape
from mainspring.engine.codes import Codes
from mainspring.engine.fields import Fields
from mainspring.engine.quantize import Role, format_of, packed_bytes
from mainspring.engine.sizes import Sizes
from mainspring.engine.source import CheckpointTensors, RandomTensors, Source
from mainspring.errors import ModelError
from mainspring.kernels import Array, CodedFormat, Format, Kernels, Weight, WeightFormat

__all__ = ["Plan"]

NOT_WEIGHTS = ("rotary_emb.inv_freq", ".masked_bias")
"""ends of names that older checkpoints hold and that are computed instead"""
MOST = 1 << 19
"""tensors of a model at most"""


class Plan(Source):
    """A Source whose weights have a size only. What is wrong with the files is collected.

    Without `tensors` every tensor that is asked for exists.
    """

    numbers = False
    built: ModelShape
    """of the model that was built from this plan"""

    def __init__(
        self,
        fields: Fields,
        sizes: Sizes,
        tensors: CheckpointTensors | None,
        *,
        context: int,
        eos: tuple[int, ...],
    ) -> None:
        given = RandomTensors(0) if tensors is None else tensors
        # No kernel is ever called: a plan is built, not run.
        kernels = cast(Kernels, None)
        super().__init__(fields, sizes, given, kernels, format="bf16", context=context, eos=eos)
        self.stored = tensors
        self.used: dict[str, tuple[int, ...]] = {}
        self.matrices: list[tuple[int, int, Role | CodedFormat]] = []

    def _read(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array:
        self.used.update(zip(names, shapes, strict=True))
        # A file that lacks this many names none of them usefully; and a config.json of a few bytes
        # must not make us count to the billions.
        if len(self.used) > (MOST if self.stored is None else 2 * len(self.stored.files) + 1000):
            self.refuse_problems()
            raise ModelError(f"config.json asks for more than {len(self.used) - 1} tensors")
        return self._unread(shapes)

    def _codes(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Array | Codes:
        return self._read(names, shapes)

    def _pack(
        self, name: str, matrix: Array | Codes, bias: Array | None, role: Role | CodedFormat
    ) -> Weight:
        n, k = matrix.shape
        self.matrices.append((n, k, role))
        weight = PlannedWeight(n, k, format_of(role, self.format), 0 if bias is None else 4 * n)
        self.weight_bytes += weight.nbytes
        return weight

    def bytes_in(self, format: Format) -> int:
        """Bytes of all weights if the model is loaded in `format`."""
        here = sum(packed_bytes(n, k, format_of(role, self.format)) for n, k, role in self.matrices)
        there = sum(packed_bytes(n, k, format_of(role, format)) for n, k, role in self.matrices)
        return self.weight_bytes - here + there

    def refuse_problems(self) -> None:
        """Raise ModelError if the files lack a tensor, hold it in another shape, or hold more."""
        if self.stored is None:
            return
        tensors, tied = self.stored, self.sizes.tied
        missing = [name for name in self.used if name not in tensors]
        if missing:
            raise ModelError(f"tensors missing from the checkpoint: {_listed(missing)}")
        for name, shape in self.used.items():
            if (found := tensors.shape(name)) != shape:
                raise ModelError(
                    f"{name} has shape {list(found)}; config.json makes it {list(shape)}"
                )
            tensors.dtype(name)
        extra = [
            name
            for name in tensors.files
            if name not in self.used
            and not name.endswith(NOT_WEIGHTS)
            and not name.startswith(self.left_out)
            and not (tied and name == "lm_head.weight")
            and not _no_bias(tensors, name)
        ]
        if extra:
            raise ModelError(f"tensors that a {self.sizes.family} has no use for: {_listed(extra)}")


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """The size of a Weight that will be."""

    n: int
    k: int
    format: WeightFormat
    bias_bytes: int

    @property
    def nbytes(self) -> int:
        return packed_bytes(self.n, self.k, self.format) + self.bias_bytes


def _no_bias(tensors: CheckpointTensors, name: str) -> bool:
    """Whether the tensor is a bias of zeros: AutoGPTQ gives one to every matrix."""
    shape = tensors.shape(name)
    if not name.endswith(".bias") or len(shape) != 1:
        return False
    values = np.empty(shape, tensors.dtype(name))
    with closing(tensors.checkpoint):
        tensors.checkpoint.read(tensors.files[name], values)
    return not values.any()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
