"""Files that lie, lack, point elsewhere or would run code are refused with file and reason."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mainspring.engine.weights import inspect_checkpoint, load_model, open_checkpoint
from mainspring.errors import ModelError
from mainspring.kernels import bf16_bits, load_kernels
from tests.tiny import tiny_checkpoint, tiny_config, tiny_tensors

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "secret-place" / "m")


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        inspect_checkpoint(path)
    assert "secret-place" not in refused.value.message
    return refused.value.message


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def set_length(path: Path, length: int) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(length.to_bytes(8, "little") + data[8:])


@pytest.mark.parametrize("length", [0, 1, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_header_length(path: Path, length: int) -> None:
    set_length(path, length)
    assert f"header length {length} does not fit" in refusal(path)


def test_file_of_a_few_bytes(path: Path) -> None:
    (path / WEIGHTS).write_bytes(b"123")
    assert "model.safetensors is cut short" in refusal(path)


def test_header_that_is_not_json(path: Path) -> None:
    (path / WEIGHTS).write_bytes((40).to_bytes(8, "little") + b"[" * 40)
    assert "not valid JSON" in refusal(path)
    (path / WEIGHTS).write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    assert "not valid JSON" in refusal(path)
    (path / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"[]")
    assert "must hold a JSON object" in refusal(path)


NORM = "model.norm.weight"
LIES: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "F16"}, "F16 [64] takes 128 bytes, data_offsets give 256"),
    ({"shape": [65]}, "takes 260 bytes"),
    ({"shape": [1 << 47, 1 << 47]}, "data_offsets give 256"),
    ({"shape": [-64]}, "dtype or shape that cannot be"),
    ({"shape": ["64"]}, "dtype or shape that cannot be"),
    ({"shape": [1] * 9}, "dtype or shape that cannot be"),
    ({"dtype": 4}, "dtype or shape that cannot be"),
    ({"data_offsets": [10, 2]}, "impossible data_offsets"),
    ({"data_offsets": [0, 1 << 60]}, "impossible data_offsets"),
    ({"data_offsets": [0]}, "impossible data_offsets"),
    ({"more": 1}, "must have dtype, shape and data_offsets"),
]


@pytest.mark.parametrize(("change", "message"), LIES)
def test_lying_entry(path: Path, change: dict[str, Any], message: str) -> None:
    change_header(path, lambda header: header[NORM].update(change))
    assert message in refusal(path)


def test_overlap_hole_and_tail(path: Path) -> None:
    def shift(header: dict[str, Any]) -> None:
        start, end = header[NORM]["data_offsets"]
        header[NORM]["data_offsets"] = [start - 4, end - 4]

    change_header(path, shift)
    assert "overlaps the one before" in refusal(path)
    tiny_checkpoint(path)
    change_header(path, lambda header: header.pop("lm_head.weight"))
    assert "leaves a hole before it" in refusal(path)


def test_trailing_bytes_and_truncation(path: Path) -> None:
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole + b"tail")
    assert f"the file at {len(whole) + 4}" in refusal(path)
    (path / WEIGHTS).write_bytes(whole[:-4])
    assert f"the file at {len(whole) - 4}" in refusal(path)


def test_duplicate_key(path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}'
    (path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    assert "the same key twice" in refusal(path)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors", 7, None],
)
def test_path_like_shard_names(path: Path, name: object) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": {NORM: name}}))
    assert "is not a" in refusal(path)


def test_missing_shards_are_named(path: Path) -> None:
    names = {f"t{i}": f"model-{i}-of-3.safetensors" for i in (1, 2, 3)}
    (path / INDEX).write_text(json.dumps({"weight_map": names}))
    message = refusal(path)
    assert "3 of 3 weight files missing: model-1-of-3.safetensors, model-2-of-3" in message


def test_a_million_shards(path: Path) -> None:
    names = {f"t{i}": f"{i}.safetensors" for i in range(300_000)}
    (path / INDEX).write_text(json.dumps({"weight_map": names}))
    assert "the limit is 4096" in refusal(path)
    (path / INDEX).write_text(json.dumps({"weight_map": names, "x": "x" * (16 << 20)}))
    assert "larger than 16 MiB" in refusal(path)


def shard(path: Path, parts: int) -> None:
    """Split the checkpoint's weights over files."""
    tensors = tiny_tensors(tiny_config())
    (path / WEIGHTS).unlink()
    names = {}
    for part in range(parts):
        file = f"model-{part}.safetensors"
        chosen = {name: t for i, (name, t) in enumerate(tensors.items()) if i % parts == part}
        save_file(chosen, path / file)
        names.update(dict.fromkeys(chosen, file))
    (path / INDEX).write_text(json.dumps({"weight_map": names}))


def test_shards_load_as_the_whole(path: Path) -> None:
    whole = load_model(path, load_kernels("reference"), format="float32")
    shard(path, 3)
    parts = load_model(path, load_kernels("reference"), format="float32")
    assert parts.shape == whole.shape


def test_no_file_stays_open(path: Path) -> None:
    shard(path, 3)
    before = len(list(Path("/dev/fd").iterdir()))
    load_model(path, load_kernels("reference"), format="bf16")
    with pytest.raises(ModelError):
        load_model(path, load_kernels("reference"), format="bf16", context=513)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_swapped_shards(path: Path) -> None:
    shard(path, 2)
    (path / "model-0.safetensors").rename(path / "x")
    (path / "model-1.safetensors").rename(path / "model-0.safetensors")
    (path / "x").rename(path / "model-1.safetensors")
    assert "model-0.safetensors lacks" in refusal(path)


