"""Self-attention with its projections, over the paged cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mainspring.engine.batch import Batch
from mainspring.engine.fields import Fields
from mainspring.engine.layers.linear import Linear
from mainspring.engine.layers.rope import Rope
from mainspring.engine.source import Source
from mainspring.kernels import Array, Cache, Kernels

__all__ = ["Attention", "layer_windows"]

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_windows(fields: Fields, layers: int, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """Each layer's window, 0 for full attention.

    `layer_types` of config.json says which layers slide; where it is absent, `slides(layer)`.
    """
    types = fields.names("layer_types", layers, (FULL, SLIDING))
    if types is None:
        types = tuple(SLIDING if slides(layer) else FULL for layer in range(layers))
    if SLIDING not in types:
        return (0,) * layers
    window = fields.integer("sliding_window", high=1 << 24)
    return tuple(window if kind == SLIDING else 0 for kind in types)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's attention: qkv product, head norms, rope, attention, output product."""

    kernels: Kernels
    layer: int
    qkv: Linear
    output: Linear
    rope: Rope | None
    """None: without positions (NoPE, arXiv 2305.19466)"""
    heads: int
    kv_heads: int
    head: int
    scale: float
    eps: float
    window: int = 0
    """a token sees itself and window - 1 before it; 0: all"""
    softcap: float = 0.0
    q_norm: Array | None = None
    """gain of the norm of each head, or, as wide as all of them, of the norm of all together"""
    k_norm: Array | None = None
    sinks: Array | None = None
    """[heads], as `Kernels.attention` takes them"""

    @classmethod
    def load(
        cls,
        source: Source,
        layer: int,
        rope: Rope | None,
        *,
        qkv_names: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        qkv_bias: bool = False,
        output_bias: bool = False,
        window: int = 0,
        scale: float = 0.0,
        softcap: float = 0.0,
        head_norms: tuple[Array, Array] | None = None,
        sinks: Array | None = None,
    ) -> Attention:
        """The tensors of `model.layers.{layer}.self_attn`. One of `qkv_names`: stored fused."""
        sizes = source.sizes
        prefix = f"model.layers.{layer}.self_attn."
        q, kv = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
        rows = (q, kv, kv) if len(qkv_names) == 3 else (q + 2 * kv,)
        names = [prefix + name for name in qkv_names]
        return cls(
            kernels=source.kernels,
            layer=layer,
            qkv=source.linear(names, rows, sizes.hidden, bias=qkv_bias),
            output=source.linear([prefix + "o_proj"], (sizes.hidden,), q, bias=output_bias),
            rope=rope,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head=sizes.head,
            scale=scale or sizes.head**-0.5,
            eps=sizes.eps,
            window=window,
            softcap=softcap,
            q_norm=head_norms[0] if head_norms else None,
            k_norm=head_norms[1] if head_norms else None,
            sinks=sinks,
        )

    def __call__(self, x: Array, batch: Batch, cache: Cache) -> Array:
        """x [rows, hidden] -> [rows, hidden]; the rows' keys and values are stored in `cache`."""
        k, heads = self.kernels, self.heads
        qkv = self.qkv(x, batch.adapted)
        if self.q_norm is not None and self.k_norm is not None:
            q, keys = heads * self.head, self.kv_heads * self.head
            wide = len(self.k_norm)
            k.head_norm(qkv, self.q_norm, self.eps, first=0, heads=q // len(self.q_norm))
            k.head_norm(qkv, self.k_norm, self.eps, first=q // wide, heads=keys // wide)
        if self.rope is not None:
            rotated = heads + self.kv_heads
            k.rope(qkv, self.rope.table, batch.positions, heads=rotated, head=self.head)
        mixed = k.attention(
            qkv,
            cache,
            self.layer,
            batch.starts,
            batch.lengths,
            batch.tables,
            heads=heads,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        return self.output(mixed, batch.adapted)
