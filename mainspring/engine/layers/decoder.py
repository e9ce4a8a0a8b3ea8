"""The whole decoder: embedding, blocks, final norm, output head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mainspring.engine.architectures import ModelShape
from mainspring.engine.batch import Batch
from mainspring.engine.layers.block import Block
from mainspring.engine.layers.rope import Rope
from mainspring.engine.sizes import Sizes
from mainspring.engine.source import Source
from mainspring.kernels import Array, Cache

__all__ = ["Decoder"]


class Decoder:
    """An Architecture made of blocks."""

    def __init__(
        self,
        source: Source,
        block: Callable[[int], Block],
        ropes: Sequence[Rope],
        *,
        norm: Array | None = None,
        embedding_scale: float = 1.0,
        softcap: float = 0.0,
        sizes: Sizes | None = None,
    ) -> None:
        """`block` loads the layer of that number. Embedding and head come before them: the largest
        matrices are packed while little else is in memory. `norm` is the final norm's gain, where
        it is not simply `model.norm.weight`; `sizes` are those of the cache, where the heads in it
        are not those of config.json.
        """
        sizes = sizes or source.sizes
        self.progress = 0
        self.kernels = source.kernels
        self.eps = sizes.eps
        self.ropes = tuple(ropes)
        self.embedding_scale = np.float32(embedding_scale)
        self.softcap = softcap
        self.norm = source.vector("model.norm.weight", sizes.hidden) if norm is None else norm
        self.embedding = source.embedding("model.embed_tokens")
        self.head = self.embedding if sizes.tied else source.embedding("lm_head")
        self.blocks = tuple(block(layer) for layer in range(sizes.layers))
        self.slots = source.slots
        self.shape = ModelShape(
            family=sizes.family,
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head=sizes.head,
            vocabulary=sizes.vocabulary,
            context=min(rope.limit for rope in ropes),
            parameters=source.parameters,
            eos=source.eos,
            weight_bytes=source.weight_bytes,
            format=source.served,
        )

    def forward(self, batch: Batch, cache: Cache) -> Array:
        """See `Architecture.forward`."""
        k, rows = self.kernels, batch.logit_rows
        reach = int(batch.lengths.max())
        for rope in self.ropes:
            rope.reach(reach)
        x = k.embedding(batch.tokens, self.embedding)
        if self.embedding_scale != 1:
            x *= self.embedding_scale
        y = None
        for block in self.blocks:
            y = block(x, y, batch, cache)
            self.progress += 1
        assert y is not None, "a decoder has at least one block"
        last = k.rms_norm(x[rows], self.norm, self.eps, add=y[rows])
        logits = k.linear(last, self.head)
        if self.softcap:
            k.softcap(logits, self.softcap)
        return logits
