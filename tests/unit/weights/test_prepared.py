"""Prepared models: the same numbers as the checkpoint, or the checkpoint itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.config import ModelConfig
from mainspring.engine import prepared
from mainspring.engine.prepared import END, MAGIC, PreparedFile, Unusable
from mainspring.engine.quantize import FORMATS
from mainspring.engine.weights import load_model, load_prepared, open_checkpoint, prepare_model
from mainspring.errors import BadRequest, Conflict, InsufficientMemory, ModelError
from mainspring.kernels import Format, load_kernels
from mainspring.runtimes.loading import load
from mainspring.types import Sampling
from tests.parity.checkpoint import prompts, write_checkpoint
from tests.parity.loop import Loop
from tests.parity.rows import ROWS
from tests.tiny import tiny_checkpoint

RECORDED = Path(__file__).parents[2] / "parity/recorded"
KERNELS = load_kernels(threads=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its int8 form. Not to be changed."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("made") / "tiny")
    prepare_model(path, KERNELS, format="int8")
    return path


def why(path: Path, format: Format = "int8") -> str:
    with pytest.raises(Unusable) as raised:
        load_prepared(path, KERNELS, format=format)
    return str(raised.value)


# The same numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ROWS)
def test_every_family_computes_the_same_bits(name: str, format: Format, tmp_path: Path) -> None:
    """Tied and untied heads, biases, fused tensors, experts in both layouts."""
    row = ROWS[name]
    with np.load(RECORDED / f"{name}.npz") as recorded:
        layout = json.loads(str(recorded["layout"]))
    path = write_checkpoint(tmp_path / name, row, layout)
    assert load_prepared(path, KERNELS, format=format) is None
    prepare_model(path, KERNELS, format=format)
    ours = load_prepared(path, KERNELS, format=format, context=row.context)
    theirs = load_model(path, KERNELS, format=format, context=row.context)
    assert ours is not None
    assert ours.shape == theirs.shape
    feed = [prompts(row)[-1]]
    a, b = (Loop(model, KERNELS, 1).feed(feed, all_logits=True) for model in (ours, theirs))
    assert a.tobytes() == b.tobytes()


def test_matrices_of_many_chunks(
    checkpoint: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "CHUNK", 1000)
    prepare_model(checkpoint, KERNELS, format="int8")
    seen: list[tuple[int, int]] = []
    ours = load_prepared(
        checkpoint, KERNELS, format="int8", progress=lambda *moved: seen.append(moved)
    )
    theirs = load_model(checkpoint, KERNELS, format="int8")
    assert ours is not None
    a, b = (Loop(m, KERNELS, 1).feed([[1, 2, 3]], all_logits=True) for m in (ours, theirs))
    assert a.tobytes() == b.tobytes()
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_every_instruction_set_reads_what_another_wrote(made: Path) -> None:
    answers = set()
    for isa in ("portable", "avx2", "avx512"):
        try:
            kernels = load_kernels(isa, threads=1)
        except BadRequest:
            continue
        model = load_prepared(made, kernels, format="int8")
        again = load_model(made, kernels, format="int8")
        assert model is not None
        a, b = (Loop(m, kernels, 1).feed([[5, 6, 7]], all_logits=True) for m in (model, again))
        assert a.tobytes() == b.tobytes()
        answers.add(isa)
    assert answers


def test_the_reference_needs_none(made: Path) -> None:
    kernels = load_kernels("reference")
    assert load_prepared(made, kernels, format="int8") is None
    with pytest.raises(BadRequest, match="isa reference"):
        prepare_model(made, kernels, format="int8")


# Files that are not what they should be -----------------------------------------------------------


def test_a_flipped_bit_anywhere(made: Path, checkpoint: Path) -> None:
    shutil.copytree(made, checkpoint, dirs_exist_ok=True)
    file = prepare_model(checkpoint, KERNELS, format="int8")
    whole = file.read_bytes()
    rng = random.Random(1)
    ends = [0, len(whole) - 1, *range(len(whole) - END.size, len(whole))]
    for place in [*ends, *(rng.randrange(len(whole)) for _ in range(200))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        assert "damaged" in (text := why(checkpoint)) or "cut short" in text
    file.write_bytes(whole)
    assert load_prepared(checkpoint, KERNELS, format="int8") is not None


def test_a_file_that_was_cut(checkpoint: Path) -> None:
    file = prepare_model(checkpoint, KERNELS, format="int8")
    whole = file.read_bytes()
    for size in (0, 1, END.size - 1, END.size, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "cut short" in why(checkpoint)
    file.write_bytes(whole[: len(whole) // 3] + whole[len(whole) // 3 + 1 :])
    assert why(checkpoint)  # one byte is missing inside
    file.write_bytes(b"\0" + whole)
    assert why(checkpoint)  # or there is one more


def with_table(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a table of one's own, with a correct end."""
    whole = file.read_bytes()
    length, _, _ = END.unpack(whole[-END.size :])
    table = msgspec.json.decode(whole[-END.size - length : -END.size])
    table = change(table) or table
    data = table if isinstance(table, bytes) else msgspec.json.encode(table)
    end = END.pack(len(data), zlib.crc32(data), MAGIC)
    file.write_bytes(whole[: -END.size - length] + data + end)


