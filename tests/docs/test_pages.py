"""The documentation agrees with itself and with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import mainspring

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_settings_page_is_what_the_table_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.settings_page(), (
        "run: python docs/generate.py"
    )


def test_changelog_and_version_agree() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == mainspring.__version__


def test_files_and_functions_stay_small() -> None:
    """A file is one noun, at most 400 lines; a function at most 60 (CONTRIBUTING.md)."""
    listed = subprocess.run(
        ["git", "ls-files", "mainspring/*.py", "benchmarks/*.py", "training/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    large = []
    for name in listed:
        text = (ROOT / name).read_text(encoding="utf-8")
        if text.count("\n") > 400:
            large.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    large.append(f"{name}:{node.lineno} {node.name}: {length} lines")
    assert listed
    assert not large


def test_the_package_never_imports_torch() -> None:
    guilty = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "mainspring").rglob("*.py")
        if re.search(r"^\s*(import|from) (torch|transformers)\b", path.read_text(), re.MULTILINE)
    ]
    assert not guilty
