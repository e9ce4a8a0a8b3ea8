"""Which format each matrix of a model takes, and how many bytes that is.

The kernels do the packing (`Kernels.weight`); here is only the policy: what a model in int4 keeps
wider because it matters more than it weighs.
"""

from __future__ import annotations

from typing import Literal, get_args

from mainspring.kernels import Format

__all__ = ["FORMATS", "Role", "format_of", "packed_bytes"]

FORMATS: tuple[Format, ...] = get_args(Format)
Role = Literal["linear", "embedding", "router"]
"""embedding is also the output head, whether tied or not; router chooses experts"""

GROUP = {"int8": 128, "int4": 32}
"""numbers along k that share a float32 scale, see `Kernels.weight`"""


def format_of(role: Role, format: Format) -> Format:
    """The format of a matrix in a model of `format`."""
    if role == "router":
        return "float32"
    if role == "embedding" and format == "int4":
        return "int8"
    return format


def packed_bytes(n: int, k: int, format: Format) -> int:
    """Bytes of a matrix [n, k] in memory, as the contract of `Kernels.weight` packs it."""
    if format == "float32":
        return 4 * n * k
    if format == "bf16":
        return 2 * n * k
    groups = -(-k // GROUP[format])
    return n * (4 * groups + (k if format == "int8" else -(-k // 2)))
