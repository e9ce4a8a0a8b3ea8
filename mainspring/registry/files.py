"""Which files of a repository make a model, and which names are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from mainspring.errors import ModelError
from mainspring.registry.manifest import is_plain_name

__all__ = ["INDEX", "first_files", "refuse_hostile", "weight_files"]

INDEX = "model.safetensors.index.json"
NAMED = {"config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"}
PREFIXES = ("tokenizer", "chat_template")
TEXT = (".json", ".jinja", ".txt", ".model")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack")
CONVERT = (
    "convert it where you trust it: transformers' "
    "AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(DIRECTORY), then "
    "`mainspring pull DIRECTORY`"
)
SHARD_LIMIT = 4096


def refuse_hostile(names: Iterable[str], source: str) -> None:
    """Raise ModelError if any name could lead out of the directory it is written to."""
    for name in names:
        parts = name.split("/")
        if {"", ".", ".."} & {*parts} or "\\" in name or not name.isprintable():
            raise ModelError(
                f"{source} lists the file name {name[:100]!r}, which leads out of the model: "
                "nothing was taken; do not trust this source"
            )


def first_files(names: Iterable[str], source: str) -> list[str]:
    """Everything but the weights: small, and enough to know whether the model can be run.

    Raises ModelError when there is no config.json.
    """
    wanted = sorted(
        name
        for name in names
        if is_plain_name(name)
        and (name in NAMED or name == INDEX or (name.startswith(PREFIXES) and name.endswith(TEXT)))
    )
    if "config.json" not in wanted:
        raise ModelError(
            f"{source} has no config.json, so it is not a checkpoint in Hugging Face layout: "
            "take the repository of the original model"
        )
    return wanted


def weight_files(names: Iterable[str], source: str, read: Callable[[str], bytes]) -> list[str]:
    """The safetensors files: those of the index, or the single one.

    `read` gives the bytes of a small file. Raises ModelError when weights are missing, are only
    pickled, or the index names files that cannot be.
    """
    known = set(names)
    if INDEX in known:
        return indexed(read(INDEX), known, source)
    if "model.safetensors" in known:
        return ["model.safetensors"]
    if pickles := sorted(name for name in known if name.endswith(PICKLES)):
        raise ModelError(
            f"{source} has its weights only as pickle ({pickles[0]}), which can run code when "
            f"opened: {CONVERT}"
        )
    if any(name.endswith(".gguf") for name in known):
        raise ModelError(f"{source} has only GGUF files, which are not read yet: take the original")
    raise ModelError(f"{source} has no model.safetensors: take a repository with safetensors")


def indexed(data: bytes, known: set[str], source: str) -> list[str]:
    try:
        weights = msgspec.json.decode(data, type=dict[str, object]).get("weight_map")
    except ValueError as error:
        raise ModelError(f"{source}: {INDEX} is not valid JSON: {error}") from error
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"{source}: {INDEX} has no weight_map")
    shards = {str(shard) for shard in weights.values()}
    if bad := sorted(s for s in shards if not (is_plain_name(s) and s.endswith(".safetensors"))):
        raise ModelError(f"{source}: {INDEX} names {bad[0][:100]!r}, which is not a weight file")
    if missing := sorted(shards - known):
        raise ModelError(
            f"{source}: {len(missing)} of {len(shards)} weight files are missing, first "
            f"{missing[0]}: ask its owner or take another revision"
        )
    if len(shards) > SHARD_LIMIT:
        raise ModelError(f"{source}: {len(shards)} weight files; the limit is {SHARD_LIMIT}")
    return sorted(shards)
