"""A progress that is looked at afterwards."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Counted"]


class Counted:
    """Keeps what a progress bar would show."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.moves: dict[str, int] = {}

    def files(self, sizes: Mapping[str, int]) -> None:
        self.sizes |= sizes

    def moved(self, name: str, size: int) -> None:
        self.moves[name] = self.moves.get(name, 0) + size
