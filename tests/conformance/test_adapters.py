"""Adapters over HTTP: listed, asked for by name, loaded and unloaded while serving."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.adapters import tiny_adapter
from tests.conformance.conftest import start, stop
from tests.tiny import tiny_checkpoint


def post(address: str, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    data = json.dumps(body).encode()
    asked = urllib.request.Request(
        address + path, data, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_adapters_are_models(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "tiny")
    folder = tmp_path / "folder"
    tiny_adapter(folder / "two", base, 2)
    outside = tiny_adapter(tmp_path / "outside", base, 3)
    (folder / "link").symlink_to(outside)
    one = tiny_adapter(tmp_path / "one", base, 1)
    server = start(
        [str(base)], tmp_path / "log",
        MAINSPRING_ADAPTERS=f"one={one}", MAINSPRING_ADAPTER_FOLDER=str(folder),
    )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)

        def say(model: str) -> str:
            made = client.completions.create(
                model=model, prompt="once upon a time", temperature=0, max_tokens=12
            )
            assert made.model == model
            return made.choices[0].text

        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        for path in ("../outside", str(outside), "link", ".", "none", "\0"):
            status, body = post(server.address, load, lora_name="x", lora_path=path)
            assert status == 404 and str(tmp_path / "folder") not in str(body), path
        assert post(server.address, load, lora_name="../x", lora_path="two")[0] == 400
        for taken in ("one", "tiny"):
            assert post(server.address, load, lora_name=taken, lora_path="two")[0] == 409
        status, body = post(server.address, load, lora_name="two", lora_path="two")
        assert (status, body["parent"]) == (200, "tiny")
        listed = {model.id: getattr(model, "parent", None) for model in client.models.list()}
        assert listed == {"tiny": None, "one": "tiny", "two": "tiny"}
        assert client.models.retrieve("two").id == "two"
        assert len({say(name) for name in listed}) == 3
        assert 'model_name="two"' in server.metrics()
        assert post(server.address, unload, lora_name="two")[0] == 200
        assert post(server.address, unload, lora_name="two")[0] == 404
        with pytest.raises(openai.NotFoundError, match="one"):
            say("two")
    finally:
        assert stop(server) == 0
