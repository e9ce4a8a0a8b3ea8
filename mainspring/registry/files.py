"""Which files of a repository make a model, and which names are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from mainspring.errors import ModelError
from mainspring.registry.manifest import is_plain_name

__all__ = [
    "GGUF", "INDEX", "directory_of", "first_files", "gguf_files", "refuse_hostile", "weight_files",
]  # fmt: skip

GGUF = ".gguf"
"""how a file ends that is a whole model"""
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
TAG = re.compile(r"[-._]((?:UD[-._])?(?:I?Q\d\w*|BF16|F16|F32|FP16|FP32))\.gguf$", re.IGNORECASE)
"""how such a file's numbers are stored, at the end of its name"""


def directory_of(path: Path) -> Path:
    """The directory that a checkpoint's files lie in: itself, or that of a GGUF file."""
    return path.parent if path.suffix == GGUF else path


def gguf_files(names: Iterable[str], tag: str, source: str) -> list[str]:
    """The GGUF file that `tag` means: a file's name or how its numbers are stored (Q4_K_M).

    Without a tag the only one, and none where the names hold safetensors. Raises ModelError with
    what there is.
    """
    known = set(names)
    if not tag and any(name.endswith(".safetensors") for name in known):
        return []
    found = sorted(name for name in known if name.endswith(GGUF) and "mmproj" not in name)
    if not found and not tag:
        return []
    chosen = [name for name in found if not tag or _means(tag, name)]
    tags = sorted({match[1] for name in found if (match := TAG.search(name))})
    offered = ", ".join(tags or found) or "none"
    if not chosen:
        raise ModelError(f"{source} has no GGUF file {tag[:100]!r}; there are {offered}")
    if any(not is_plain_name(name) or "-of-" in name for name in chosen):
        raise ModelError(
            f"{source}: {chosen[0]} is in parts or in a folder: join them with `llama-gguf-split "
            "--merge` and pull the one file"
        )
    if len(chosen) == 1:
        return chosen
    raise ModelError(f"{source} has {len(chosen)} GGUF files: say which, as in ID:TAG; {offered}")


def _means(tag: str, name: str) -> bool:
    match = TAG.search(name)
    return tag == name or (match is not None and match[1].lower() == tag.lower())


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
