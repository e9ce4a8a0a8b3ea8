"""Pulling a directory: copied or linked, with digests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.errors import BadRequest, ModelError
from mainspring.registry import resolve
from mainspring.registry.catalog import Catalog
from mainspring.registry.pull import pull_path
from tests.tiny import tiny_checkpoint
from tests.unit.registry.counted import Counted


def test_a_directory_is_copied_with_digests(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (source / "optimizer.pt").write_bytes(b"x")
    progress = Counted()
    manifest = pull_path(source, tmp_path / "home", name="chat", progress=progress)
    found = resolve("chat", tmp_path / "home")
    assert not (found.path / "optimizer.pt").exists()
    assert manifest.damage(found.path, contents=True) == []
    assert progress.moves == progress.sizes
    (source / "model.safetensors").unlink()
    assert resolve("chat", tmp_path / "home").digest == manifest.digest


def test_a_linked_directory_stays_where_it_is(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    home = tmp_path / "home"
    manifest = pull_path(source, home, link=True, progress=Counted())
    found = resolve("source", home)
    assert (found.path, found.digest) == (source, manifest.digest)
    os.truncate(source / "model.safetensors", 10)
    with pytest.raises(ModelError, match="differs from what was linked"):
        resolve("source", home)
    Catalog(home).remove("source")
    assert (source / "config.json").exists()


def test_a_directory_with_pickles_only_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="only as pickle"):
        pull_path(source, tmp_path / "home", progress=Counted())


def test_devices_and_pipes_in_a_directory_are_not_copied(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    os.mkfifo(source / "tokenizer_fifo.json")
    (source / "chat_template.json").symlink_to("/dev/zero")
    manifest = pull_path(source, tmp_path / "home", progress=Counted())
    names = {file.name for file in manifest.files}
    assert "model.safetensors" in names
    assert not names & {"tokenizer_fifo.json", "chat_template.json"}


def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    with pytest.raises(BadRequest, match="choose another place with --home"):
        pull_path(source, source / "config.json", progress=Counted())