def swap(table: dict[str, Any]) -> None:
    table["matrices"][2:4] = table["matrices"][3], table["matrices"][2]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no object": (lambda t: b"[]", "makes no sense"),
    "no JSON": (lambda t: b"\xff" * 50, "makes no sense"),
    "deep": (lambda t: b'{"layout":' + b"[" * 100_000, "makes no sense"),
    "a field more": (lambda t: t.update(code="import os"), "makes no sense"),
    "a field less": (lambda t: t.pop("files") and None, "makes no sense"),
    "a format": (lambda t: t.update(format="int2"), "makes no sense"),
    "another format": (lambda t: t.update(format="int4"), "another version"),
    "another layout": (lambda t: t.update(layout="panels-0"), "another version"),
    "no matrices": (lambda t: t.update(matrices=[]), "lacks model.embed_tokens"),
    "one less": (lambda t: t["matrices"].pop() and None, "lacks model.layers.1.mlp.down_proj"),
    "one more": (lambda t: t["matrices"].append(t["matrices"][0]), "more than this model"),
    "another order": (swap, "lacks"),
    "another name": (lambda t: t["matrices"][0].update(name="../../etc"), "lacks"),
    "no sums": (lambda t: t["matrices"][0].update(sums=[]), "another size"),
    "many sums": (lambda t: t["matrices"][0].update(sums=[1] * 100_000), "another size"),
    "a wrong sum": (lambda t: t["matrices"][0].update(sums=[1]), "damaged"),
    "a huge sum": (lambda t: t["matrices"][0].update(sums=[1 << 40]), "makes no sense"),
    "no stamps": (lambda t: t.update(files={}), "config.json is not the one"),
    "a large stamp": (lambda t: t["files"].update({"config.json": [1 << 70] * 3}), "not the one"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_table_with_a_correct_sum(kind: str, checkpoint: Path) -> None:
    change, reason = HOSTILE[kind]
    with_table(prepare_model(checkpoint, KERNELS, format="int8"), change)
    assert reason in why(checkpoint)


def test_lengths_that_cannot_be(checkpoint: Path) -> None:
    file = prepare_model(checkpoint, KERNELS, format="int8")
    whole = file.read_bytes()
    for length in (0, len(whole), 1 << 40, (1 << 64) - 1):
        file.write_bytes(whole[: -END.size] + END.pack(length, 0, MAGIC))
        assert "cut short" in why(checkpoint)


def test_what_is_no_file(checkpoint: Path, made: Path) -> None:
    place = checkpoint / "int8.prepared"
    place.mkdir()
    assert why(checkpoint)
    place.rmdir()
    os.mkfifo(place)
    assert why(checkpoint)
    place.unlink()
    place.symlink_to(made / "int8.prepared")
    assert "cannot be opened" in why(checkpoint)
    place.unlink()
    place.symlink_to("nowhere")
    assert "cannot be opened" in why(checkpoint)


def test_the_file_of_another_format(checkpoint: Path) -> None:
    prepare_model(checkpoint, KERNELS, format="int8").rename(checkpoint / "int4.prepared")
    assert "another version" in why(checkpoint, "int4")


# Checkpoints that are not the one it was made of --------------------------------------------------


def test_weights_of_the_same_size_and_date(checkpoint: Path, tmp_path: Path) -> None:
    """Trained again, and the date set back as some tools do."""
    prepare_model(checkpoint, KERNELS, format="int8")
    weights = checkpoint / "model.safetensors"
    before = weights.stat()
    other = tiny_checkpoint(tmp_path / "other", seed=1) / "model.safetensors"
    data = other.read_bytes()
    assert len(data) == before.st_size
    with weights.open("r+b") as file:
        file.write(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert "model.safetensors is not the one" in why(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_changed_configuration(name: str, checkpoint: Path) -> None:
    prepare_model(checkpoint, KERNELS, format="int8")
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes())
    assert f"{name} is not the one" in why(checkpoint)


def test_a_copy_belongs_to_nobody(made: Path, tmp_path: Path) -> None:
    """Who gives away a checkpoint cannot give a prepared file of other weights with it."""
    shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copy2)
    assert "is not the one" in why(tmp_path / "copy")


def test_a_checkpoint_that_changes_while_it_is_read(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"

    def touch(done: int, total: int) -> None:
        if done == total:
            weights.write_bytes(weights.read_bytes())

    with pytest.raises(ModelError, match="changed while it was read"):
        prepare_model(checkpoint, KERNELS, format="int8", progress=touch)
    assert not list(checkpoint.glob("int8*"))


def test_times_are_told_apart(checkpoint: Path) -> None:
    """A file that is written twice within a tick of the clock is noticed, also right after."""
    weights = checkpoint / "model.safetensors"
    data = weights.read_bytes()
    for _ in range(20):
        weights.write_bytes(data)
        prepare_model(checkpoint, KERNELS, format="int8")
        weights.write_bytes(data)
        assert why(checkpoint)


# Making it ----------------------------------------------------------------------------------------


def test_a_new_one_takes_the_place_of_the_old(checkpoint: Path) -> None:
    file = prepare_model(checkpoint, KERNELS, format="int8")
    with closing(PreparedFile(file)) as old:
        first = file.stat().st_ino
        assert prepare_model(checkpoint, KERNELS, format="int8") == file
        assert file.stat().st_ino != first
        assert old.table.files == open_checkpoint(checkpoint).stamps
    assert {path.name for path in checkpoint.glob("*prepared*")} == {"int8.prepared"}


def test_two_at_a_time(checkpoint: Path) -> None:
    with (checkpoint / "int8.prepared.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="by another process"):
            prepare_model(checkpoint, KERNELS, format="int8")
    prepare_model(checkpoint, KERNELS, format="int8")  # what a killed process left is no obstacle
    assert load_prepared(checkpoint, KERNELS, format="int8") is not None


def test_a_place_that_cannot_be_written(checkpoint: Path) -> None:
    (checkpoint / "int8.prepared.part").mkdir()
    with pytest.raises(BadRequest, match="mainspring pull DIRECTORY"):
        prepare_model(checkpoint, KERNELS, format="int8")


def test_a_full_disk(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InsufficientMemory, match=r"no space left for int8.prepared"):
            prepare_model(checkpoint, KERNELS, format="int8")
    assert not list(checkpoint.glob("int8*"))
    usage = shutil.disk_usage(checkpoint)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InsufficientMemory, match=r"1,000 bytes free"):
        prepare_model(checkpoint, KERNELS, format="int8")


# Using it -----------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"quantize": "int8", "threads": 1, "max_running": 2}


def tokens(path: Path, **settings: Any) -> tuple[bool, str, list[Any]]:
    """Whether it was prepared, the warning, and what a sampled sequence gives."""
    loaded = load(path, ModelConfig(**SETTINGS, **settings))
    loaded.engine.add("a", (1, 2, 3), Sampling(temperature=1.0, seed=3, max_tokens=20, logprobs=1))
    found: list[Any] = []
    while loaded.engine.has_work:
        for output in loaded.engine.step():
            found += [output.tokens, output.logprobs]
    return loaded.prepared, loaded.warning, found


def test_loading_takes_it_or_says_why_not(checkpoint: Path) -> None:
    plain, warning, expected = tokens(checkpoint)
    assert not plain
    assert not warning
    file = prepare_model(checkpoint, KERNELS, format="int8")
    assert tokens(checkpoint) == (True, "", expected)
    assert tokens(checkpoint, prepared=False) == (False, "", expected)
    with file.open("r+b") as out:
        out.write(bytes([file.read_bytes()[0] ^ 1]))
    used, warning, found = tokens(checkpoint)
    assert not used
    assert "because model.embed_tokens is damaged" in warning
    assert f"`mainspring prepare {checkpoint} --quantize int8` makes it again" in warning
    assert found == expected
