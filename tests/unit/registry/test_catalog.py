"""The home: what is listed, put and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.errors import ModelError
from mainspring.registry.catalog import Catalog
from tests.tiny import tiny_checkpoint


def test_an_empty_home_lists_nothing(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "none").names() == []


def test_only_whole_models_with_good_names_are_listed(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    tiny_checkpoint(catalog.path("b"))
    tiny_checkpoint(catalog.path("owner/a"))
    tiny_checkpoint(catalog.partial / "half")
    tiny_checkpoint(catalog.models / ".hidden")
    tiny_checkpoint(catalog.models / "two words")
    (catalog.models / "empty").mkdir()
    (catalog.models / "file").write_text("")
    assert catalog.names() == ["b", "owner/a"]


def test_put_replaces_an_older_model_whole(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    old = tiny_checkpoint(catalog.path("m"))
    (old / "extra.json").write_text("{}")
    built = tiny_checkpoint(catalog.partial / "m")
    assert catalog.put("m", built) == old
    assert not (old / "extra.json").exists()
    assert (old / "config.json").exists()
    assert list(catalog.partial.iterdir()) == []


def test_remove_leaves_nothing_and_counts_bytes(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    path = tiny_checkpoint(catalog.path("owner/m"))
    size = sum(f.stat().st_size for f in path.iterdir())
    assert catalog.remove("owner/m") == size
    assert catalog.names() == []
    assert list(catalog.partial.iterdir()) == []
    with pytest.raises(ModelError, match="is not in"):
        catalog.remove("owner/m")


def test_removing_a_linked_model_keeps_its_source(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    catalog = Catalog(tmp_path / "home")
    catalog.models.mkdir(parents=True)
    catalog.path("linked").symlink_to(source)
    assert catalog.names() == ["linked"]
    catalog.remove("linked")
    assert (source / "config.json").exists()
