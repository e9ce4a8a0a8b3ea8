"""Where an adapter's directory is, and which of them a client may choose."""

from __future__ import annotations

from pathlib import Path

from mainspring.errors import BadRequest, ModelNotFound
from mainspring.registry.catalog import check_name

__all__ = ["named_adapter", "offered_adapter"]


def named_adapter(text: str) -> tuple[str, Path]:
    """NAME=DIRECTORY as the operator writes it. Raises BadRequest or ModelNotFound."""
    name, equals, directory = text.partition("=")
    if not equals or "\0" in directory:
        raise BadRequest(f"{text[:200]!r} must be NAME=DIRECTORY", param="adapters")
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise ModelNotFound(f"{directory[:200]!r} is not a directory", param="adapters")
    return check_name(name, "adapters"), path


def offered_adapter(text: str, folder: Path) -> Path:
    """The directory that a client names, below `folder` however it is written or linked.

    One answer for all that is elsewhere or not there: it tells nothing of this machine.
    """
    root = folder.expanduser().resolve()
    try:
        path = (root / text).resolve()
        if path != root and path.is_relative_to(root) and path.is_dir():
            return path
    except (OSError, ValueError, RuntimeError):
        pass  # NUL, far too long, or links in a circle: no such directory
    raise ModelNotFound(
        f"lora_path: {text[:200]!r} is no directory in the server's folder of adapters "
        "(setting adapter_folder)",
        param="lora_path",
    )
