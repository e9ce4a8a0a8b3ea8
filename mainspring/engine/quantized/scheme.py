"""What `quantization_config` in config.json says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.engine.fields import Fields

__all__ = ["Scheme"]

METHODS = ("awq", "gptq", "compressed-tensors", "fp8")
WHERE = "config.json: quantization_config"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the integers of a checkpoint were chosen and stored."""

    method: str
    bits: int
    group: int
    """numbers along k that share a scale; 0: a whole row"""
    symmetric: bool
    """the zero point is the middle of the range"""
    ordered: bool = True
    """the numbers of a group lie side by side along k"""
    offset: int = 0
    """what is added to a stored zero point"""
    block: tuple[int, int] = (0, 0)
    """rows and columns of fp8 that share a scale; 0: a row's or the matrix's"""

    @classmethod
    def of(cls, config: dict[str, Any]) -> Scheme:
        """Raises ModelError naming the field, its value and what would be right."""
        fields = Fields(config, where=WHERE)
        method = fields.choice("quant_method", None, METHODS)
        readers = {"awq": _awq, "gptq": _gptq, "fp8": _fp8}
        return readers.get(method, _compressed)(fields)

    def __str__(self) -> str:
        group = f"groups of {self.group}" if self.group else "one scale for each row"
        if self.method == "fp8":
            return "fp8"
        return f"{self.method}, {self.bits} bits, {group}" + ("" if self.ordered else ", reordered")


def _group(fields: Fields, name: str = "group_size") -> int:
    """-1 says that a whole row is one group."""
    size = fields.integer(name, -1, low=-1, high=1 << 20)
    if size == 0:
        raise fields.refuse(name, "is 0; it must be -1 (a whole row) or the numbers in a group")
    return max(size, 0)


def _bits(fields: Fields, name: str) -> int:
    bits = fields.integer(name, low=2, high=16)
    if bits not in (4, 8):
        raise fields.refuse(
            name, f"is {bits}; 4 and 8 are supported: take a checkpoint of these, or the original"
        )
    return bits


def _block(fields: Fields, name: str) -> tuple[int, int]:
    if name not in fields:
        return 0, 0
    tall, wide = fields.numbers(name, 2, low=1, high=1 << 20)
    return int(tall), int(wide)


def _awq(fields: Fields) -> Scheme:
    bits = _bits(fields, "bits")
    if bits != 4:
        raise fields.refuse("bits", f"is {bits}; AWQ has 4")
    version = fields.choice("version", "gemm", ("gemm", "GEMM", "gemv", "GEMV", "gemv_fast"))
    if version.lower() != "gemm":
        raise fields.refuse("version", f"is {version}; only the layout gemm is read")
    return Scheme("awq", 4, _group(fields), symmetric=False)


def _gptq(fields: Fields) -> Scheme:
    v2 = fields.choice("checkpoint_format", "gptq", ("gptq", "gptq_v2")) == "gptq_v2"
    group = _group(fields)
    ordered = not fields.flag("desc_act") or not group
    bits = _bits(fields, "bits")
    return Scheme("gptq", bits, group, fields.flag("sym", True), ordered, 0 if v2 else 1)


def _fp8(fields: Fields) -> Scheme:
    if "fmt" in fields:
        fields.choice("fmt", None, ("e4m3",))
    return Scheme("fp8", 8, 0, symmetric=True, block=_block(fields, "weight_block_size"))


def _compressed(fields: Fields) -> Scheme:
    """All groups of modules must be quantized alike; which modules, the files tell."""
    groups = fields.table("config_groups")
    if groups is None or not 1 <= len(groups.values) <= 64:
        raise fields.refuse("config_groups", "must hold 1 to 64 groups of modules")
    found = {_compressed_group(groups, name) for name in groups.values}
    if len(found) > 1:
        raise fields.refuse("config_groups", "quantizes modules in different ways; one is read")
    return found.pop()


def _compressed_group(groups: Fields, name: str) -> Scheme:
    table = groups.table(name)
    weights = table.table("weights") if table is not None else None
    if weights is None:
        raise groups.refuse(name, "must hold `weights`")
    bits = _bits(weights, "num_bits")
    if weights.choice("type", "int", ("int", "float")) == "float":
        if bits != 8:
            raise weights.refuse("num_bits", f"is {bits}; floats have 8")
        return Scheme("fp8", 8, 0, symmetric=True, block=_block(weights, "block_structure"))
    strategy = weights.choice("strategy", "tensor", ("tensor", "channel", "group"))
    group = _group(weights) if strategy == "group" else 0
    ordered = weights.values.get("actorder") not in (True, "group", "dynamic") or not group
    symmetric = weights.flag("symmetric", True)
    return Scheme("compressed-tensors", bits, group, symmetric, ordered)
