"""Which models there are: names to directories, the home's catalog, pulling, digests."""

from mainspring.registry.model import EMBEDDED, ModelPath, resolve

__all__ = ["EMBEDDED", "ModelPath", "resolve"]