def test_a_tensor_in_two_shards(path: Path) -> None:
    shard(path, 2)
    tensors = tiny_tensors(tiny_config())
    save_file(tensors, path / "model-1.safetensors")
    assert "in model-1.safetensors and in model-0.safetensors" in refusal(path)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_links_out_fifos_and_directories(path: Path, name: str) -> None:
    outside = path.parent / name
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    assert f"{name} is a link out of" in refusal(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    assert f"{name} is not a regular file" in refusal(path)
    (path / name).unlink()
    (path / name).symlink_to(path / name)
    assert name in refusal(path) or "no model.safetensors" in refusal(path)
    (path / name).unlink()
    (path / name).mkdir()
    assert f"{name} is not a regular file" in refusal(path)


def test_a_hub_cache_of_links_is_read(path: Path) -> None:
    hub = path.parent / "models--x"
    blobs, snapshot = hub / "blobs", hub / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        (path / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert inspect_checkpoint(snapshot).parameters > 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "weights.npy"])
def test_pickles_are_never_opened(path: Path, name: str) -> None:
    (path / WEIGHTS).unlink()
    os.mkfifo(path / name)  # opening it would block for ever
    message = refusal(path)
    assert name in message and "convert to safetensors" in message


def test_no_weights_and_no_directory(path: Path) -> None:
    (path / WEIGHTS).unlink()
    assert "no model.safetensors" in refusal(path)
    (path / "model.gguf").touch()
    assert "GGUF" in refusal(path)
    assert "is not a directory" in refusal(path / "nowhere")


def test_missing_wrong_and_unexpected_tensors(path: Path) -> None:
    def save(change: Callable[[dict[str, np.ndarray]], object]) -> None:
        tensors = tiny_tensors(tiny_config())
        change(tensors)
        save_file(tensors, path / WEIGHTS)

    save(lambda tensors: tensors.pop(NORM))
    assert f"tensors missing from the checkpoint: {NORM}" in refusal(path)
    save(lambda tensors: tensors.update({NORM: np.ones(63, np.float32)}))
    assert f"{NORM} has shape [63]; config.json makes it [64]" in refusal(path)
    save(lambda tensors: tensors.update({"model.layers.0.mystery": np.ones(3, np.float32)}))
    assert "has no use for: model.layers.0.mystery" in refusal(path)
    save(lambda tensors: tensors.update({NORM: np.ones(64, np.int32)}))
    assert "weights must be F32, F16 or BF16" in refusal(path)
    save(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}))
    assert inspect_checkpoint(path).shape.layers == 2


def test_vocabulary_that_does_not_match(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(tiny_config(vocab_size=4096)))
    assert "has shape [260, 64]; config.json makes it [4096, 64]" in refusal(path)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a": 1, "a": 2}', "[" * 100_000, '{"model_type": "\udc80"}']
)
def test_config_that_is_no_object(path: Path, text: str) -> None:
    (path / "config.json").write_text(text, errors="surrogateescape")
    assert refusal(path).startswith("config.json")


def test_a_disk_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.RawIOBase):
        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return offset

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error", str(path))

    checkpoint = open_checkpoint(path)
    monkeypatch.setattr(checkpoint, "_open", lambda name: Broken())
    with pytest.raises(ModelError, match=r"^model.safetensors cannot be read: Input/output error$"):
        checkpoint.read(NORM, np.empty(64, np.float32))


def test_file_that_shrinks_while_it_is_read(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    last = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].start)
    os.truncate(path / WEIGHTS, 100_000)
    out = np.empty(checkpoint.tensors[last].shape, np.float32)
    with pytest.raises(ModelError, match="ended inside"):
        checkpoint.read(last, out)
    checkpoint.close()


def test_types_may_be_mixed_within_a_fused_weight(path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    half = "model.layers.0.self_attn.k_proj.weight"
    tensors[half] = tensors[half].astype(np.float16)
    save_file(tensors, path / WEIGHTS)
    model = load_model(path, load_kernels("reference"), format="float32")
    assert model.shape.parameters == sum(t.size for t in tensors.values())


def test_bf16_bits_are_read_as_they_are(path: Path) -> None:
    values = np.linspace(-2, 2, 64, dtype=np.float32)
    text = json.dumps({"x": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}).encode()
    data = len(text).to_bytes(8, "little") + text + bf16_bits(values).tobytes()
    (path / WEIGHTS).write_bytes(data)
    checkpoint = open_checkpoint(path)
    out = np.empty(64, checkpoint.dtype_of("x"))
    checkpoint.read("x", out)
    checkpoint.close()
    np.testing.assert_array_equal(out, bf16_bits(values))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_any_damage_is_a_model_error_or_harmless(path: Path, name: str) -> None:
    rng = np.random.default_rng(36)
    whole = (path / name).read_bytes()
    end = min(len(whole), 4000)  # of the weights: the header and a little more
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, end, rng.integers(1, 4)).tolist():
            damaged[at] = int(rng.choice(list(b'0189-"[]{}:,.eE\\\x00\xff')))
        (path / name).write_bytes(damaged)
        try:
            inspect_checkpoint(path)
        except ModelError as error:
            refused += 1
            assert len(error.message) < 2000
    assert refused > 200
