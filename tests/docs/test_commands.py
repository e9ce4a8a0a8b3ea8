"""What the pages tell a reader to type exists: commands, flags, variables, paths, snippets."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from mainspring.api.routes import Routes
from mainspring.cli import build_group
from mainspring.config import Config, ModelConfig, help_of
from mainspring.errors import NotFound
from tests.unit.api.scripted import running

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:\.venv/bin/)?mainspring(?= |$)(?P<rest>.*)$")
OTHERS_FLAGS = {"--no-binary"}


def code(page: Path) -> list[str]:
    """The page's code, line by line: fenced, indented, and between backticks."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = "\n".join([*fenced, *re.findall(r"^    (.+)$", prose, re.MULTILINE)])
    return [*blocks.replace("\\\n", " ").splitlines(), *re.findall(r"`([^`\n]+)`", prose)]


def commands() -> list[str]:
    """The arguments of every `mainspring` on any page."""
    found = {match["rest"].strip() for p in PAGES for c in code(p) if (match := COMMAND.match(c))}
    return sorted(found)


def flags_of(command: click.Command) -> set[str]:
    options = [*command.params, *command.get_params(click.Context(command))]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def test_the_pages_name_every_command() -> None:
    named = {shlex.split(text, comments=True)[0] for text in commands() if text}
    assert named >= set(build_group().lazy)


@pytest.mark.parametrize("text", commands())
def test_a_command_parses(text: str) -> None:
    group = build_group()
    arguments = shlex.split(text, comments=True)
    if not arguments or arguments[0].startswith("-"):
        group.make_context("mainspring", arguments, resilient_parsing=True).close()
        return
    context = click.Context(group, info_name="mainspring")
    name, command, rest = group.resolve_command(context, arguments)
    assert command is not None
    if text == name:  # `mainspring pull` as the name of the command, in a sentence
        return
    command.make_context(name, rest, parent=context).close()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_flag_named_exists(page: Path) -> None:
    group = build_group()
    context = click.Context(group)
    known = flags_of(group) | {"--help"}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        known |= flags_of(command)
    named = {flag for line in code(page) for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert named - known <= OTHERS_FLAGS


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_variable_named_exists(page: Path) -> None:
    settings = {*help_of(Config), *help_of(ModelConfig)} - {"api_keys"}
    known = {f"MAINSPRING_{name.upper()}" for name in settings}
    known |= {"MAINSPRING_API_KEY", "MAINSPRING_CONFIG"}
    named = set(re.findall(r"MAINSPRING_[A-Z_]+", page.read_text(encoding="utf-8")))
    assert named <= known


def test_every_path_named_is_mounted(tmp_path: Path) -> None:
    with running(tmp_path, log_level="error") as server:
        routes = Routes(server.app.routes())
    named = {
        path.rstrip("/.")
        for page in PAGES
        for path in re.findall(
            r"(?<![\w.])(?:127\.0\.0\.1:\d+)?(/(?:v1|health|admin|metrics|tokenize|detokenize)\b[\w/{}]*)",
            page.read_text(encoding="utf-8"),
        )
    }
    assert named >= {route.path for route in routes if "{" not in route.path}
    unknown = []
    for path in named - {"/v1"}:  # the clients' base_url
        try:
            routes.find("GET" if "{" in path else _method(routes, path), path)
        except NotFound:
            unknown.append(path)
    assert not unknown


def _method(routes: Routes, path: str) -> str:
    return next((route.method for route in routes if route.path == path), "GET")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_snippets_are_well_formed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            ast.parse(block)
    for body in re.findall(r"-d '(\{.*?\})'", text, re.DOTALL):
        assert json.loads(body)
