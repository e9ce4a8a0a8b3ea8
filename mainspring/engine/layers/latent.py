"""Multi-head latent attention (DeepSeek V2, arXiv 2405.04434) over a cache of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mainspring.engine.batch import Batch
from mainspring.engine.fields import Fields
from mainspring.engine.layers.rope import Rope, rope_fields
from mainspring.engine.source import Source
from mainspring.kernels import Array, Cache, Kernels, Weight

__all__ = ["LatentAttention", "LatentSizes", "latent_scale"]

EPS = 1e-6
"""of the norms of latents, whatever config.json says of the others"""


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """Widths: a query or key is `plain` numbers without position, then `rotated` ones with it."""

    plain: int
    rotated: int
    value: int
    latent: int
    """what keys without position and values of all heads are made from"""
    query_latent: int
    """what queries are made from; 0: from the token itself"""

    @classmethod
    def of(cls, fields: Fields) -> LatentSizes:
        found = cls(
            plain=fields.integer("qk_nope_head_dim", high=1024),
            rotated=fields.integer("qk_rope_head_dim", low=2, high=512),
            value=fields.integer("v_head_dim", high=1024),
            latent=fields.integer("kv_lora_rank", high=638),
            query_latent=fields.integer("q_lora_rank", 0, low=0, high=1 << 16),
        )
        if found.cached > 640 or found.cached % 2:
            raise fields.refuse(
                "kv_lora_rank",
                f"and qk_rope_head_dim make {found.cached}; they must be even and at most 640",
            )
        return found

    @property
    def head(self) -> int:
        return self.plain + self.rotated

    @property
    def cached(self) -> int:
        """Of one token: its latent and the rotated part of its key."""
        return self.latent + self.rotated


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """One layer's attention, in which a token leaves one latent for all heads.

    A head's key without position is a product of the latent; the same matrix, turned, takes the
    query to the latents instead (`absorb`), and so all heads attend over the latents themselves as
    heads of one key-value head. What a head saw, a mean of latents, becomes its value by a product
    (`expand`). So a cache of 1 head as wide as a latent serves any number of heads.
    """

    kernels: Kernels
    layer: int
    sizes: LatentSizes
    heads: int
    compress_query: Weight | None
    query_norm: Array | None
    query: Weight
    compress: Weight
    """to the latent and the rotated part of the key"""
    norm: Array
    absorb: tuple[Weight, ...]
    expand: tuple[Weight, ...]
    output: Weight
    rope: Rope
    paired: bool
    """the numbers that are rotated with each other are neighbours"""
    scale: float

    @classmethod
    def load(
        cls, source: Source, layer: int, rope: Rope, sizes: LatentSizes, *, paired: bool
    ) -> LatentAttention:
        """The tensors of `model.layers.{layer}.self_attn`."""
        fields, hidden, heads = source.fields, source.sizes.hidden, source.sizes.heads
        prefix, bias = f"model.layers.{layer}.self_attn.", fields.flag("attention_bias")
        rank, name = sizes.query_latent, "q_b_proj" if sizes.query_latent else "q_proj"
        parts = source.pieces(
            prefix + "kv_b_proj", [(sizes.plain, True), (sizes.value, False)] * heads, sizes.latent
        )
        return cls(
            kernels=source.kernels,
            layer=layer,
            sizes=sizes,
            heads=heads,
            compress_query=source.weight([prefix + "q_a_proj"], (rank,), hidden, bias=bias)
            if rank
            else None,
            query_norm=source.vector(prefix + "q_a_layernorm.weight", rank) if rank else None,
            query=source.weight([prefix + name], (heads * sizes.head,), rank or hidden),
            compress=source.weight(
                [prefix + "kv_a_proj_with_mqa"], (sizes.cached,), hidden, bias=bias
            ),
            norm=source.vector(prefix + "kv_a_layernorm.weight", sizes.latent),
            absorb=tuple(parts[::2]),
            expand=tuple(parts[1::2]),
            output=source.weight([prefix + "o_proj"], (hidden,), heads * sizes.value, bias=bias),
            rope=rope,
            paired=paired,
            scale=latent_scale(fields, sizes),
        )

    def __call__(self, x: Array, batch: Batch, cache: Cache) -> Array:
        """x [rows, hidden] -> [rows, hidden]; the rows' latents are stored in `cache`."""
        k, sizes, heads = self.kernels, self.sizes, self.heads
        mixed = k.attention(
            self._queries_and_latents(x, batch),
            cache,
            self.layer,
            batch.starts,
            batch.lengths,
            batch.tables,
            heads=heads,
            scale=self.scale,
        ).reshape(len(x), heads, sizes.cached)
        values = np.empty((len(x), heads, sizes.value), np.float32)
        for head, expand in enumerate(self.expand):
            seen = np.ascontiguousarray(mixed[:, head, : sizes.latent])
            values[:, head] = k.linear(seen, expand)
        return k.linear(values.reshape(len(x), -1), self.output)

    def _queries_and_latents(self, x: Array, batch: Batch) -> Array:
        """[rows, (heads + 2) * cached]: queries, then the latents as keys and as values.

        The rotated part of a key stands in the value too, where nothing reads it.
        """
        k, sizes, heads = self.kernels, self.sizes, self.heads
        out = np.empty((len(x), heads + 2, sizes.cached), np.float32)
        latents = k.linear(x, self.compress)
        k.head_norm(latents, self.norm, EPS, first=0, heads=1)
        self._rotate(latents, batch, 1, sizes.latent)
        out[:, heads] = out[:, heads + 1] = latents
        if self.compress_query is not None and self.query_norm is not None:
            x = k.rms_norm(k.linear(x, self.compress_query), self.query_norm, EPS)
        queries = k.linear(x, self.query)
        self._rotate(queries, batch, heads, sizes.plain)
        queries = queries.reshape(len(x), heads, sizes.head)
        out[:, :heads, sizes.latent :] = queries[:, :, sizes.plain :]
        for head, absorb in enumerate(self.absorb):
            plain = np.ascontiguousarray(queries[:, head, : sizes.plain])
            out[:, head, : sizes.latent] = k.linear(plain, absorb)
        return out.reshape(len(x), -1)

    def _rotate(self, x: Array, batch: Batch, heads: int, first: int) -> None:
        """The last `rotated` numbers of each head."""
        head = first + self.sizes.rotated
        self.kernels.rope(
            x, self.rope.table, batch.positions,
            heads=heads, head=head, first=first, paired=self.paired,
        )  # fmt: skip


def latent_scale(fields: Fields, sizes: LatentSizes) -> float:
    """Of the scores. With YaRN its factor for long contexts is here, not in the rotation."""
    table = rope_fields(fields)
    scale = float(sizes.head**-0.5)
    weight = table.number("mscale_all_dim", 0.0, high=1e3)
    if table.values.get("rope_type", "default") == "default" or not weight:
        return scale
    factor = table.number("factor", low=1e-3, high=1e6)
    return scale * (0.1 * weight * math.log(max(factor, 1.0)) + 1) ** 2
