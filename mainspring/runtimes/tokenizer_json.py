"""The tokenizer.json of a checkpoint, as bytes."""

from __future__ import annotations

from pathlib import Path

from mainspring.errors import ModelError

__all__ = ["FILE", "tokenizer_json"]

FILE = "tokenizer.json"
FILE_LIMIT = 64 << 20


def tokenizer_json(path: Path) -> bytes:
    """The tokenizer.json of the checkpoint at `path`; of a GGUF file, what would be in one."""
    if path.suffix == ".gguf":
        # It reads arrays, for which numpy is imported; the server does without for directories.
        from mainspring.runtimes.gguf import gguf_tokenizer

        return gguf_tokenizer(path)
    file = path / FILE
    try:
        if file.stat().st_size > FILE_LIMIT:
            raise ModelError(f"{FILE} is larger than {FILE_LIMIT >> 20} MiB")
        return file.read_bytes()
    except FileNotFoundError as error:
        if (path / "tokenizer.model").exists():
            raise ModelError(
                f"the checkpoint has tokenizer.model but no {FILE}; write it with "
                "transformers: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
            ) from error
        raise ModelError(f"{FILE} is missing from the checkpoint") from error
    except OSError as error:
        raise ModelError(f"{FILE} cannot be read: {error.strerror}") from error
