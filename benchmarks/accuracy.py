"""What each format of weights and of the KV cache costs in accuracy.

    python benchmarks/accuracy.py --save

Product: relative root-mean-square error of x @ W.T against float64, for normal weights; x normal,
and with planted outlier channels 100 times the rest, as trained models have them. Model: the
embedded one, which is trained; the mean KL divergence of its next-token distribution from the
float32 model's and how often the likeliest token agrees, over the manual's own pages.

KV cache: relative root-mean-square error of attention against float64 over a context of normal
numbers; plain, and with four channels of the keys 100 times the rest and the same of the queries
a hundredth, so that the scores are as large as before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.record import save
from mainspring.engine.batch import Batch
from mainspring.engine.weights import load_model
from mainspring.kernels import BLOCK, Array, Format, Kernels, KvFormat, blocks_of, load_kernels
from mainspring.registry.model import EMBEDDED, resolve

ROOT = Path(__file__).parents[1]
FORMATS: tuple[Format, ...] = ("float32", "bf16", "int8", "int4")
ROWS, WIDTH, OUTPUTS = 64, 896, 4864
OUTLIERS = 4
KV_FORMATS: tuple[KvFormat, ...] = ("float32", "bf16", "int8")
CONTEXT, HEAD = 2048, 64


def product_errors(kernels: Kernels, format: Format) -> dict[str, float]:
    """Relative RMS error of one product, per kind of activations."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((OUTPUTS, WIDTH)).astype(np.float32)
    normal = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    spiked = normal.copy()
    spiked[:, rng.choice(WIDTH, OUTLIERS, replace=False)] *= 100
    weight = kernels.weight(matrix, format=format)
    errors = {}
    for name, x in (("normal", normal), ("outliers", spiked)):
        exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
        off = kernels.linear(x, weight) - exact
        errors[name] = float(np.sqrt((off**2).mean() / (exact**2).mean()))
    return errors


def kv_errors(kernels: Kernels, dtype: KvFormat) -> dict[str, float]:
    """Relative RMS error of attention, one head, per kind of keys."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((CONTEXT, 3, HEAD)).astype(np.float32)
    spiked = normal.copy()
    channels = rng.choice(HEAD, OUTLIERS, replace=False)
    spiked[:, 0, channels] /= 100
    spiked[:, 1, channels] *= 100
    blocks = np.arange(CONTEXT // BLOCK, dtype=np.int32)[None]
    ends = np.array([CONTEXT], np.int32)
    errors = {}
    for name, qkv in (("normal", normal), ("outliers", spiked)):
        cache = kernels.cache(1, blocks.size, 1, HEAD, dtype)
        mine = kernels.attention(
            qkv.reshape(CONTEXT, -1),
            cache,
            0,
            np.append(np.int32(0), ends),
            ends,
            blocks,
            heads=1,
            scale=HEAD**-0.5,
        )
        q, k, v = qkv.astype(np.float64).transpose(1, 0, 2)
        scores = np.where(np.tri(CONTEXT, dtype=bool), q @ k.T * HEAD**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact = weights @ v / weights.sum(axis=1, keepdims=True)
        errors[name] = float(np.sqrt(((mine - exact) ** 2).mean() / (exact**2).mean()))
    return errors


def model_log_probabilities(kernels: Kernels, format: Format, pages: list[list[int]]) -> Array:
    """Log-softmax [tokens, vocabulary] of the embedded model over the pages."""
    model = load_model(resolve(EMBEDDED, Path()).path, kernels, format=format)
    shape = model.shape
    found = []
    for tokens in pages:
        count = len(tokens)
        blocks = blocks_of(count)
        dtype = "float32" if format == "float32" else "bf16"
        cache = kernels.cache(shape.layers, blocks, shape.kv_heads, shape.head, dtype)
        positions = np.arange(count, dtype=np.int32)
        batch = Batch(
            np.array(tokens, np.int32),
            positions,
            np.array([0, count], np.int32),
            np.array([count], np.int32),
            np.arange(blocks, dtype=np.int32)[None],
            positions,
        )
        logits = model.forward(batch, cache).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(found)


def guide_pages() -> list[list[int]]:
    """The manual in pieces of 256 tokens."""
    tokenizer = Tokenizer.from_file(str(resolve(EMBEDDED, Path()).path / "tokenizer.json"))
    tokens: list[int] = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        tokens += tokenizer.encode(page.read_text(), add_special_tokens=False).ids
    return [tokens[i : i + 256] for i in range(0, len(tokens) - 256, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", action="store_true", help="keep under benchmarks/results/")
    options = parser.parse_args()
    kernels = load_kernels()
    pages = guide_pages()
    exact = model_log_probabilities(kernels, "float32", pages)
    rows: list[dict[str, Any]] = []
    for format in FORMATS:
        mine = model_log_probabilities(kernels, format, pages)
        row: dict[str, Any] = {
            "format": format,
            "product": product_errors(kernels, format),
            "kl": float((np.exp(exact) * (exact - mine)).sum(axis=1).mean()),
            "agreement": float((exact.argmax(axis=1) == mine.argmax(axis=1)).mean()),
            "tokens": len(exact),
        }
        rows.append(row)
        print(
            f"{format:8} product {row['product']['normal']:.5f}, with outliers "
            f"{row['product']['outliers']:.5f}; model KL {row['kl']:.6f}, "
            f"same choice {row['agreement']:.4f} of {row['tokens']}"
        )
    kv = [{"format": dtype, **kv_errors(kernels, dtype)} for dtype in KV_FORMATS]
    for row in kv:
        print(f"KV {row['format']:8} {row['normal']:.5f}, with outliers {row['outliers']:.5f}")
    if options.save:
        save("accuracy", rows=rows, kv=kv)


if __name__ == "__main__":
    main()
