"""Write docs/settings.md from the settings table: `python docs/generate.py`.

tests/docs checks that the page on disk is what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from mainspring.config import Config, ModelConfig, help_of

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Every setting, strongest source first: the flag of `mainspring serve`, the environment variable, the file named by `--config` or
MAINSPRING_CONFIG, the default. This page is written by `docs/generate.py` from `mainspring/config.py`.
"""


def _rows(kind: type[msgspec.Struct]) -> list[str]:
    defaults = kind()
    rows = ["| setting | environment | default | |", "|---|---|---|---|"]
    for name, text in help_of(kind).items():
        variable = "MAINSPRING_API_KEY" if name == "api_keys" else f"MAINSPRING_{name.upper()}"
        default = getattr(defaults, name)
        shown = "none" if default == () else str(default).lower()
        rows.append(f"| `{name}` | `{variable}` | {shown} | {text} |")
    return rows


def settings_page() -> str:
    """The whole page as Markdown."""
    return "\n".join(
        [
            HEAD,
            "## The server",
            "",
            *_rows(Config),
            "",
            "## Each model",
            "In the file these stand under `[defaults]`; the admin API takes them for one model.",
            "",
            *_rows(ModelConfig),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
