"""The Kernels in numpy: slow, plain, and what every other form is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mainspring.kernels import (
    BLOCK,
    Activation,
    Array,
    Cache,
    CodedFormat,
    Format,
    KvFormat,
    LowRank,
    LowRankUse,
    Weight,
    bf16_bits,
    bf16_values,
    blocks_of,
)
from mainspring.kernels.reference_weight import (
    GROUP,
    SUBGROUP,
    ReferenceLowRank,
    ReferenceWeight,
)

__all__ = ["ReferenceKernels"]


@dataclass(frozen=True)
class ReferenceCache:
    keys: Array  # [layers, blocks, BLOCK, heads, head]
    values: Array
    dtype: str

    @property
    def blocks(self) -> int:
        return int(self.keys.shape[1])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def block_bytes(self) -> int:
        return self.nbytes // self.blocks

    def read_block(self, block: int, into: Array) -> None:
        keys, values = self.keys[:, block], self.values[:, block]
        into[:] = np.stack([keys, values]).reshape(-1).view(np.uint8)

    def write_block(self, block: int, data: Array) -> None:
        numbers = data.view(self.keys.dtype).reshape(2, *self.keys[:, block].shape)
        self.keys[:, block], self.values[:, block] = numbers

    def copy_block(self, source: int, block: int, tokens: int) -> None:
        for numbers in (self.keys, self.values):
            numbers[:, block, :tokens] = numbers[:, source, :tokens]
            numbers[:, block, tokens:] = 0

    def rounded(self, x: Array) -> Array:
        """Heads [..., head] as the cache's numbers hold them."""
        if self.dtype == "int8":
            heads = _turn(x)
            steps = _scales(heads, 127)[..., None]
            return _turn(np.rint(np.clip(heads * _inverse(steps), -127, 127)) * steps)
        return bf16_values(bf16_bits(x)) if self.dtype == "bf16" else x


def _float(matrix: Array) -> Array:
    if matrix.dtype == np.uint16:
        return bf16_values(matrix)
    return np.ascontiguousarray(matrix, np.float32)


def _groups(x: Array, size: int) -> Array:
    """[rows, k] -> [rows, groups, size], padded with zeros."""
    rows, k = x.shape
    groups = -(-k // size)
    padded = np.zeros((rows, groups * size), np.float32)
    padded[:, :k] = x
    return padded.reshape(rows, groups, size)


def _scales(cut: Array, limit: int) -> Array:
    """The step of each group: largest magnitude / limit. NaN if the group is not finite."""
    largest = np.abs(cut).max(axis=-1)
    steps = np.where(np.isfinite(largest), largest, np.float32(np.nan)) / np.float32(limit)
    return np.where(steps < np.float32(1e-30), np.float32(0), steps).astype(np.float32)


def _inverse(steps: Array) -> Array:
    return np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)


def _turn(x: Array) -> Array:
    """Heads [..., head] by the Hadamard matrix of the largest power of two that divides `head`.

    The matrix is its own inverse. It spreads a channel that is far larger than the rest over all.
    """
    matrix = np.ones((1, 1), np.float32)
    while x.shape[-1] % (2 * len(matrix)) == 0:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    parts = x.reshape(*x.shape[:-1], -1, len(matrix))
    turned = parts @ matrix / np.float32(np.sqrt(len(matrix)))
    return np.asarray(turned.reshape(x.shape), np.float32)


def _quantize(x: Array) -> tuple[Array, Array]:
    """Integers -127..127 (as float32) [rows, k] and scales [rows, groups]."""
    cut = _groups(x, GROUP)
    scales = _scales(cut, 127)
    bounded = np.clip(cut * _inverse(scales)[:, :, None], -127, 127)
    integers = np.where(scales[:, :, None] > 0, np.rint(bounded), np.float32(0))
    whole = integers.reshape(len(x), scales.shape[1] * GROUP)
    return whole[:, : x.shape[1]].astype(np.float32), scales


