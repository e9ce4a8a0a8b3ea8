"""Server processes from start to end, with real Workers."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conformance.conftest import ROOT, Server, start, stop
from tests.tiny import tiny_checkpoint

SECRET = "sesame-open-4711"
LONG: Any = {
    "model": "tiny",
    "prompt": "private words",
    "max_tokens": 450,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}


@contextmanager
def live(models: list[str], tmp_path: Path, **settings: str) -> Iterator[Server]:
    server = start(models, tmp_path / "log", **settings)
    try:
        yield server
    finally:
        stop(server)


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)


def workers(server: Server) -> list[int]:
    found = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [
        int(pid)
        for pid in found.split()
        if b"runtimes.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not Path(f"/proc/{pid}/cmdline").exists():
            return True
        time.sleep(0.01)
    return False


def test_draining_lets_streams_end(checkpoint: Path, tmp_path: Path) -> None:
    with live([f"tiny={checkpoint}"], tmp_path) as server, client_of(server) as client:
        whole = client.completions.create(**LONG).choices[0].text
        (worker,) = workers(server)
        stream = client.completions.create(stream=True, **LONG)
        text = next(stream).choices[0].text
        server.process.send_signal(signal.SIGTERM)
        refused = None
        while refused is None:
            try:
                client.completions.create(**LONG | {"max_tokens": 1})
            except openai.APIStatusError as error:
                refused = error
        assert refused.status_code == 503
        assert httpx.get(f"{server.address}/health/ready").status_code == 503
        text += "".join(piece.choices[0].text for piece in stream)
        assert text == whole
        assert server.process.wait(10) == 0
        assert gone(worker)


def test_a_second_signal_ends_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with live([f"tiny={checkpoint}"], tmp_path) as server, client_of(server) as client:
        (worker,) = workers(server)
        stream = client.completions.create(stream=True, n=16, **LONG)
        next(stream)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 3
        assert gone(worker)


def test_several_models_come_and_go(checkpoint: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    with live([f"tiny={checkpoint}", f"other={other}"], tmp_path) as server:
        client = client_of(server)
        ask: Any = {"prompt": "a", "max_tokens": 8, "temperature": 0}
        texts = [
            client.completions.create(model=name, **ask).choices[0].text
            for name in ("tiny", "other")
        ]
        assert texts[0] != texts[1]
        assert len(workers(server)) == 2
        admin = f"{server.address}/admin/models"
        assert httpx.post(f"{admin}/unload", json={"model": "other"}).status_code == 200
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert len(workers(server)) == 1
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", **ask)
        body = {"model": str(other), "name": "again", "context": 64}
        row = httpx.post(f"{admin}/load", json=body, timeout=30).json()
        assert (row["state"], row["context"]) == ("loaded", 64)
        assert client.completions.create(model="again", **ask).choices[0].text == texts[1]
        assert httpx.post(f"{admin}/load", json=body).status_code == 409
        huge = httpx.post(f"{admin}/load", json=body | {"name": "huge", "kv_memory": 1 << 60})
        assert (huge.status_code, huge.json()["error"]["code"]) == (507, "insufficient_memory")
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "config.json").write_text('{"model_type": "nonesuch"}')
        refused = httpx.post(f"{admin}/load", json={"model": str(broken)}, timeout=30)
        assert refused.status_code == 422
        assert str(tmp_path) not in refused.text
        assert [row["name"] for row in httpx.get(admin).json()["data"]] == ["again", "tiny"]
        client.close()


def test_unloading_lets_streams_end(checkpoint: Path, tmp_path: Path) -> None:
    with live([f"tiny={checkpoint}"], tmp_path) as server, client_of(server) as client:
        stream = client.completions.create(stream=True, **LONG)
        next(stream)
        statuses: list[int] = []
        address = f"{server.address}/admin/models/unload"
        unload = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(address, json={"model": "tiny"}, timeout=30).status_code
            )
        )
        unload.start()
        assert [piece.choices[0].finish_reason for piece in stream][-1] == "length"
        unload.join()
        assert statuses == [200]


def test_keys_and_silence(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"MAINSPRING_API_KEY": SECRET, "MAINSPRING_LOG_LEVEL": "debug"}
    with live([f"tiny={checkpoint}"], tmp_path, **settings) as server:
        with client_of(server) as stranger, pytest.raises(openai.AuthenticationError):
            stranger.completions.create(**LONG)
        with client_of(server, SECRET) as client:
            client.completions.create(**LONG | {"max_tokens": 3})
            with pytest.raises(openai.BadRequestError):
                client.completions.create(**LONG | {"temperature": 9})
    log = (tmp_path / "log").read_text()
    assert log.count("route=/v1/completions") == 3
    assert "status=401" in log and "status=200" in log
    assert "private" not in log
    assert SECRET not in log


def test_overload(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"MAINSPRING_MAX_RUNNING": "1", "MAINSPRING_MAX_QUEUE": "1"}
    with live([f"tiny={checkpoint}"], tmp_path, **settings) as server, client_of(server) as client:
        one = client.completions.create(stream=True, **LONG)
        next(one)
        two = threading.Thread(target=lambda: client.completions.create(**LONG))
        two.start()
        while server.metric("vllm:num_requests_waiting") < 1:
            time.sleep(0.005)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**LONG)
        headers = caught.value.response.headers
        assert int(headers["retry-after"]) >= 1
        assert int(headers["retry-after-ms"]) > 0
        assert len(list(one)) > 10
        two.join()


def test_leaving_the_queue(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"MAINSPRING_MAX_RUNNING": "1"}
    with live([f"tiny={checkpoint}"], tmp_path, **settings) as server, client_of(server) as client:
        one = client.completions.create(stream=True, n=6, **LONG)  # one choice after the other
        next(one)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.address}/v1/completions",
                json={"model": "tiny", "prompt": "queued", "max_tokens": 400},
                timeout=0.2,
            )
        while server.metric("vllm:num_requests_waiting"):
            time.sleep(0.005)
        list(one)
        server.wait_for_idle()


def test_a_reset_in_prefill(checkpoint: Path, tmp_path: Path) -> None:
    # The reference kernels take long for such a prompt; the reset comes before its first token.
    model = tiny_checkpoint(tmp_path / "long", max_position_embeddings=8192)
    with live([f"tiny={model}"], tmp_path, MAINSPRING_STEP_MS="1") as server:
        host, port = server.address.removeprefix("http://").split(":")
        body = b'{"model": "tiny", "prompt": "%b", "stream": true}' % (b"x" * 8000)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        client = socket.create_connection((host, int(port)))
        client.sendall(head % len(body) + body)
        while not server.metric("vllm:num_requests_running"):
            time.sleep(0.002)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.wait_for_idle()
        assert server.metric("vllm:generation_tokens_total") == 0


def test_a_killed_worker_is_a_pause(checkpoint: Path, tmp_path: Path) -> None:
    with live([f"tiny={checkpoint}"], tmp_path) as server, client_of(server) as client:
        for kills, chunks in enumerate((1, 30, 200), 1):
            sampled = LONG | {"temperature": 1, "seed": kills}
            whole = client.completions.create(**sampled).choices[0].text
            stream = client.completions.create(stream=True, **sampled)
            text = "".join(piece.choices[0].text for piece in itertools.islice(stream, chunks))
            os.kill(workers(server)[0], signal.SIGKILL)
            times = [time.monotonic()]
            for piece in stream:
                text += piece.choices[0].text
                times.append(time.monotonic())
            assert text == whole
            assert max(b - a for a, b in itertools.pairwise(times)) < 5
            assert server.metric("mainspring_worker_restarts_total") == kills


def test_alive_before_ready(checkpoint: Path, server: Server) -> None:
    assert server.seconds < 5
    assert httpx.get(f"{server.address}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{server.address}/health/ready").json() == {"status": "ready"}


def command(*models: str, port: int, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mainspring.cli", "serve", *models, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MAINSPRING_ISA": "reference", **settings},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_signal_while_loading(checkpoint: Path) -> None:
    port = free_port()
    with command(f"tiny={checkpoint}", port=port) as process:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health/live")
                break
            except httpx.ConnectError:
                assert process.poll() is None
                time.sleep(0.002)
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MAINSPRING_HOST": "0.0.0.0"}, "MAINSPRING_API_KEY"),
        ({"MAINSPRING_KV_MEMORY": str(1 << 60)}, "GiB"),
        ({}, "choose another with --port"),
    ],
)
def test_what_prevents_a_start_is_said_in_one_line(
    checkpoint: Path, settings: dict[str, str], words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = free_port() if settings else taken.getsockname()[1]
        with command(f"tiny={checkpoint}", port=port, **settings) as process:
            out, err = process.communicate(timeout=30)
    assert process.returncode not in {0, None}
    assert out == ""
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_streams_that_outlast_the_drain_end_with_an_error(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "long", max_position_embeddings=8192)
    settings = {"MAINSPRING_DRAIN_SECONDS": "0.1"}
    with live([f"tiny={model}"], tmp_path, **settings) as server, client_of(server) as client:
        stream = client.completions.create(stream=True, **LONG | {"max_tokens": 8000})
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "unavailable"
        assert server.process.wait(10) == 0
