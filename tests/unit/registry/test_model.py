"""Names to directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.errors import BadRequest, ModelError, ModelNotFound
from mainspring.registry import resolve
from mainspring.registry.catalog import Catalog, check_name
from mainspring.registry.manifest import MANIFEST, Manifest, ManifestFile, read_manifest
from mainspring.registry.verify import sha256_of
from tests.tiny import tiny_checkpoint


def put(home: Path, name: str, *, manifest: bool = True) -> Path:
    """A pulled model in the home, as `pull` leaves it."""
    directory = tiny_checkpoint(Catalog(home).path(name))
    if manifest:
        files = tuple(
            ManifestFile(name=f.name, size=f.stat().st_size, sha256=sha256_of(f))
            for f in sorted(directory.iterdir())
        )
        Manifest(name=name, source="test", pulled="2026-01-01T00:00:00Z", files=files).write(
            directory
        )
    return directory


def test_a_pulled_name_gives_directory_and_digest(tmp_path: Path) -> None:
    directory = put(tmp_path, "owner/tiny")
    found = resolve("owner/tiny", tmp_path)
    assert (found.name, found.path) == ("owner/tiny", directory)
    manifest = read_manifest(directory)
    assert manifest is not None
    assert found.digest == manifest.digest
    assert len(found.digest) == 64


def test_the_digest_changes_with_any_file(tmp_path: Path) -> None:
    files = tuple(ManifestFile(name=n, size=1, sha256=d * 64) for n, d in (("a", "0"), ("b", "1")))
    swapped = tuple(
        ManifestFile(name=n, size=1, sha256=d * 64) for n, d in (("a", "1"), ("b", "0"))
    )

    def digest(*parts: ManifestFile) -> str:
        return Manifest(name="m", source="s", pulled="", files=parts).digest

    assert digest(*files) == digest(*reversed(files))
    assert digest(*files) != digest(*swapped)
    assert digest(*files) != digest(files[0])


def test_directories_with_and_without_a_name(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "my-model")
    home = tmp_path / "home"
    assert resolve(str(directory), home).name == "my-model"
    named = resolve(f"chat={directory}", home)
    assert (named.name, named.path, named.digest) == ("chat", directory, "")


def test_the_name_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint(tmp_path / "here"))
    assert resolve(".", tmp_path / "home").name == "here"


def test_a_directory_whose_name_cannot_be_one_asks_for_a_name(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "two words")
    with pytest.raises(BadRequest, match="write NAME="):
        resolve(str(directory), tmp_path)
    assert resolve(f"words={directory}", tmp_path).path == directory


def test_a_directory_without_config_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json: give the directory"):
        resolve(str(tmp_path), tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(BadRequest, match=r"is a file: give the directory .* or a \.gguf file"):
        resolve(str(file), tmp_path)


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny-q4.0.gguf"
    file.write_bytes(b"GGUF")
    for name, text in (
        ("tiny-q4.0", str(file)),
        ("x", f"x={file}"),
        (tmp_path.name, str(tmp_path)),
    ):
        found = resolve(text, tmp_path / "home")
        assert (found.name, found.path, found.digest) == (name, file, "")
    link = tmp_path / "hub" / "link.gguf"
    link.parent.mkdir()
    link.symlink_to(file)
    assert resolve(str(link), tmp_path / "home").path == link
    file.with_name("other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path), tmp_path / "home")


@pytest.mark.parametrize("name", ["", "x="])
def test_an_empty_name_is_not_the_directory_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match="name is empty"):
        resolve(name, tmp_path)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("owner/tiy", "did you mean owner/tiny?"),
        ("tiny", "did you mean owner/tiny?"),
        ("TINY", "did you mean owner/tiny?"),
        ("mainspring-gide", "did you mean mainspring-guide?"),
        ("Elsewhere/Large-70B", "`mainspring pull Elsewhere/Large-70B`"),
        ("zzzzzz", "known are mainspring-guide, owner/tiny"),
    ],
)
def test_an_unknown_name_comes_with_the_way_on(tmp_path: Path, asked: str, expected: str) -> None:
    put(tmp_path, "owner/tiny")
    with pytest.raises(ModelNotFound) as caught:
        resolve(asked, tmp_path)
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../b", "/etc", "a/b/c", "a--b", "a\\b", "a\0b", ".hidden", "-flag", "a ",
     "ä", "a/", "/a", "x" * 97, "a..b", "a\nb", "end."],
)  # fmt: skip
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="is not a model name"):
        check_name(name)
    assert Catalog(tmp_path).get(name) is None


@pytest.mark.parametrize("name", ["\0", "a\0b", "x" * 5000, "../" * 40 + "none"])
def test_text_that_is_no_path_is_just_unknown(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve(name, tmp_path)


@pytest.mark.parametrize("name", ["a", "Qwen/Qwen2.5-0.5B-Instruct", "_x", "a_b.c-d", "x" * 96])
def test_ordinary_names_pass(name: str) -> None:
    assert check_name(name) == name


def test_a_cut_file_is_found_before_loading(tmp_path: Path) -> None:
    directory = put(tmp_path, "tiny")
    os.truncate(directory / "model.safetensors", 100)
    with pytest.raises(ModelError, match=r"model\.safetensors has 100 bytes, not \d+"):
        resolve("tiny", tmp_path)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        resolve("tiny", tmp_path)


def test_a_changed_file_is_found_by_contents(tmp_path: Path) -> None:
    directory = put(tmp_path, "tiny")
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest.damage(directory, contents=True) == []
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert manifest.damage(directory) == []
    assert manifest.damage(directory, contents=True) == [
        "model.safetensors was changed after it came (sha256 differs)"
    ]


@pytest.mark.parametrize(
    "text",
    ['{"name": 1}', "not json", '{"name":"m","source":"s","pulled":"","files":'
     '[{"name":"../x","size":1,"sha256":"' + "0" * 64 + '"}]}',
     '{"name":"m","source":"s","pulled":"","files":[{"name":"x","size":1,"sha256":"00"}]}',
     '{"name":"m","source":"s","pulled":"","files":[{"name":"x","size":1,"sha256":"'
     + "A" * 64 + '"}]}'],
)  # fmt: skip
def test_a_broken_manifest_is_a_clear_error(tmp_path: Path, text: str) -> None:
    directory = put(tmp_path, "tiny", manifest=False)
    assert resolve("tiny", tmp_path).digest == ""
    (directory / MANIFEST).write_text(text)
    with pytest.raises(ModelError, match=r"manifest\.json of tiny"):
        resolve("tiny", tmp_path)


def test_a_fifo_is_never_opened_for_reading(tmp_path: Path) -> None:
    directory = put(tmp_path, "tiny", manifest=False)
    os.mkfifo(directory / MANIFEST)
    with pytest.raises(ModelError, match="not a regular file"):
        read_manifest(directory)
