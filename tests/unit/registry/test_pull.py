"""Pulling from a hub served on loopback, and from directories."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientMemory,
    ModelError,
    ModelNotFound,
    Unavailable,
    UnknownArchitecture,
)
from mainspring.registry import pull, resolve
from mainspring.registry.catalog import Catalog
from mainspring.registry.hub import Hub
from mainspring.registry.manifest import Manifest
from mainspring.registry.pull import pull_from_hub
from tests.tiny import tiny_checkpoint
from tests.unit.registry.counted import Counted
from tests.unit.registry.hub_server import COMMIT, Repository, TestHub, serve_hub


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    source = tiny_checkpoint(tmp_path / "source")
    return {path.name: path.read_bytes() for path in source.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[TestHub]:
    extra = {"README.md": b"# hi", "pytorch_model.bin": b"\x80\x04", "onnx/model.onnx": b"x"}
    with serve_hub(owner__tiny=Repository(files | extra)) as hub:
        yield hub


def get(hub: TestHub, home: Path, id: str = "owner/tiny", **options: Any) -> Manifest:
    options.setdefault("progress", Counted())
    token = options.pop("token", "")
    pauses: list[float] = []
    return pull_from_hub(Hub(hub.address, token), id, home, pause=pauses.append, **options)


def test_only_the_needed_files_come_and_are_pinned(hub: TestHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    progress = Counted()
    manifest = get(hub, home, progress=progress)
    assert manifest.name == "owner/tiny"
    assert manifest.revision == COMMIT
    assert manifest.source == f"{hub.address}/owner/tiny"
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
             "tokenizer_config.json"}  # fmt: skip
    found = resolve("owner/tiny", home)
    assert {path.name for path in found.path.iterdir()} == {*names, "manifest.json"}
    assert found.digest == manifest.digest
    assert manifest.damage(found.path, contents=True) == []
    assert progress.moves == progress.sizes == {f.name: f.size for f in manifest.files}


def test_pulling_again_downloads_nothing(hub: TestHub, tmp_path: Path) -> None:
    first = get(hub, tmp_path)
    count = len(hub.of("/resolve/"))
    assert get(hub, tmp_path) == first
    assert len(hub.of("/resolve/")) == count


def test_a_revision_with_a_slash_and_another_name(hub: TestHub, tmp_path: Path) -> None:
    manifest = get(hub, tmp_path, revision="refs/pr/1", name="chat")
    assert (manifest.name, manifest.revision) == ("chat", COMMIT)
    assert Catalog(tmp_path).names() == ["chat"]


def test_a_cut_connection_goes_on_where_it_stopped(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.cut_after = [1000, 500, 0]
    progress = Counted()
    manifest = get(hub, tmp_path, progress=progress)
    ranges = [headers.get("range") for headers in hub.of("model.safetensors")]
    assert ranges == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert progress.moves == {f.name: f.size for f in manifest.files}


def test_an_interrupted_pull_is_not_listed_and_is_continued(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.cut_after = [70_000] + [0] * 5
    with pytest.raises(Unavailable, match="it goes on from here"):
        get(hub, tmp_path)
    assert Catalog(tmp_path).names() == []
    with pytest.raises(ModelNotFound):
        resolve("owner/tiny", tmp_path)
    seen = len(hub.requests)
    manifest = get(hub, tmp_path)
    later = [headers for path, headers in hub.requests[seen:] if "/resolve/" in path]
    assert [headers.get("range") for headers in later] == ["bytes=70000-"]
    assert manifest.damage(resolve("owner/tiny", tmp_path).path, contents=True) == []


def test_a_hub_without_ranges_sends_the_file_again(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.cut_after = [1000]
    hub.faults.ranges = False
    progress = Counted()
    manifest = get(hub, tmp_path, progress=progress)
    assert progress.moves == {f.name: f.size for f in manifest.files}


def test_damage_to_the_partial_file_is_repaired(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.cut_after = [70_000] + [0] * 5
    with pytest.raises(Unavailable):
        get(hub, tmp_path)
    (part,) = tmp_path.glob("partial/*/model.safetensors.part")
    part.write_bytes(b"\0" * 70_000)
    manifest = get(hub, tmp_path)
    assert manifest.damage(resolve("owner/tiny", tmp_path).path, contents=True) == []


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_wrong_digest_keeps_nothing(hub: TestHub, tmp_path: Path, file: str) -> None:
    changes: dict[str, Any] = {"blobId": "0" * 40}
    if file == "model.safetensors":
        changes = {"lfs": {"sha256": "0" * 64, "size": 187_592}}
        changes["lfs"]["size"] = len(hub.repositories["owner/tiny"].files[file])
    hub.repositories["owner/tiny"].changes[file] = changes
    with pytest.raises(ModelError, match=f"{file} arrived with another digest"):
        get(hub, tmp_path)
    assert Catalog(tmp_path).names() == []
    assert not list(tmp_path.glob(f"partial/*/{file}*"))


def test_a_byte_flipped_on_the_way_is_noticed(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.corrupt = 1
    with pytest.raises(ModelError, match="another digest"):
        get(hub, tmp_path)
    assert get(hub, tmp_path).revision == COMMIT


def test_a_hub_that_sends_too_much_cannot_fill_the_disk(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.endless = True
    manifest = get(hub, tmp_path)
    assert manifest.damage(resolve("owner/tiny", tmp_path).path, contents=True) == []


def test_a_listing_without_digest_or_size_is_refused(hub: TestHub, tmp_path: Path) -> None:
    for changes in ({"lfs": {"sha256": "0" * 63, "size": 9}}, {"lfs": None, "blobId": None},
                    {"size": None, "lfs": None}):  # fmt: skip
        hub.repositories["owner/tiny"].changes["model.safetensors"] = changes
        with pytest.raises(ModelError, match="no size or no digest for model"):
            get(hub, tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/passwd", "a\\b.json", "x/../../y", "nul\0.json", "a//b", "a\nb"]
)
def test_hostile_file_names_stop_everything(hub: TestHub, tmp_path: Path, name: str) -> None:
    hub.repositories["owner/tiny"].files[name] = b"{}"
    with pytest.raises(ModelError, match="leads out of the model: nothing was taken"):
        get(hub, tmp_path / "home")
    assert not hub.of("/resolve/")
    assert not (tmp_path / "home" / "models").exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pytorch_model.bin": b"\x80"}, "only as pickle .pytorch_model.bin.*save_pretrained"),
        ({"adapter_config.json": b"{}"}, r"no model\.safetensors"),
    ],
)
def test_repositories_without_safetensors(
    tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    with (
        serve_hub(owner__x=Repository({"config.json": b"{}"} | files)) as hub,
        pytest.raises(ModelError, match=expected),
    ):
        get(hub, tmp_path, "owner/x")


def test_a_repository_without_config(tmp_path: Path) -> None:
    with (
        serve_hub(owner__x=Repository({"README.md": b"hi"})) as hub,
        pytest.raises(ModelError, match=r"no config\.json"),
    ):
        get(hub, tmp_path, "owner/x")


GGUFS = {"tiny-Q8_0.gguf": b"GGUF8", "tiny-Q4_K_M.gguf": b"GGUF4", "mmproj-F16.gguf": b"GGUF"}


@pytest.mark.parametrize("tag", ["Q4_K_M", "q4_k_m", "tiny-Q4_K_M.gguf"])
def test_one_gguf_file_of_several(tmp_path: Path, tag: str) -> None:
    with serve_hub(owner__x=Repository(GGUFS, large=("tiny-Q4_K_M.gguf",))) as hub:
        manifest = get(hub, tmp_path, "owner/x", tag=tag)
        again = get(hub, tmp_path, "owner/x", tag=tag)
    assert manifest.name == f"owner/x-{tag.removesuffix('.gguf')}"
    assert [file.name for file in manifest.files] == ["tiny-Q4_K_M.gguf"]
    assert again == manifest
    found = resolve(f"owner/x:{tag.removesuffix('.gguf')}", tmp_path)
    assert found.path.read_bytes() == b"GGUF4"
    assert (found.name, found.digest) == (manifest.name, manifest.digest)
    found.path.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"damaged .tiny-Q4_K_M.gguf has 1 bytes"):
        resolve(manifest.name, tmp_path)


def test_the_only_gguf_file_needs_no_tag(tmp_path: Path) -> None:
    with serve_hub(owner__x=Repository({"m.gguf": b"GGUF", "README.md": b"hi"})) as hub:
        assert get(hub, tmp_path, "owner/x").name == "owner/x"


@pytest.mark.parametrize(
    ("files", "tag", "expected"),
    [
        (GGUFS, "", "has 2 GGUF files: say which, as in ID:TAG; Q4_K_M, Q8_0"),
        (GGUFS, "Q5_0", "has no GGUF file 'Q5_0'; there are Q4_K_M, Q8_0"),
        ({"README.md": b""}, "Q5_0", "has no GGUF file 'Q5_0'; there are none"),
        ({"a-Q8_0-00001-of-00002.gguf": b""}, "", "in parts or in a folder"),
        ({"big/a-Q8_0.gguf": b""}, "Q8_0", "in parts or in a folder"),
    ],
)
def test_which_gguf_file(tmp_path: Path, files: dict[str, bytes], tag: str, expected: str) -> None:
    with (
        serve_hub(owner__x=Repository(files)) as hub,
        pytest.raises(ModelError, match=expected),
    ):
        get(hub, tmp_path, "owner/x", tag=tag)


def shards(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}}).encode()


def test_shards_of_the_index_come_and_nothing_else(files: dict[str, bytes], tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    weights = files.pop("model.safetensors")
    files |= {one: weights, two: weights, "consolidated.safetensors": weights}
    files["model.safetensors.index.json"] = shards(one, two, one)
    with serve_hub(owner__x=Repository(files, large=(one, two))) as hub:
        manifest = get(hub, tmp_path, "owner/x")
    assert {one, two} < {file.name for file in manifest.files}
    assert "consolidated.safetensors" not in {file.name for file in manifest.files}


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (shards("../../etc/passwd"), "is not a weight file"),
        (shards("/dev/zero"), "is not a weight file"),
        (shards("model-1.bin"), "is not a weight file"),
        (shards("missing.safetensors"), "1 of 1 weight files are missing"),
        (b"{}", "has no weight_map"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_an_index_that_lies(
    files: dict[str, bytes], tmp_path: Path, index: bytes, expected: str
) -> None:
    files["model.safetensors.index.json"] = index
    with (
        serve_hub(owner__x=Repository(files)) as hub,
        pytest.raises(ModelError, match=expected),
    ):
        get(hub, tmp_path, "owner/x")


def test_an_unsupported_family_is_refused_before_its_weights(hub: TestHub, tmp_path: Path) -> None:
    def check(directory: Path) -> None:
        assert (directory / "config.json").exists()
        raise UnknownArchitecture("no")

    with pytest.raises(UnknownArchitecture):
        get(hub, tmp_path, check=check)
    assert not hub.of("model.safetensors")


def test_private_repositories_take_the_token(hub: TestHub, tmp_path: Path) -> None:
    hub.repositories["owner/tiny"].token = "secret"
    with pytest.raises(ModelNotFound, match="or set HF_TOKEN"):
        get(hub, tmp_path)
    with pytest.raises(Forbidden, match="refuses HF_TOKEN"):
        get(hub, tmp_path, token="wrong")
    assert get(hub, tmp_path, token="secret").revision == COMMIT


def test_a_gated_repository_says_where_to_ask(hub: TestHub, tmp_path: Path) -> None:
    hub.repositories["owner/tiny"].gated = True
    with pytest.raises(Forbidden, match=f"ask on {hub.address}/owner/tiny"):
        get(hub, tmp_path, token="t")


def test_an_unknown_repository_comes_with_similar_ones(hub: TestHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="similar: owner/tiny"):
        get(hub, tmp_path, "other/tinyy")


def test_an_unknown_revision(hub: TestHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="has no revision 'v9'"):
        get(hub, tmp_path, revision="v9")


@pytest.mark.parametrize("revision", ["../x", "a b", "", "-x", "a..b", "é"])
def test_revisions_that_cannot_be(hub: TestHub, tmp_path: Path, revision: str) -> None:
    with pytest.raises(BadRequest, match="is not a branch, tag or commit"):
        get(hub, tmp_path, revision=revision)
    assert not hub.requests


def test_the_token_stays_with_its_host(hub: TestHub, tmp_path: Path) -> None:
    hub.repositories["owner/tiny"].token = "secret"
    hub.faults.elsewhere = ""
    with serve_hub(owner__tiny=Repository(hub.repositories["owner/tiny"].files)) as storage:
        hub.faults.elsewhere = storage.address
        hub.faults.cut_after = []
        storage.faults.cut_after = [1000]
        assert get(hub, tmp_path, token="secret").revision == COMMIT
        assert all(h.get("authorization") == "Bearer secret" for _, h in hub.requests)
        assert storage.requests
        assert not any("authorization" in headers for _, headers in storage.requests)
        assert "bytes=1000-" in [headers.get("range") for _, headers in storage.requests]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_refused(hub: TestHub, tmp_path: Path, target: str) -> None:
    hub.faults.elsewhere = target
    with pytest.raises(ModelError, match="the hub redirects"):
        get(hub, tmp_path)


def test_passing_trouble_of_the_hub_is_waited_out(hub: TestHub, tmp_path: Path) -> None:
    hub.faults.refuse = [503, 429]
    assert get(hub, tmp_path).revision == COMMIT


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with serve_hub() as hub:
        pass
    with pytest.raises(Unavailable, match="check the network and HF_ENDPOINT"):
        get(hub, tmp_path)


@pytest.mark.parametrize("endpoint", ["ftp://x", "huggingface.co", "https://", "http://a@b"])
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(BadRequest, match="HF_ENDPOINT"):
        Hub.from_environment({"HF_ENDPOINT": endpoint})


def test_a_token_that_no_header_can_carry() -> None:
    with pytest.raises(BadRequest, match="HF_TOKEN holds"):
        Hub.from_environment({"HF_TOKEN": "a\nb"})


def test_too_little_space_is_said_before_the_weights(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = pull.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(InsufficientMemory, match=r"needs 3\d\d,\d{3} bytes, 50,000 are free"):
        get(hub, tmp_path)
    assert not hub.of("model.safetensors")


def test_a_disk_that_fills_up_keeps_what_came(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InsufficientMemory, match="no space left for owner/tiny"):
        get(hub, tmp_path)
    assert Catalog(tmp_path).names() == []
    assert list(tmp_path.glob("partial/*/config.json"))
    assert get(hub, tmp_path).revision == COMMIT


def test_two_pulls_of_one_model_do_not_mix(hub: TestHub, tmp_path: Path) -> None:
    def second(_: Path) -> None:
        with pytest.raises(Conflict, match="being pulled by another process"):
            get(hub, tmp_path)

    assert get(hub, tmp_path, check=second).revision == COMMIT


def test_a_name_cannot_hide_the_embedded_model(hub: TestHub, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="choose another --name"):
        get(hub, tmp_path, name="mainspring-guide")
