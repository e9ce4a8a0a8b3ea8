"""The numeric operations that an Architecture calls, and the choice of who computes them.

One `Kernels` object is one device (and, on the CPU, one instruction set and one thread pool). It
is chosen once at start and passed down; nothing here is global. Arrays are opaque to the caller:
numpy on the CPU. `mainspring.kernels.reference` is the slow oracle that every other form equals
within the tolerances of `tests/unit/kernels`.

**Batch invariance.** Every operation works on rows (one row = one token of one sequence), and a
row's result depends on that row alone, bit for bit: not on the number of rows, their order, the
number of threads, or how a prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK",
    "Activation",
    "Array",
    "Cache",
    "CodedFormat",
    "Format",
    "Kernels",
    "KvFormat",
    "LastingKernels",
    "LastingWeight",
    "LowRank",
    "LowRankUse",
    "Weight",
    "WeightFormat",
    "blocks_of",
    "dequantize",
    "kv_token_bytes",
    "load_kernels",
]

BLOCK = 32
"""Tokens in a block of the KV cache."""

Array = npt.NDArray[Any]
Format = Literal["float32", "bf16", "int8", "int4"]
CodedFormat = Literal["int8", "int4", "q8", "q4"]
WeightFormat = Literal["float32", "bf16", "int8", "int4", "q8", "q4"]
"""a Format, or one that holds what others have quantized"""
KvFormat = Literal["float32", "bf16", "int8"]
Activation = Literal["silu", "gelu_tanh", "clamped_silu"]


class Weight(Protocol):
    """A matrix [n, k] packed for `Kernels.linear`, with an optional bias [n]."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def format(self) -> WeightFormat: ...
    @property
    def nbytes(self) -> int: ...


class LowRank(Protocol):
    """A matrix [n, k] that is the product of two narrow ones, packed for `Kernels.add_low_rank`."""

    @property
    def nbytes(self) -> int: ...


LowRankUse = tuple[Array, LowRank, int]
"""Rows, int32 [count]; the matrix; the column of the result at which its own begin."""


