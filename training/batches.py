"""Samples batched by length, as tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.samples import Sampler
from training.tokenizer import END

__all__ = ["batches"]


def batches(sampler: Sampler, tokens: int, pool: int = 2048) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, weights) [batch, length], about `tokens` each, of similar lengths.

    Lengths are multiples of 8 so that few different shapes occur: each new one costs the matrix
    library a compilation.
    """
    end = sampler.exact.token_to_id(END)
    waiting: dict[int, list[tuple[list[int], list[float]]]] = {}
    while True:
        ready = []
        for _ in range(pool):
            row = sampler.conversation()
            length = -(-len(row[0]) // 8) * 8
            rows = waiting.setdefault(length, [])
            rows.append(row)
            if len(rows) == max(tokens // length, 1):
                ready.append((length, waiting.pop(length)))
        sampler.rng.shuffle(ready)
        for length, rows in ready:
            ids = torch.full((len(rows), length), end, dtype=torch.long)
            weights = torch.zeros(len(rows), length)
            for i, (row_ids, row_weights) in enumerate(rows):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                weights[i, : len(row_ids)] = torch.tensor(row_weights)
            yield ids, weights
