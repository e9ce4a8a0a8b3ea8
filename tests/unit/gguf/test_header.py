"""Files that lie about themselves are refused with file and byte, whatever is wrong with them."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.engine.weights import inspect_checkpoint, load_model
from mainspring.errors import MainspringError, ModelError
from mainspring.kernels import load_kernels
from mainspring.runtimes.gguf import gguf_template, gguf_tokenizer
from tests.gguf import U32, convert, dump, tiny_gguf, tokenizer_pairs
from tests.tiny import tiny_config, tiny_tensors, tiny_tokenizer

CONFIG = tiny_config(num_hidden_layers=1, hidden_size=32, intermediate_size=32, head_dim=8)
EDGES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    pairs, tensors = convert(CONFIG, tiny_tensors(CONFIG))
    return {**pairs, **tokenizer_pairs(tiny_tokenizer(), "{{ messages }}")}, dict(tensors)


@pytest.fixture(scope="module")
def whole(parts: tuple[dict[str, Any], dict[str, Any]]) -> bytes:
    return dump(*parts)


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(ModelError) as refused:
        inspect_checkpoint(path)
    assert time.process_time() - began < 0.5
    assert str(path.parent) not in refused.value.message
    return refused.value.message


def changed(data: bytes, at: int, format: str, value: int) -> bytes:
    return data[:at] + struct.pack(format, value) + data[at + struct.calcsize(format) :]


def after(data: bytes, text: str) -> int:
    return data.index(text.encode()) + len(text)


def test_a_whole_file_is_taken(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(whole)
    assert inspect_checkpoint(tmp_path / "m.gguf").family == "llama"


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("value", EDGES)
def test_counts(tmp_path: Path, whole: bytes, at: int, value: int) -> None:
    words = refusal(tmp_path / "m.gguf", changed(whole, at, "<Q", value))
    assert "m.gguf" in words or (at, value) == (8, 1)  # then most tensors are missing


@pytest.mark.parametrize("what", ["general.architecture", "tokenizer.ggml.tokens"])
@pytest.mark.parametrize("value", EDGES)
def test_lengths(tmp_path: Path, whole: bytes, what: str, value: int) -> None:
    at = after(whole, what) + (8 if what.endswith("tokens") else 4)
    assert "m.gguf" in refusal(tmp_path / "m.gguf", changed(whole, at, "<Q", value))
    at = whole.index(what.encode()) - 8
    assert "m.gguf: byte" in refusal(tmp_path / "m.gguf", changed(whole, at, "<Q", value))


@pytest.mark.parametrize("field", [4, 12, 20, 24])
@pytest.mark.parametrize("value", EDGES)
def test_tensor_fields(tmp_path: Path, whole: bytes, field: int, value: int) -> None:
    """Both sizes, the type and the offset of one."""
    at = after(whole, "blk.0.attn_v.weight") + field
    if field == 20:
        if value in (0, 2**32 - 1) or value > 2**32:
            value = 77
        data = changed(whole, at, "<I", value)
    else:
        data = changed(whole, at, "<Q", value)
    assert "m.gguf" in refusal(tmp_path / "m.gguf", data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "byte 0: 4 bytes should follow"),
        (b"GGUX" + bytes(20), "byte 0: this is no GGUF file"),
        (b"GGUF\0\0\0\3" + bytes(16), "byte 4: big-endian; GGUF versions 2 and 3"),
        (b"GGUF\1\0\0\0" + bytes(16), "byte 4: version 1; GGUF versions"),
        (b"GGUF\3\0\0\0" + bytes(16), "general.architecture is missing"),
    ],
)
def test_beginnings(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path / "m.gguf", data)


@pytest.mark.parametrize("cut", [3, 23, 24, 100, 5_000, -1, -33])
def test_cut_short(tmp_path: Path, whole: bytes, cut: int) -> None:
    words = refusal(tmp_path / "m.gguf", whole[:cut])
    assert any(part in words for part in ("cut short or damaged", "copy it again", "tensors; the"))


def test_the_same_twice(tmp_path: Path, whole: bytes) -> None:
    data = whole.replace(b"llama.context_length", b"llama.context_lengtH").replace(
        b"llama.embedding_length", b"llama.embedding_lengtH"
    )
    assert "is missing" in refusal(tmp_path / "m.gguf", data)
    data = whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight")
    assert "blk.0.attn_k.weight is there twice" in refusal(tmp_path / "m.gguf", data)
    key = b"tokenizer.ggml.merges"
    data = whole.replace(b"tokenizer.ggml.tokens", key)
    assert "tokenizer.ggml.merges is there twice" in refusal(tmp_path / "m.gguf", data)


def test_arrays_of_arrays(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"a", 9)
    data = head + struct.pack("<IQ", 9, 1) * 2000
    assert "an array of arrays" in refusal(tmp_path / "m.gguf", data)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"general.alignment": U32(24)}, "general.alignment must be a power of two"),
        ({"general.alignment": "x"}, "general.alignment must be a power of two"),
        ({"general.architecture": "bert"}, "general.architecture is 'bert'; known: gemma2"),
        ({"general.architecture": U32(3)}, "general.architecture is 3; known"),
        ({"llama.block_count": U32(0)}, "llama.block_count is 0; the limits are 1 to 1024"),
        ({"llama.block_count": "1"}, "llama.block_count must be an integer"),
        ({"llama.block_count": U32(2)}, "tensors missing from the checkpoint: model.layers.1."),
        ({"llama.attention.head_count": [U32(4), U32(2)]}, "differs from layer to layer"),
        ({"llama.attention.value_length": U32(4)}, "value_length is 4, the keys' 8"),
        ({"llama.rope.scaling.type": "odd"}, "llama.rope.scaling.type is 'odd'; known"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.factor is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"tokenizer.ggml.eos_token_id": U32(260)}, "eos_token_id is 260; the limits"),
        ({"split.count": U32(3)}, "is one of 3 parts; join them"),
    ],
)
def test_metadata(
    tmp_path: Path, parts: tuple[dict[str, Any], dict[str, Any]], pairs: dict[str, Any], words: str
) -> None:
    data = dump({**parts[0], **pairs}, parts[1])
    assert words in refusal(tmp_path / "m.gguf", data)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("blk.0.surplus.weight", np.ones((2, 2)), "has no use for: blk.0.surplus.weight"),
        ("{expert.__class__}", np.ones((2, 2)), "has no use for: {expert.__class__}"),
        ("blk.0.ffn_up_exps.weight", np.ones(3), "experts, rows and columns are needed"),
        ("blk.00.attn_q.weight", np.ones((32, 32)), "are both model.layers.0.self_attn.q_proj"),
        ("blk.0.attn_q.weight", np.ones((12, 32)), "12 rows, not a multiple of twice its 4 heads"),
        ("blk.0.attn_v.weight", np.ones((8, 32)), "has shape [8, 32]; config.json makes it [16,"),
        ("rope_freqs.weight", np.ones(5000), "must be a short list of F32"),
        ("rope_freqs.weight", np.ones(3), "must be a list of 4 numbers, not 3"),
        ("blk.0.attn_v.weight", ("Q8_0", (16, 33), bytes(16 * 34)), "rows of 33; Q8_0 needs whole"),
    ],
)  # fmt: skip
def test_tensors(
    tmp_path: Path, parts: tuple[dict[str, Any], dict[str, Any]], name: str, array: Any, words: str
) -> None:
    assert words in refusal(tmp_path / "m.gguf", dump(parts[0], {**parts[1], name: array}))


def test_no_embedding(tmp_path: Path) -> None:
    data = dump({"general.architecture": "llama", "llama.embedding_length": U32(8)}, {})
    assert "token_embd.weight is missing" in refusal(tmp_path / "m.gguf", data)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "directory.gguf").mkdir()
    for name, words in (
        ("fifo", "not a regular file"),
        ("directory", "not a regular file"),
        ("absent", "cannot be read: No such file"),
    ):
        with pytest.raises(ModelError, match=words):
            inspect_checkpoint(tmp_path / f"{name}.gguf")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")

    def shrink(done: int, total: int) -> None:
        os.truncate(path, 20_000)

    with pytest.raises(ModelError, match=r"m\.gguf ended inside"):
        load_model(path, load_kernels(threads=1), format="bf16", progress=shrink)


def fuzz(data: bytes, path: Path, count: int, seed: int) -> None:
    """Damaged files are read, or refused with a ModelError, and nothing else."""
    rng = np.random.default_rng(seed)
    end = len(data) - sum(a.nbytes for a in tiny_tensors(CONFIG).values())
    path.write_bytes(data)
    with path.open("r+b") as file:
        for _ in range(count):
            changes = []
            for _ in range(rng.integers(1, 4)):
                at = int(rng.integers(0, end))
                kind, value = rng.integers(0, 3), EDGES[rng.integers(len(EDGES))]
                new = [bytes([rng.integers(0, 256)]), struct.pack("<Q", value), bytes(4)][kind]
                changes.append((at, new))
                file.seek(at)
                file.write(new)
            file.flush()
            for read in (inspect_checkpoint, gguf_template, gguf_tokenizer):
                with contextlib.suppress(MainspringError):
                    read(path)
            for at, new in changes:
                file.seek(at)
                file.write(data[at : at + len(new)])


def test_fuzz(tmp_path: Path) -> None:
    fuzz(small(), tmp_path / "m.gguf", 2_000, 0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fuzz_long(tmp_path: Path) -> None:
    fuzz(small(), tmp_path / "m.gguf", 200_000, 1)


def small() -> bytes:
    """Few tokens: half of the header's bytes are keys, counts and tensors."""
    pairs, tensors = convert(CONFIG, tiny_tensors(CONFIG))
    more = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
        "tokenizer.ggml.scores": [0.0] * 6,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": U32(1),
        "tokenizer.chat_template": "{{ messages }}",
    }
    return dump({**pairs, **more}, tensors)
