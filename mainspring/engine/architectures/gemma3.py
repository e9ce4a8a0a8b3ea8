"""Gemma 3 as published with a vision tower: its text model alone is run."""

from __future__ import annotations

from mainspring.engine.architectures.gemma3_text import DEFAULTS, build

__all__ = ["DEFAULTS", "NESTED", "build", "rename"]

NESTED = "text_config"
TEXT = ("language_model.model.", "model.language_model.", "model.")


def rename(name: str) -> str | None:
    """The text model's tensors lie under a prefix that has changed over time."""
    if name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
        return None
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    for prefix in TEXT:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name
