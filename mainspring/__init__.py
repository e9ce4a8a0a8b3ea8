"""Mainspring, the application server for AI models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.runtimes.offline import LLM

__all__ = ["LLM", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The engine's imports cost 100 ms; `import mainspring` alone must not pay them.
    if name == "LLM":
        from mainspring.runtimes.offline import LLM

        return LLM
    raise AttributeError(f"module 'mainspring' has no attribute {name!r}")