class Cache(Protocol):
    """The paged KV cache of all layers: `blocks` blocks of BLOCK tokens each."""

    @property
    def blocks(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def block_bytes(self) -> int:
        """Bytes of one block, of all layers."""
        ...

    def read_block(self, block: int, into: Array) -> None:
        """Copy a block's keys and values of all layers to `into`, uint8 [block_bytes]."""
        ...

    def write_block(self, block: int, data: Array) -> None:
        """Make a block what `read_block` gave of another: the same bits."""
        ...

    def copy_block(self, source: int, block: int, tokens: int) -> None:
        """Make a block's first `tokens` those of another; what follows them has no effect."""
        ...


@runtime_checkable
class Kernels(Protocol):
    """One device's operations. Activations are float32, C-contiguous, [rows, width]."""

    @property
    def name(self) -> str:
        """avx512, avx2, portable or reference"""
        ...

    @property
    def threads(self) -> int: ...

    # Weights ------------------------------------------------------------------------------------

    def weight(self, matrix: Array, bias: Array | None = None, *, format: Format) -> Weight:
        """Pack `matrix` [n, k] (float32, float16, or bfloat16 as uint16 bits).

        float32 and bf16 keep (or round to) that type. int8 is symmetric with one float32 scale
        for each group of 128 along k of every output row. int4 is int8 made of fewer bits: each
        32 along k share a multiplier m in -15..15, and a value is q * m * scale with q in -8..7
        (4.5 bits a number in all). The last group may be short. `bias` [n] is kept in float32.
        """
        ...

    def coded_weight(
        self,
        codes: Array,
        scales: Array,
        mins: Array | None = None,
        bias: Array | None = None,
        *,
        format: CodedFormat,
    ) -> Weight:
        """Pack a matrix that is quantized already: value = code * scale (+ min), nothing rounded.

        `codes` is int8 [n, k], in int4 -8..7 and in q4 0..15. Along k, 128 codes share a scale in
        int8 and int4, 32 in q8 and q4 (the last group may be short); `scales` is float32 [n,
        groups], and so is `mins`, which q4 has and the others have not. Raises ValueError.
        """
        ...

    def linear(self, x: Array, weight: Weight) -> Array:
        """x [rows, k] -> [rows, n]: x @ matrix.T + bias, accumulated in float32.

        bf16 rounds x to bfloat16. int8 and int4 quantize each row of x to int8 with one scale
        for each group of 128 along k (symmetric, round half to even), multiply exactly in int32
        within a group and sum the groups in order in float32; q8 and q4 do so within each 32 of a
        group, and q4 adds min times the sum of the row's integers. A group of x that holds NaN or
        infinity makes its row NaN.
        """
        ...

    def gated_linear(self, x: Array, weight: Weight, activation: Activation) -> Array:
        """x [rows, k], weight [2 w, k]: with gate | up = linear(x, weight), activation(gate) * up.

        clamped_silu: gate at most 7, up within -7..7, then gate * sigmoid(1.702 gate) * (up + 1).
        Returns [rows, w].
        """
        ...

    def gate(self, x: Array, activation: Activation) -> Array:
        """x [rows, 2 w] = gate | up -> activation(gate) * up [rows, w].

        gate(linear(x, weight)) is gated_linear(x, weight), bit for bit.
        """
        ...

    def low_rank(self, down: Array, up: Array) -> LowRank:
        """The matrix (down @ up).T of `down` [k, r] and `up` [r, n].

        Both are float32, or both bfloat16 as uint16 bits, and kept so.
        """
        ...

    def add_low_rank(self, y: Array, x: Array, uses: Sequence[LowRankUse]) -> None:
        """For each use, y[rows, first : first + n] += x[rows] @ down @ up, in place.

        x is [height, k], y [height, width]; both products are float32. No two uses write the same
        numbers of y. A row costs the same whoever else is there, and so does its result.
        """
        ...

    def embedding(self, ids: Array, weight: Weight) -> Array:
        """ids int32 [rows] -> the matrix's rows, dequantized: float32 [rows, k]."""
        ...

    # Rows ---------------------------------------------------------------------------------------

    def rms_norm(self, x: Array, gain: Array, eps: float, *, add: Array | None = None) -> Array:
        """Root-mean-square norm of each row, times `gain` [width]. New array.

        With `add`, first x += add in place (the residual stream), then the norm of the sum.
        """
        ...

    def head_norm(self, x: Array, gain: Array, eps: float, *, first: int, heads: int) -> None:
        """RMS norm in place of heads first..first+heads-1 of each row.

        A head is `len(gain)` wide; x is [rows, >= (first + heads) * head].
        """
        ...

    def rope(
        self,
        x: Array,
        table: Array,
        positions: Array,
        *,
        heads: int,
        head: int,
        first: int = 0,
        paired: bool = False,
    ) -> None:
        """Rotary embedding in place of the first `heads` heads (each `head` wide) of each row.

        `table` float32 [max_position, 2, r/2] holds cosines and sines; r <= head - first numbers
        of a head from `first` on are rotated as halves (x1, x2) -> (x1 c - x2 s, x2 c + x1 s), or
        `paired`, neighbours being x1 and x2. `positions` int32 [rows].
        """
        ...

    def softcap(self, x: Array, cap: float) -> None:
        """x = cap * tanh(x / cap), in place."""
        ...

    # Attention ----------------------------------------------------------------------------------

    def cache(self, layers: int, blocks: int, heads: int, head: int, dtype: KvFormat) -> Cache:
        """A KV cache for `heads` key-value heads of width `head`, at most 640.

        Memory is touched on use.
        """
        ...

    def attention(
        self,
        qkv: Array,
        cache: Cache,
        layer: int,
        starts: Array,
        lengths: Array,
        tables: Array,
        *,
        heads: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Array | None = None,
    ) -> Array:
        """Store new keys and values, then causal attention over each sequence's cached context.

        qkv     [rows, (heads + 2 kv) * head], the heads of q, then of k, then of v
        starts  int32 [sequences + 1]: rows starts[s]..starts[s+1]-1 are sequence s's new tokens
        lengths int32 [sequences]: context length after the new tokens; the first new token's
                position is lengths[s] - (starts[s+1] - starts[s])
        tables  int32 [sequences, >= ceil(length / BLOCK)]: block ids in order of position
        window  a token sees itself and window - 1 before it; 0: all
        softcap > 0: scores = softcap * tanh(scores / softcap), before the mask
        sinks   float32 [heads]: one more score a head, of a token whose value is 0

        With a bf16 cache, queries, keys, values and the softmax weights are rounded to bfloat16
        and accumulated in float32. With an int8 cache, each head of queries, keys and values is
        first turned by a Hadamard matrix (QuaRot, arXiv 2404.00456), which spreads an outlier
        channel over all, then rounded to int8 with one float32 scale; softmax weights times the
        scales of the values have 15 bits, relative to the largest of 64 tokens that the row sees,
        and integers are summed exactly.

        Returns [rows, heads * head]. Online softmax over segments of 1024 tokens, each by itself
        and then added in order of position (as in Flash-Decoding), so that threads can share a
        long context and a row's result does not depend on how its context was cut.
        """
        ...

    # Choosing tokens ----------------------------------------------------------------------------

    def sample(
        self,
        logits: Array,
        temperature: Array,
        top_k: Array,
        top_p: Array,
        min_p: Array,
        uniform: Array,
    ) -> Array:
        """One token id int32 for each row of logits [rows, vocabulary].

        temperature 0: the likeliest (lowest id of equals). Otherwise softmax(logits/temperature),
        keep top_k (0: all), then of those the smallest head with probability >= top_p, then those
        >= min_p of the likeliest; the tokens in order (probability down, id up) are walked until
        `uniform` [rows], float64 in [0, 1), of the kept probability is reached. top_k is int32,
        the other parameters float32, all [rows]. A row without any finite likeliest logit gives -1.
        """
        ...

    def log_probabilities(self, logits: Array, ids: Array, top: int) -> tuple[Array, Array, Array]:
        """Of each row's log-softmax: (value of ids[row], ids of the `top` likeliest, their values).

        Shapes [rows], [rows, top] int32, [rows, top]; best first, lower id first of equals.
        """
        ...


@runtime_checkable
class LastingKernels(Kernels, Protocol):
    """Kernels whose Weights can be kept in a file: the compiled ones."""

    @property
    def layout(self) -> str:
        """Names the bytes of a Weight. Of one name, equal matrices have equal bytes."""
        ...

    def weight(
        self, matrix: Array, bias: Array | None = None, *, format: Format
    ) -> LastingWeight: ...

    def coded_weight(
        self,
        codes: Array,
        scales: Array,
        mins: Array | None = None,
        bias: Array | None = None,
        *,
        format: CodedFormat,
    ) -> LastingWeight: ...

    def blank(
        self, n: int, k: int, bias: Array | None = None, *, format: WeightFormat
    ) -> LastingWeight:
        """A Weight [n, k] of unknown numbers, whose `memory` is to be filled.

        Any bytes are safe; those of another Weight of the same n, k and format make it equal.
        """
        ...


class LastingWeight(Weight, Protocol):
    """A Weight whose bytes can be kept."""

    @property
    def memory(self) -> Array:
        """The packed matrix without its bias: uint8 [bytes], not a copy."""
        ...


def blocks_of(tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // BLOCK)


def kv_token_bytes(head: int, dtype: KvFormat) -> int:
    """Bytes of one token's key and value of one head `head` wide."""
    return {"float32": 8 * head, "bf16": 4 * head, "int8": 2 * head + 8}[dtype]


def load_kernels(isa: str = "auto", threads: int = 0) -> Kernels:
    """The Kernels for this machine.

    `isa` is auto (the best this CPU has), avx512, avx2, portable, or reference (numpy, slow);
    `threads` 0 is one for each core this process may use. Raises BadRequest when the CPU lacks
    the instruction set.
    """
    if isa == "reference":
        from mainspring.kernels.reference import ReferenceKernels

        return ReferenceKernels()
    from mainspring.kernels.cpu import load_cpu_kernels

    return load_cpu_kernels(isa, threads)


def dequantize(format: str, data: Array, out: Array) -> None:
    """Blocks of a GGUF file, uint8 [blocks * bytes], as float32 [blocks * numbers] in `out`.

    `format` is one of ggml's names (Q4_K); equal to gguf-py bit for bit. Raises ValueError for a
    format not known and for sizes that do not fit.
    """
    from mainspring.kernels import _native

    _native.dequantize(format, data, out)


def bf16_bits(x: Array) -> Array:
    """float32 -> bfloat16 as uint16 bits, round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def bf16_values(bits: Array) -> Array:
    """bfloat16 as uint16 bits -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
