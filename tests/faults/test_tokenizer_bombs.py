"""Tokenizers made to take for ever, or more memory than there is."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import MainspringError, ModelError, Unavailable
from mainspring.runtimes import llm
from mainspring.runtimes.tokenizer import Tokenizer
from mainspring.types import Message, Sampling, Task
from tests.conformance.conftest import start, stop
from tests.faults.streams import request, runtime, tell, until
from tests.tiny import tiny_checkpoint

SHORT = Sampling(temperature=0, max_tokens=4, ignore_eos=True)
RUN = "x" * 22 + "-"
"""about 40 ms of backtracking, just below the limit that the regex library has for one match"""


def changed(path: Path, **parts: Any) -> Path:
    file = path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))
    return path


def split(pattern: str) -> dict[str, Any]:
    bomb = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    plain = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {"type": "Sequence", "pretokenizers": [bomb, plain]}


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with many x backtrace for ever, others are harmless."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("bomb"), max_position_embeddings=4096)
    return changed(path, pre_tokenizer=split("(?:x+x+)+y"))


def test_a_text_that_takes_for_ever_fails_and_stops_nobody_else(
    bomb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "READ_SECONDS", 1.0)
    ask = request("calm", sampling=SHORT)

    async def main() -> None:
        async with runtime(bomb) as hostile, runtime(tiny_checkpoint(tmp_path)) as other:
            await tell(hostile.run(ask))
            caught = asyncio.create_task(tell(hostile.run(request(RUN * 60))))
            behind = asyncio.create_task(tell(hostile.run(ask)))
            waits = []
            while not caught.done():
                began = time.monotonic()
                await tell(other.run(ask))
                waits.append(time.monotonic() - began)
            assert len(waits) > 5 and max(waits) < 1.0
            for task in (caught, behind):
                with pytest.raises(ModelError, match="does not come to the end of a text"):
                    await task
            assert "does not come to the end" in (hostile.unhealthy() or "")
            with pytest.raises(Unavailable, match="does not come to the end"):
                await tell(hostile.run(ask))
            # The text was long, not endless: afterwards all is well.
            await until(lambda: hostile.unhealthy() is None)
            await tell(hostile.run(ask))
            messages = (Message("user", RUN * 60),)
            chat = request(task=Task.CHAT, prompts=(), messages=messages, sampling=SHORT)
            with pytest.raises(ModelError, match="does not come to the end of a text"):
                await tell(hostile.run(chat))
            assert hostile._admission.taken == 0

    asyncio.run(main())


def test_a_server_answers_others_and_stops_while_a_text_takes_for_ever(
    bomb: Path, tmp_path: Path
) -> None:
    models = [f"bomb={bomb}", f"tiny={tiny_checkpoint(tmp_path / 'tiny')}"]
    log = tmp_path / "log"
    server = start(models, log, MAINSPRING_DRAIN_SECONDS="0.5")

    def post(model: str, prompt: str) -> int:
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 3}).encode()
        url = f"{server.address}/v1/completions"
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=20) as reply:
            status: int = reply.status
            return status

    def lost() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            post("bomb", RUN * 1000)

    try:
        hanging = threading.Thread(target=lost)
        hanging.start()
        time.sleep(0.3)
        assert post("tiny", "calm") == 200 and hanging.is_alive()
        began = time.monotonic()
    finally:
        status = stop(server)
    assert status == 0, log.read_text()
    assert time.monotonic() - began < 5.0
    hanging.join(5)
    assert not hanging.is_alive()


def test_a_pattern_that_the_library_gives_up_fails_the_request_alone(tmp_path: Path) -> None:
    """The library panics then, and a panic is no Exception."""
    path = changed(tiny_checkpoint(tmp_path), pre_tokenizer=split("(?:x+x+)+y"))

    async def main() -> None:
        async with runtime(path) as served:
            with pytest.raises(ModelError, match="cannot read this text") as caught:
                await tell(served.run(request("secret" + "x" * 40)))
            assert "secret" not in str(caught.value.message) + caught.value.detail
            await tell(served.run(request("calm")))

    asyncio.run(main())


def refusal(path: Path, **parts: Any) -> str:
    with pytest.raises(ModelError) as caught:
        Tokenizer(changed(tiny_checkpoint(path), **parts))
    assert str(path) not in caught.value.message
    return caught.value.message


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def test_replacements_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    doubling = {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}
    assert f"{2**40} times" in refusal(tmp_path, normalizer=doubling)
    assert "100000 times" in refusal(tmp_path, normalizer=replace("a", "b" * 100_000))
    assert "100000 times" in refusal(
        tmp_path, normalizer={"type": "Prepend", "prepend": "b" * 100_000}
    )
    nested = {"type": "Sequence", "normalizers": [doubling]}
    assert "times" in refusal(tmp_path, normalizer=nested)
    decoder = {"type": "Sequence", "decoders": [replace("a", "aaaa")] * 10}
    assert "decoder" in refusal(tmp_path, decoder=decoder)
    regex = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}
    assert "not a Regex" in refusal(tmp_path, decoder=regex)


def test_models_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    plain = json.loads((tiny_checkpoint(tmp_path) / "tokenizer.json").read_text())["model"]
    vocabulary = plain["vocab"]

    def model(merges: list[Any], **more: int) -> dict[str, Any]:
        return {**plain, "vocab": {**vocabulary, **more}, "merges": merges}

    assert "not a tokenizer" in refusal(tmp_path, model=model([["a", "nowhere"]]))
    # A merge whose result is not its parts' text makes the library panic.
    assert "not a tokenizer" in refusal(tmp_path, model=model([["", "a"]] * 3, aa=1))
    long = model([], **{"z" * 20_000: 256})
    assert "20000 bytes" in refusal(tmp_path, model=long, added_tokens=[])


def test_merges_that_lead_back_to_where_they_came_from_end(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    plain = json.loads((path / "tokenizer.json").read_text())["model"]
    vocabulary = {**plain["vocab"], "aa": plain["vocab"]["a"]}
    ours = Tokenizer(changed(path, model={**plain, "vocab": vocabulary, "merges": [["a", "a"]]}))
    assert 1 <= len(ours.encode("a" * 10_000)) <= 10_000


def test_an_id_that_the_model_lacks_fails_the_request(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    plain = json.loads((path / "tokenizer.json").read_text())["model"]
    vocabulary = {**plain["vocab"], "a": 4_000_000_000}

    async def main() -> MainspringError:
        async with runtime(changed(path, model={**plain, "vocab": vocabulary})) as served:
            await tell(served.run(request("b")))
            with pytest.raises(ModelError) as caught:
                await tell(served.run(request("a")))
            return caught.value

    assert "4000000000" in asyncio.run(main()).message


@pytest.fixture(autouse=True)
def _quiet_panics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RUST_BACKTRACE", "0")
