"""A pytest plugin: the native module that was built in the folder $MAINSPRING_NATIVE."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NAME = "mainspring.kernels._native"


def load() -> None:
    """Put it where the package will look for its own."""
    (path,) = Path(os.environ["MAINSPRING_NATIVE"]).glob("_native*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


load()
