"""What the guide says exists: pages, commands, flags, settings, variables and paths."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from mainspring.cli import build_group
from mainspring.config import Config, ModelConfig, help_of
from training.corpus import Corpus, load_corpus, normalized

ROOT = Path(__file__).parents[3]
SETTINGS = {**help_of(Config), **help_of(ModelConfig)}
VARIABLES = {f"MAINSPRING_{name.upper()}" for name in SETTINGS} - {"MAINSPRING_API_KEYS"}
VARIABLES |= {"MAINSPRING_API_KEY", "MAINSPRING_CONFIG"}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """Command -> its flags, from the real command line."""
    group = build_group()
    context = click.Context(group, info_name="mainspring")
    found = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        child = click.Context(command, parent=context, info_name=name)
        options = command.get_params(child)
        found[name] = {
            flag for option in options for flag in (*option.opts, *option.secondary_opts)
        }
    found[""] = {flag for option in group.get_params(context) for flag in option.opts}
    return found


def quoted(text: str) -> list[str]:
    """The parts of an answer between backticks: what a reader will type."""
    return re.findall(r"`([^`]+)`", text)


def test_the_corpus_is_large_and_varied(corpus: Corpus) -> None:
    assert len(corpus.entries) >= 120
    for entry in corpus.entries:
        assert len(entry.questions) >= 8, entry.id
        assert entry.tasks or entry.subjects or entry.sayings, entry.id
        assert len(entry.development) >= 2, entry.id
        assert len(entry.held_out) >= 2, entry.id
        assert len({normalized(q) for q in entry.questions}) == len(entry.questions), entry.id
    assert len(corpus.out_of_domain.questions) >= 200
    assert len(corpus.out_of_domain.development) >= 80
    assert len(corpus.out_of_domain.held_out) >= 80
    assert len({normalized(q) for q in corpus.scored()}) == len(corpus.scored())


def test_no_two_entries_give_the_same_answer(corpus: Corpus) -> None:
    answers = [normalized(entry.answer) for entry in corpus.entries]
    assert len(set(answers)) == len(answers)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_answer_is_documented(corpus: Corpus) -> None:
    pages = {path: anchors(path) for path in (ROOT / "docs").glob("*.md")}
    missing = []
    for entry in corpus.entries:
        if not entry.doc:  # small talk
            continue
        name, _, anchor = entry.doc.partition("#")
        if anchor not in pages.get(ROOT / name, set()):
            missing.append(f"{entry.id}: {entry.doc}")
    assert not missing


def test_every_page_of_the_manual_named_in_an_answer_exists(corpus: Corpus) -> None:
    named = {
        page for entry in corpus.entries for page in re.findall(r"docs/[\w/]+\.md", entry.answer)
    }
    assert named
    assert not [page for page in sorted(named) if not (ROOT / page).is_file()]


def test_every_command_and_flag_in_an_answer_exists(
    corpus: Corpus, commands: dict[str, set[str]]
) -> None:
    wrong = []
    checked = 0
    for entry in corpus.entries:
        named = []
        for text in quoted(entry.answer):
            if call := re.match(r"mainspring +(?:(--\S+)|(\S+))(.*)", text):
                name = call[2] or ""
                if name not in commands:
                    wrong.append(f"{entry.id}: {text}")
                    continue
                named.append(name)
                flags = re.findall(r"(?<!\S)--[\w-]+", f"{call[1] or ''} {call[3]}")
                wrong += [f"{entry.id}: {text}: {f}" for f in flags if f not in commands[name]]
                checked += 1
            elif flag := re.match(r"--[\w-]+", text):
                # A flag alone belongs to a command of the same answer, or to serve.
                known = set().union(*(commands[name] for name in named or ["serve"]))
                if flag[0] not in known | commands["serve"]:
                    wrong.append(f"{entry.id}: {text}")
                checked += 1
    assert checked > 60
    assert not wrong


def test_every_variable_and_setting_in_an_answer_exists(corpus: Corpus) -> None:
    wrong = []
    for entry in corpus.entries:
        for variable in re.findall(r"MAINSPRING_[A-Z_]*[A-Z]", entry.answer):
            if variable not in VARIABLES:
                wrong.append(f"{entry.id}: {variable}")
    assert not wrong
    # A setting that the manual's table has but no answer ever names would be a hole in the guide.
    answers = " ".join(entry.answer for entry in corpus.entries)
    spelled = [(f"--{n.replace('_', '-')}", f"MAINSPRING_{n.upper()}", f"`{n}`") for n in SETTINGS]
    assert not [forms for forms in spelled if not any(form in answers for form in forms)]


def test_every_http_path_in_an_answer_is_served(corpus: Corpus) -> None:
    sources = " ".join(
        path.read_text(encoding="utf-8")
        for folder in ("api", "dialects")
        for path in (ROOT / "mainspring" / folder).rglob("*.py")
    )
    paths = {
        path.removesuffix("/{id}")
        for entry in corpus.entries
        for path in re.findall(r"/(?:v1|admin|health|metrics)\b[\w/{}]*", entry.answer)
    } - {"/v1"}
    assert "/v1/chat/completions" in paths
    assert not [path for path in sorted(paths) if f'"{path}"' not in sources]