def _quantize4(x: Array) -> tuple[Array, Array]:
    """Like `_quantize` with integers q * m: q in -8..7, one multiplier m in -15..15 for each 32.

    Of the multipliers that reach the largest number, or nearly so, with either sign, the one that
    leaves the least squared error.
    """
    cut = _groups(x, GROUP)
    scales = _scales(cut, 120)
    pieces = cut.reshape(-1, SUBGROUP)
    step = np.repeat(scales.reshape(-1), GROUP // SUBGROUP)
    usable = step > 0
    pieces, step = pieces[usable], step[usable]
    top = np.ceil(np.abs(pieces).max(axis=1) / (np.float32(8) * step))
    best = np.zeros_like(pieces)
    least = np.full(len(pieces), np.inf, np.float32)
    for back in range(-1, 4):
        for sign in (1, -1):
            m = (sign * (top - back)).astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                q = np.rint(np.clip(pieces * (np.float32(1) / (step * m))[:, None], -8, 7))
            miss = (pieces - q * (step * m)[:, None]) ** 2
            while miss.shape[1] > 1:
                miss = miss[:, : miss.shape[1] // 2] + miss[:, miss.shape[1] // 2 :]
            better = (np.abs(m) >= 1) & (np.abs(m) <= 15) & (miss[:, 0] < least)
            least = np.where(better, miss[:, 0], least)
            best = np.where(better[:, None], q * m[:, None], best)
    integers = np.zeros((len(usable), SUBGROUP), np.float32)
    integers[usable] = best
    return integers.reshape(len(x), -1)[:, : x.shape[1]], scales


class ReferenceKernels:
    """See `mainspring.kernels.Kernels` for what each method does."""

    name = "reference"
    threads = 1

    def weight(self, matrix: Array, bias: Array | None = None, *, format: Format) -> Weight:
        values = _float(matrix)
        scales = np.empty((0, 0), np.float32)
        if format == "bf16":
            values = bf16_values(bf16_bits(values))
        elif format == "int8":
            values, scales = _quantize(values)
        elif format == "int4":
            values, scales = _quantize4(values)
        return ReferenceWeight(values, scales, None if bias is None else _float(bias), format)

    def coded_weight(
        self,
        codes: Array,
        scales: Array,
        mins: Array | None = None,
        bias: Array | None = None,
        *,
        format: CodedFormat,
    ) -> Weight:
        values = codes.astype(np.float32)
        return ReferenceWeight(values, scales, None if bias is None else _float(bias), format, mins)

    def linear(self, x: Array, weight: Weight) -> Array:
        w = cast(ReferenceWeight, weight)
        if w.format == "bf16":
            x = bf16_values(bf16_bits(x))
        if not w.scales.size:
            y = np.stack([row @ w.values.T for row in x]) if len(x) else np.empty((0, w.n))
            y = y.astype(np.float32)
        else:
            y = self._quantized_linear(x, w)
        return y if w.bias is None else y + w.bias

    def _quantized_linear(self, x: Array, w: ReferenceWeight) -> Array:
        integers, scales = _quantize(x)
        y = np.zeros((len(x), w.n), np.float32)
        size = SUBGROUP if w.format in ("q8", "q4") else GROUP
        for g, start in enumerate(range(0, w.k, size)):
            part = slice(start, start + size)
            exact = integers[:, part].astype(np.float64) @ w.values[:, part].T.astype(np.float64)
            x_scales = scales[:, start // GROUP, None]
            y += exact.astype(np.float32) * (x_scales * w.scales[None, :, g])
            if w.mins is not None:
                y += (x_scales * integers[:, part].sum(axis=1, keepdims=True)) * w.mins[None, :, g]
        return y

    def gated_linear(self, x: Array, weight: Weight, activation: Activation) -> Array:
        return self.gate(self.linear(x, weight), activation)

    def gate(self, x: Array, activation: Activation) -> Array:
        gate, up = np.split(x, 2, axis=1)
        inner = gate
        if activation == "clamped_silu":
            gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
            inner = np.float32(1.702) * gate
        if activation == "gelu_tanh":  # 0.5 (1 + tanh z) = 1 / (1 + e^-2z), which does not cancel
            inner = np.float32(np.sqrt(8 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
        with np.errstate(over="ignore"):
            return np.asarray(gate / (1 + np.exp(-inner)) * up, np.float32)

    def low_rank(self, down: Array, up: Array) -> LowRank:
        return ReferenceLowRank(_float(down), _float(up))

    def add_low_rank(self, y: Array, x: Array, uses: Sequence[LowRankUse]) -> None:
        for rows, matrix, first in uses:
            m = cast(ReferenceLowRank, matrix)
            for row in rows:  # each by itself, as in `linear`
                y[row, first : first + m.up.shape[1]] += (x[row] @ m.down) @ m.up

    def embedding(self, ids: Array, weight: Weight) -> Array:
        return np.ascontiguousarray(cast(ReferenceWeight, weight).matrix()[ids])

    def rms_norm(self, x: Array, gain: Array, eps: float, *, add: Array | None = None) -> Array:
        if add is not None:
            x += add
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        return (x / np.sqrt(mean + np.float32(eps)) * gain).astype(np.float32)

    def head_norm(self, x: Array, gain: Array, eps: float, *, first: int, heads: int) -> None:
        head = len(gain)
        part = x[:, first * head : (first + heads) * head]
        part[:] = self.rms_norm(part.reshape(-1, head), gain, eps).reshape(part.shape)

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
        half = table.shape[2]
        cosines, sines = table[positions, 0, None, :], table[positions, 1, None, :]
        part = x[:, : heads * head].reshape(len(x), heads, head)
        last = first + 2 * half
        one = slice(first, last, 2) if paired else slice(first, first + half)
        two = slice(first + 1, last, 2) if paired else slice(first + half, last)
        a, b = part[:, :, one].copy(), part[:, :, two].copy()
        part[:, :, one] = a * cosines - b * sines
        part[:, :, two] = b * cosines + a * sines
        x[:, : heads * head] = part.reshape(len(x), -1)

    def softcap(self, x: Array, cap: float) -> None:
        x[:] = np.float32(cap) * np.tanh(x / np.float32(cap))

    def cache(self, layers: int, blocks: int, heads: int, head: int, dtype: KvFormat) -> Cache:
        shape = (layers, blocks, BLOCK, heads, head)
        return ReferenceCache(np.zeros(shape, np.float32), np.zeros(shape, np.float32), dtype)

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
        store = cast(ReferenceCache, cache)
        kv, head = store.keys.shape[3:]
        rows = qkv.reshape(len(qkv), heads + 2 * kv, head)
        out = np.empty((len(qkv), heads * head), np.float32)
        for s, length in enumerate(lengths.tolist()):
            new = slice(int(starts[s]), int(starts[s + 1]))
            positions = np.arange(length - (new.stop - new.start), length)
            blocks, offsets = tables[s][positions // BLOCK], positions % BLOCK
            store.keys[layer, blocks, offsets] = store.rounded(rows[new, heads : heads + kv])
            store.values[layer, blocks, offsets] = store.rounded(rows[new, heads + kv :])
            used = tables[s][: blocks_of(length)]
            keys = store.keys[layer, used].reshape(-1, kv, head)[:length]
            values = store.values[layer, used].reshape(-1, kv, head)[:length]
            for row, position in zip(range(new.start, new.stop), positions.tolist(), strict=True):
                first = max(0, position + 1 - window) if window else 0
                seen = slice(first, position + 1)
                query = store.rounded(rows[row, :heads]).reshape(kv, heads // kv, head)
                scores = np.einsum("hgd,thd->hgt", query, keys[seen]) * np.float32(scale)
                if softcap:
                    scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
                peak = scores.max(axis=-1, keepdims=True)
                sink: Any = np.float32(-np.inf)
                if sinks is not None:
                    sink = sinks.reshape(kv, heads // kv, 1)
                    peak = np.maximum(peak, sink)
                weights = np.exp(scores - peak)
                weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sink - peak)
                out[row] = np.einsum("hgt,thd->hgd", weights, values[seen]).reshape(-1)
        return out

    def sample(
        self,
        logits: Array,
        temperature: Array,
        top_k: Array,
        top_p: Array,
        min_p: Array,
        uniform: Array,
    ) -> Array:
        chosen = np.empty(len(logits), np.int32)
        for row, values in enumerate(logits):
            best = int(np.argmax(values))
            if not np.isfinite(values[best]):
                chosen[row] = -1
            elif temperature[row] == 0:
                chosen[row] = best
            else:
                chosen[row] = self._draw(
                    (values - values[best]) / temperature[row],
                    top_k[row],
                    top_p[row],
                    min_p[row],
                    uniform[row],
                )
        return chosen

    @staticmethod
    def _draw(scaled: Array, top_k: int, top_p: float, min_p: float, uniform: float) -> Any:
        order = np.argsort(-scaled, kind="stable")
        if top_k:
            order = order[:top_k]
        p = np.exp(scaled[order].astype(np.float64))
        if top_p < 1:
            total = np.cumsum(p)
            keep = int(np.searchsorted(total, np.float64(top_p) * total[-1], side="left")) + 1
            order, p = order[:keep], p[:keep]
        keep = max(int(np.count_nonzero(p >= min_p)), 1)
        order, p = order[:keep], p[:keep]
        total = np.cumsum(p)
        index = np.searchsorted(total, uniform * total[-1], side="right")
        return order[min(int(index), len(order) - 1)]

    def log_probabilities(self, logits: Array, ids: Array, top: int) -> tuple[Array, Array, Array]:
        x = logits.astype(np.float64)
        peak = x.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            total = np.log(np.exp(x - peak).sum(axis=1, keepdims=True))
            logs = (x - peak - total).astype(np.float32)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top].astype(np.int32)
        rows = np.arange(len(logits))
        lost = ~np.isfinite(peak[:, 0])
        logs[lost] = np.nan
        best[lost] = np.arange(top)
        return logs[rows, ids], best, np.take_along_axis(logs, best, axis=1)
