"""The process edge: help, exit codes, one line for every failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mainspring import __version__
from mainspring.cli import COMMANDS, main, one_line
from mainspring.cli import models as models_module
from tests.unit.cli.conftest import Run

NAMES = ["serve", "run", "pull", "prepare", "list", "show", "ps", "stop", "rm", "bench", "doctor"]


def test_version(run: Run) -> None:
    assert run("--version").out == f"mainspring {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 0
    assert [*COMMANDS] == NAMES
    for name in NAMES:
        assert f"  {name} " in ran.out
    assert "Examples:" in ran.out


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert ran.err == ""
    examples = ran.out.partition("Examples:")[2]
    assert f"mainspring {name}" in examples
    assert max(len(line) for line in ran.out.splitlines()) <= 100


def test_help_loads_neither_numpy_nor_the_engine() -> None:
    program = (
        "import sys; from mainspring.cli import main; code = main(['--help']);"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in"
        " {'numpy', 'rich', 'tokenizers', 'msgspec'} or m.startswith('mainspring.')),"
        " file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr.split() == [
        "mainspring.cli",
        "mainspring.cli.command",
        "mainspring.errors",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("srve",), "there is no command 'srve': did you mean `mainspring serve`?"),
        (("zzz",), "there is no command 'zzz': see `mainspring --help`"),
        (("show",), "missing argument 'MODEL': see `mainspring show --help`"),
        (("list", "--jsn"), "no such option '--jsn'. Did you mean '--json'?"),
        (("show", "a", "b"), "got unexpected extra argument (b): see `mainspring show --help`"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    run: Run, arguments: tuple[str, ...], expected: str
) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"mainspring: {expected}\n"


def test_an_error_is_one_line_and_code_1(run: Run) -> None:
    ran = run("show", "nothing")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("mainspring: no model 'nothing' here: ")
    assert ran.err.count("\n") == 1


def test_names_cannot_draw_on_the_terminal(run: Run) -> None:
    ran = run("show", "a\x1b[31mb\nc")
    assert "\x1b" not in ran.err
    assert ran.err.count("\n") == 1


def test_one_line_keeps_what_can_be_printed() -> None:
    assert one_line("a\nb\tc\x1b[0m é \u202e") == "a b c\\x1b[0m é \\x202e"


def test_a_bug_of_ours_is_one_line_unless_debug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(models_module, "Catalog", broken)
    ran = run("list")
    assert ran.code == 1
    assert ran.err == (
        "mainspring: ZeroDivisionError: by zero: this is a bug in Mainspring; --debug shows where\n"
    )
    for arguments in (("--debug", "list"), ("list", "--debug")):
        with pytest.raises(ZeroDivisionError):
            main(arguments)


def test_interrupting_gives_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_module, "Catalog", interrupted)
    assert run("list").code == 130


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mainspring.cli serve --help"
    program = f"set -o pipefail; {command} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode in {0, 141}
    assert done.stderr == ""


def test_json_is_plain_and_whole(run: Run) -> None:
    ran = run("list", "--json")
    assert json.loads(ran.out)[0]["name"] == "mainspring-guide"
    assert "\x1b" not in ran.out
