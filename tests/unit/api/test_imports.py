"""The server's process stays light: a gateway without local models imports no model library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "torch", "tokenizers", "safetensors", "jinja2", "huggingface_hub")


@pytest.mark.parametrize(
    "module", ["mainspring.app", "mainspring.api.server", "mainspring.gateway.pipeline"]
)
def test_no_model_library(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert found.stdout.split() == []


def test_the_language_models_runtime_needs_no_arrays() -> None:
    code = "import sys, mainspring.runtimes.llm; print('numpy' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert found.stdout.strip() == "False"
