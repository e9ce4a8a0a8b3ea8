"""`list`, `show`, `rm` and `pull` from a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.config import ModelConfig
from mainspring.registry import EMBEDDED
from mainspring.runtimes.disk import disk_place
from tests.tiny import CHAT_TEMPLATE, tiny_checkpoint
from tests.unit.cli.conftest import Run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def test_pull_list_show_rm(run: Run, home: Path, checkpoint: Path) -> None:
    pulled = run("pull", str(checkpoint), "--name", "me/chat")
    assert pulled.code == 0, pulled.err
    assert "pulled me/chat" in pulled.out
    assert "mainspring run me/chat" in pulled.out
    assert "model.safetensors" in pulled.err

    embedded, chat = run("list", "--json").json
    assert embedded["name"] == EMBEDDED
    assert (chat["name"], chat["family"], chat["error"]) == ("me/chat", "llama", "")
    assert chat["parameters"] == 95_040
    assert chat["source"] == str(checkpoint)
    head, *_, line = run("list").out.splitlines()
    assert head.split() == ["NAME", "FAMILY", "PARAMETERS", "SIZE", "PREPARED", "PULLED"]
    assert line.split()[:3] == ["me/chat", "llama", "95.0K"]
    assert line.endswith("just now")

    shown = run("show", "me/chat", "--json", "--verify").json
    assert shown["digest"] == chat["digest"]
    assert shown["context"] == 512
    assert shown["weight_bytes"]["int8"] < shown["weight_bytes"]["bf16"]
    assert shown["chat_template"] == CHAT_TEMPLATE
    assert all(len(f["sha256"]) == 64 for f in shown["files"] if f["name"] != "manifest.json")
    text = run("show", "me/chat", "--verify").out
    assert "(verified)" in text
    assert "{% for m in messages %}" in text

    removed = run("rm", "me/chat")
    assert removed.out.startswith("removed me/chat")
    assert [row["name"] for row in run("list", "--json").json] == [EMBEDDED]
    assert checkpoint.is_dir()


@pytest.mark.parametrize("link", [[], ["--link"]])
def test_prepare(run: Run, home: Path, checkpoint: Path, link: list[str]) -> None:
    before = sorted(checkpoint.iterdir())
    run("pull", str(checkpoint), "--name", "chat", *link)
    place = checkpoint if link else home / "models/chat"
    made = run("prepare", "chat", "--quantize", "int8")
    assert made.code == 0, made.err
    assert made.out.startswith("prepared chat in ")
    assert made.out.rstrip().endswith(f"KiB in {place / 'int8.prepared'}")
    assert run("prepare", "chat").code == 0
    assert run("list", "--json").json[1]["prepared"] == ["bf16", "int8"]
    assert "bf16, int8" in run("list").out.splitlines()[-1]
    assert run("show", "chat", "--verify").code == 0

    first = run("run", "chat", "hello", "--quantize", "int8", "--seed", "1", "--max-tokens", "8")
    assert first.code == 0
    assert "not used" not in first.err
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    again = run("run", "chat", "hello", "--quantize", "int8", "--seed", "1", "--max-tokens", "8")
    assert again.out == first.out

    assert run("rm", "chat").code == 0
    assert sorted(checkpoint.iterdir()) == before
    assert not (home / "models/chat").exists()


def test_what_cannot_be_prepared(run: Run, home: Path, checkpoint: Path) -> None:
    assert "no model 'nothing'" in run("prepare", "nothing").err
    (checkpoint / "model.safetensors").write_bytes(b"")
    failed = run("prepare", str(checkpoint))
    assert failed.code == 1
    assert "model.safetensors" in failed.err
    assert not list(checkpoint.glob("*prepared*"))


def test_a_broken_manifest_can_be_removed(run: Run, home: Path, checkpoint: Path) -> None:
    run("pull", str(checkpoint), "--name", "chat")
    (home / "models/chat/manifest.json").write_text("{")
    assert run("rm", "chat").code == 0


@pytest.mark.parametrize("link", [[], ["--link"]])
def test_what_was_kept_of_prompts_goes_with_the_model(
    run: Run, home: Path, checkpoint: Path, link: list[str]
) -> None:
    run("pull", str(checkpoint), "--name", "chat", *link)
    served = checkpoint if link else home / "models/chat"
    config = ModelConfig(prefix_disk=1 << 20)
    files = []
    for path in (served, home):
        (path / "config.json").touch()
        place = disk_place(path, config, home, "avx2")
        assert place is not None
        place.path.parent.mkdir(exist_ok=True)
        place.path.write_bytes(bytes(1000))
        files.append(place.path)
    assert run("rm", "chat").code == 0
    assert [file.exists() for file in files] == [False, True]


def test_a_linked_model(run: Run, home: Path, checkpoint: Path) -> None:
    assert "linked tiny" in run("pull", str(checkpoint), "--link").out
    shown = run("show", "tiny", "--json").json
    assert shown["path"] == str(checkpoint)
    assert run("rm", "tiny").code == 0
    assert (checkpoint / "model.safetensors").exists()


def test_show_a_directory_without_pulling_it(run: Run, checkpoint: Path) -> None:
    shown = run("show", str(checkpoint), "--json").json
    assert (shown["name"], shown["digest"]) == ("tiny", "")
    refused = run("show", str(checkpoint), "--verify")
    assert refused.code == 1
    assert "has no recorded digests" in refused.err


def test_verify_names_the_changed_file(run: Run, home: Path, checkpoint: Path) -> None:
    run("pull", str(checkpoint))
    (path,) = home.glob("models/tiny/tokenizer.json")
    path.write_bytes(path.read_bytes().replace(b"1.0", b"9.9"))
    ran = run("show", "tiny", "--verify")
    assert ran.code == 1
    assert "tokenizer.json was changed after it came" in ran.err


def test_a_broken_model_is_a_row_not_a_failure(run: Run, home: Path, checkpoint: Path) -> None:
    run("pull", str(checkpoint), "--name", "good")
    run("pull", str(checkpoint), "--name", "bad")
    os.truncate(home / "models" / "bad" / "model.safetensors", 100)
    rows = {row["name"]: row for row in run("list", "--json").json}
    assert rows["good"]["error"] == ""
    assert "model.safetensors has 100 bytes" in rows["bad"]["error"]
    assert "is damaged" in run("list").out


def test_rm_refuses_what_it_did_not_bring(run: Run, checkpoint: Path) -> None:
    assert "is part of the package" in run("rm", EMBEDDED).err
    ran = run("rm", str(checkpoint))
    assert ran.code == 1
    assert "is not a pulled model" in ran.err
    assert checkpoint.is_dir()
    assert "no model 'x' here" in run("rm", "x").err
    assert run("rm").code == 2


def test_pull_refuses_an_unknown_family(run: Run, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "alien", model_type="alien")
    ran = run("pull", str(source))
    assert ran.code == 1
    assert "'alien' is not known; known: " in ran.err
    assert "llama" in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("./nowhere",), "is not a directory or a .gguf file: give one, or OWNER/NAME of a hub"),
        (("a/b@c", "--revision", "d"), "two revisions"),
        (("a/b", "--link"), "--link is for directories"),
        (("a/b/c",), "is not a model name"),
        (("a/..",), "is not a model name"),
        (("a/b", "--name", "../x"), "is not a model name"),
        (("a/b", "--name", EMBEDDED), "choose another --name"),
    ],
)
def test_pull_checks_what_it_is_given(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    ran = run("pull", *arguments)
    assert ran.code == 1
    assert expected in ran.err
