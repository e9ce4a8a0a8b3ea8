"""The settings: one table, from which flags, environment variables and the reference page come.

A setting is read from, strongest first: the command's flag (`--max-queue 64`), the environment
(`MAINSPRING_MAX_QUEUE=64`), the TOML file named by `--config` or `MAINSPRING_CONFIG`
(`max_queue = 64`), the default below. Config is frozen after start.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from mainspring.errors import BadRequest

__all__ = ["HOME", "Config", "ModelConfig", "help_of", "load_config", "wrong_setting"]

GIB = 1 << 30
HOME = "~/.mainspring"


def _setting(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is run. Also the settings' part that every model inherits."""

    quantize: Annotated[
        str,
        _setting(
            "Weights in memory: none keeps bf16 (int8 of a GGUF file in fewer bits); int8 and int4 "
            "are faster and smaller; float32 is for comparisons.",
            pattern="^(none|int8|int4|float32)$",
        ),
    ] = "none"
    context: Annotated[
        int,
        _setting("Longest prompt plus output in tokens; 0: what the checkpoint says.", ge=0),
    ] = 0
    kv_memory: Annotated[
        int,
        _setting(
            "Bytes for the KV cache; 0: enough for max_running sequences, within free memory.",
            ge=0,
        ),
    ] = 0
    kv_format: Annotated[
        str,
        _setting(
            "Numbers of the KV cache: auto is bf16, or float32 beside float32 weights; int8 holds "
            "nearly twice the tokens in the same memory.",
            pattern="^(auto|bf16|int8|float32)$",
        ),
    ] = "auto"
    max_running: Annotated[int, _setting("Sequences computed together at most.", ge=1, le=1024)] = (
        64
    )
    max_queue: Annotated[
        int,
        _setting(
            "Requests waiting at most, an eighth of them newcomers; one more is answered 429.",
            ge=0,
            le=100_000,
        ),
    ] = 256
    queue_seconds: Annotated[
        float,
        _setting(
            "Longest predicted wait of a request for its turn; one that would wait longer is "
            "answered 429.",
            ge=0,
        ),
    ] = 30.0
    step_ms: Annotated[
        float,
        _setting(
            "Time budget of an engine step while streams are running, in milliseconds: a long "
            "prompt is computed in pieces that fit.",
            ge=1,
            le=10_000,
        ),
    ] = 50.0
    prepared: Annotated[
        bool, _setting("Read what `mainspring prepare` has made of the model, where it fits.")
    ] = True
    prefix_cache: Annotated[bool, _setting("Reuse the KV cache of prompts that begin alike.")] = (
        True
    )
    prefix_memory: Annotated[
        int,
        _setting("Bytes of memory for prompts that the KV cache has no room for any more.", ge=0),
    ] = 0
    prefix_disk: Annotated[
        int,
        _setting(
            "Bytes of disk, in the home, for prompts that memory has no room for; what was "
            "computed from them can be read there.",
            ge=0,
        ),
    ] = 0
    speculation: Annotated[
        bool,
        _setting("Compute guessed next tokens ahead where text repeats; the text is the same."),
    ] = True
    draft: Annotated[
        str,
        _setting(
            "With speculation, a small model of the same vocabulary that guesses next tokens: a "
            "name of `mainspring list` or a directory."
        ),
    ] = ""
    max_adapters: Annotated[
        int, _setting("LoRA adapters loaded at a time at most; 0: none.", ge=0, le=4096)
    ] = 64
    adapter_memory: Annotated[
        int, _setting("Bytes for LoRA adapters; one that needs more is refused.", ge=0)
    ] = 512 << 20
    threads: Annotated[
        int, _setting("Compute threads of a model; 0: one for each core.", ge=0, le=512)
    ] = 0
    isa: Annotated[
        str,
        _setting(
            "Instruction set of the kernels: auto, avx512, avx2, portable, or reference (numpy).",
            pattern="^(auto|avx512|avx2|portable|reference)$",
        ),
    ] = "auto"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A running server's settings."""

    host: Annotated[
        str, _setting("Address to bind. Other than loopback needs an API key.", min_length=1)
    ] = "127.0.0.1"
    port: Annotated[int, _setting("Port to bind; 0 takes a free one.", ge=0, le=65535)] = 8000
    api_keys: Annotated[
        tuple[str, ...],
        _setting(
            "Keys that clients send as `Authorization: Bearer KEY`. In the environment "
            "MAINSPRING_API_KEY holds them, separated by commas. Never a flag: the process list "
            "would show it."
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        _setting(
            "Host headers accepted besides loopback names and `host`; guards a local server "
            "against DNS rebinding. `*` accepts all."
        ),
    ] = ()
    models: Annotated[
        tuple[str, ...],
        _setting("Models to serve: names of `mainspring list`, directories, or NAME=DIRECTORY."),
    ] = ()
    adapters: Annotated[
        tuple[str, ...],
        _setting("LoRA adapters of the first model, as NAME=DIRECTORY; asked for by their names."),
    ] = ()
    adapter_folder: Annotated[
        str,
        _setting(
            "Folder below which administrators may load adapters while serving; empty: none may."
        ),
    ] = ""
    home: Annotated[str, _setting("Folder of pulled models.", min_length=1)] = HOME
    defaults: ModelConfig = ModelConfig()
    """Settings of every model that is loaded without its own."""
    template_variables: Annotated[bool, _setting("Let clients send `chat_template_kwargs`.")] = (
        False
    )
    reasoning: Annotated[
        str,
        _setting(
            "Field of an answer that a model's reasoning goes to; off: it stays in the content.",
            pattern="^(reasoning_content|reasoning|off)$",
        ),
    ] = "reasoning_content"
    body_limit: Annotated[int, _setting("Largest request body in bytes.", ge=1024, le=GIB)] = (
        8 << 20
    )
    connection_limit: Annotated[int, _setting("Open connections at most.", ge=1)] = 4096
    header_seconds: Annotated[
        float, _setting("A request's headers and body must arrive within this time.", gt=0)
    ] = 30.0
    write_seconds: Annotated[
        float,
        _setting("A client that takes nothing from its stream for this long is dropped.", gt=0),
    ] = 30.0
    stall_seconds: Annotated[
        float,
        _setting("A Worker with work and no forward progress for this long is restarted.", gt=0),
    ] = 5.0
    drain_seconds: Annotated[
        float, _setting("On SIGTERM, how long running requests may take to end.", ge=0)
    ] = 30.0
    log_level: Annotated[
        str, _setting("debug, info, warning or error.", pattern="^(debug|info|warning|error)$")
    ] = "info"


def help_of(kind: type[Struct]) -> dict[str, str]:
    """Setting name -> its help text, in table order."""
    texts: dict[str, str] = {}
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        meta = field.type
        extra = getattr(meta, "extra_json_schema", None) or {}
        if extra.get("description"):
            texts[field.name] = extra["description"]
    return texts


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, prefix in ((Config, ()), (ModelConfig, ("defaults",))):
        for name in help_of(kind):
            variable = "MAINSPRING_API_KEY" if name == "api_keys" else f"MAINSPRING_{name.upper()}"
            if not (text := environ.get(variable, "")):
                continue
            value: Any = text
            if name in {"api_keys", "allowed_hosts", "models", "adapters"}:
                value = [part.strip() for part in text.split(",") if part.strip()]
            target = found.setdefault(prefix[0], {}) if prefix else found
            target[name] = value
    return found


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_config(
    flags: Mapping[str, Any] | None = None,
    *,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The frozen Config from flags, environment, file and defaults, strongest first.

    `flags` may nest model settings under `defaults`. Raises BadRequest naming the setting.
    """
    values: dict[str, Any] = {}
    if path := file or environ.get("MAINSPRING_CONFIG"):
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadRequest(
                f"cannot read the config file {path} ({error.strerror}): check the path"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"{path} is not valid TOML: {error}") from error
    values = _merge(values, _from_environment(environ))
    values = _merge(values, flags or {})
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise wrong_setting(error) from error


def wrong_setting(error: msgspec.ValidationError) -> BadRequest:
    """The error in a user's words: the setting, its limit; `param` is the setting."""
    what, _, place = str(error).partition(" - at `$.")
    name = place.rstrip("`").removeprefix("defaults.")
    if unknown := re.search(r"unknown field `(.*)`", what):
        if unknown[1] in help_of(ModelConfig):
            return BadRequest(f"setting {unknown[1]}: put it under [defaults]", param=unknown[1])
        known = [*help_of(Config), *help_of(ModelConfig)]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists them"
        return BadRequest(f"there is no setting {unknown[1][:100]!r}: {hint}", param=unknown[1])
    if choices := re.search(r"regex '\^\((.*)\)\$'", what):
        what = f"expected one of {choices[1].replace('|', ', ')}"
    return BadRequest(f"setting {name}: {what[:1].lower()}{what[1:]}", param=name)
