"""One model family a file; the file's name is the Hugging Face `model_type`.

A family's file holds `build(source) -> Architecture` and, where it needs them,

    DEFAULTS   fields of config.json that checkpoints leave out, and what they then are
    NESTED     the field of config.json under which the text model's fields lie
    CLASSES    model classes of a checkpoint's own code (`auto_map`) that are this family unchanged
    rename     a stored tensor's name -> the name `build` asks for, or None to leave it out

A package can bring a family without touching this folder: an entry point in the group
`mainspring.architectures`, named as the `model_type`, whose object has the same names.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from mainspring.engine.adapter import Slot
from mainspring.engine.batch import Batch
from mainspring.errors import UnknownArchitecture
from mainspring.kernels import Array, Cache, WeightFormat

if TYPE_CHECKING:
    from mainspring.engine.source import Source

__all__ = ["Architecture", "Family", "ModelShape", "find_family", "known_families"]

GROUP = "mainspring.architectures"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a loaded model that others plan with."""

    family: str
    """Hugging Face `model_type`"""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    """width of one head"""
    vocabulary: int
    context: int
    """positions at most, prompt and output together"""
    parameters: int
    eos: tuple[int, ...]
    """token ids that end a sequence"""
    weight_bytes: int
    format: WeightFormat
    """of the layers' matrices in memory"""


class Architecture(Protocol):
    """One loaded model. Its only state is its weights, and how far it is."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The matrices that an Adapter can change, by their names without `.weight`."""
        ...

    @property
    def progress(self) -> int:
        """Layers computed so far, in all steps; another thread may look while `forward` runs."""
        ...

    def forward(self, batch: Batch, cache: Cache) -> Array:
        """Compute the batch's tokens, storing their keys and values in `cache`.

        Returns float32 logits [R, vocabulary] of `batch.logit_rows`, a new array that the caller
        may change. A row's logits depend on its sequence's tokens alone, bit for bit.
        """
        ...


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's file offers, with the optional parts filled in."""

    name: str
    build: Callable[[Source], Architecture]
    defaults: Mapping[str, Any]
    nested: str | None
    classes: tuple[str, ...]
    rename: Callable[[str], str | None]


def known_families() -> tuple[str, ...]:
    """Every `model_type` that can be loaded here."""
    built_in = {module.name for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(built_in | {point.name for point in entry_points(group=GROUP)}))


def find_family(model_type: str) -> Family:
    """The family of that name. Raises UnknownArchitecture with the list of known ones."""
    if model_type not in known_families():
        raise UnknownArchitecture(
            f"architecture {model_type[:100]!r} is not known; known: {', '.join(known_families())}"
        )
    if model_type in {module.name for module in pkgutil.iter_modules(__path__)}:
        part: Any = importlib.import_module(f"{__name__}.{model_type}")
    else:
        (point, *_) = entry_points(group=GROUP, name=model_type)
        part = point.load()
    return Family(
        name=model_type,
        build=part.build,
        defaults=getattr(part, "DEFAULTS", {}),
        nested=getattr(part, "NESTED", None),
        classes=getattr(part, "CLASSES", ()),
        rename=getattr(part, "rename", _same),
    )


def _same(name: str) -> str | None:
    return name
