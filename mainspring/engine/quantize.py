"""Which format each matrix of a model takes, and how many bytes that is.

The kernels do the packing (`Kernels.weight`); here is only the policy: what a model in int4 keeps
wider because it matters more than it weighs.
"""

from __future__ import annotations

from typing import Literal, get_args

from mainspring.kernels import CodedFormat, Format, WeightFormat

__all__ = ["FORMATS", "Role", "format_of", "packed_bytes"]

FORMATS: tuple[Format, ...] = get_args(Format)
CODED: tuple[CodedFormat, ...] = get_args(CodedFormat)
Role = Literal["linear", "embedding", "router"]
"""embedding is also the output head, whether tied or not; router chooses experts"""

GROUP = 128
"""numbers along k that share a float32 scale in int8 and int4, see `Kernels.weight`"""
SUBGROUP = 32
"""numbers along k that share a one-byte multiplier in int4, a scale in q8 and q4"""


def format_of(role: Role | CodedFormat, format: Format) -> WeightFormat:
    """The format of a matrix in a model of `format`; what is quantized in its file stays so."""
    if role in CODED:
        return role
    if role == "router":
        return "float32"
    if role == "embedding" and format == "int4":
        return "int8"
    return format


def packed_bytes(n: int, k: int, format: WeightFormat) -> int:
    """Bytes of a matrix [n, k] in memory, without bias and padding."""
    if format == "float32":
        return 4 * n * k
    if format == "bf16":
        return 2 * n * k
    parts = -(-k // SUBGROUP)
    if format == "q8":
        return n * (k + 4 * parts)
    if format == "q4":
        return n * (-(-k // 2) + 8 * parts)
    scales = 4 * -(-k // GROUP)
    if format == "int8":
        return n * (k + scales)
    return n * (-(-k // 2) + parts + scales)
