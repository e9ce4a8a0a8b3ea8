"""`serve`, `ps`, `run` and `stop` with a real server, in a process of its own."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mainspring.cli.client import Client
from mainspring.cli.serve import greeting
from mainspring.config import Config
from tests.tiny import tiny_checkpoint
from tests.unit.cli.conftest import Run

KEY = "a-key-of-the-test"
START_SECONDS = 60.0


class Server:
    """`mainspring serve` as a user starts it, until its greeting is complete."""

    def __init__(self, home: Path, *arguments: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAINSPRING_")}
        environment |= {"MAINSPRING_API_KEY": KEY, "MAINSPRING_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mainspring.cli", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        watchdog = threading.Timer(START_SECONDS, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        self.greeting = ""
        while "Stop it with ctrl-c." not in self.greeting:
            line = self.process.stdout.readline()
            assert line, f"the server ended with {self.process.wait()}"
            self.greeting += line
        watchdog.cancel()
        self.address = self.greeting.partition(" on ")[2].split()[0]
        self.port = self.address.rpartition(":")[2]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    checkpoint = tiny_checkpoint(home / "tiny")
    server = Server(
        home, f"chat={checkpoint}", f"other={checkpoint}", "--port", "0", "--isa", "reference",
        "--max-running", "2",
    )  # fmt: skip
    yield server
    assert server.end() == 0


@pytest.fixture
def key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_API_KEY", KEY)


def test_the_greeting_has_three_things_to_try(server: Server) -> None:
    assert server.address == f"http://127.0.0.1:{server.port}"
    assert "serves chat, other on" in server.greeting
    assert f'mainspring run chat "how do I add an API key?" --port {server.port}' in server.greeting
    assert f"curl {server.address}/v1/chat/completions -H" in server.greeting
    assert f'base_url="{server.address}/v1"' in server.greeting
    assert KEY not in server.greeting


def test_the_greeting_names_only_what_is_needed() -> None:
    text = greeting(Config(), ["m"], "http://127.0.0.1:8000")
    assert 'mainspring run m "how do I add an API key?"\n' in text
    assert "Authorization" not in text
    assert "import os" not in text


def test_the_greeting_never_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_API_KEY", "one,two")
    for keys in (("one", "two"), ("of-the-file",)):
        text = greeting(Config(api_keys=keys), ["m"], "http://127.0.0.1:8000")
        assert '"Authorization: Bearer KEY"' in text
        assert 'api_key="KEY"' in text
        assert not any(key in text for key in ("one,", "two", "of-the-file"))


@pytest.mark.usefixtures("key")
def test_ps_lists_the_loaded_models(run: Run, server: Server) -> None:
    rows = run("ps", "--port", server.port, "--json").json
    assert [(row["name"], row["family"]) for row in rows] == [("chat", "llama"), ("other", "llama")]
    ran = run("ps", "--port", server.port)
    head, first, _ = ran.out.splitlines()
    assert head.split()[:4] == ["NAME", "STATE", "FORMAT", "MEMORY"]
    assert first.split()[:3] == ["chat", "ready", "bf16"]
    assert len(head) <= 79


def test_ps_without_the_key_says_which_variable(run: Run, server: Server) -> None:
    ran = run("ps", "--port", server.port)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "set MAINSPRING_API_KEY to one that it knows" in ran.err


@pytest.mark.usefixtures("key")
def test_run_asks_the_server(run: Run, server: Server) -> None:
    arguments = ("run", "chat", "hello", "--port", server.port, "--max-tokens", "8", "--seed", "7",
                 "--stats")  # fmt: skip
    first = run(*arguments)
    assert first.code == 0, first.err
    assert "prompt 8 tokens (0 cached)" in first.err
    assert "output 8 tokens" in first.err
    assert first.out.strip()
    assert run(*arguments).out == first.out
    stats = run("ps", "--port", server.port, "--json").json[0]["stats"]
    assert stats["output_tokens"] == 16


@pytest.mark.usefixtures("key")
def test_an_error_of_the_server_is_one_line(run: Run, server: Server) -> None:
    ran = run("run", "chat", "x" * 600, "--port", server.port)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "512" in ran.err


@pytest.mark.usefixtures("key")
def test_stop_unloads(run: Run, server: Server) -> None:
    assert run("stop", "other", "--port", server.port).out == "other is unloaded\n"
    rows = run("ps", "--port", server.port, "--json").json
    assert [row["name"] for row in rows] == ["chat"]
    ran = run("stop", "othr", "--port", server.port)
    assert ran.code == 1
    assert "'othr' is not served here" in ran.err


def test_run_answers_in_this_process_when_no_server_has_the_model(
    run: Run, server: Server, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "mine")
    arguments = ("run", str(checkpoint), "hello", "--port", server.port, "--isa", "reference",
                 "--max-tokens", "8", "--seed", "7", "--stats")  # fmt: skip
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    assert "output 8 tokens" in ran.err
    assert run(*arguments).out == ran.out


def test_serve_refuses_before_it_loads_anything(run: Run, tmp_path: Path) -> None:
    ran = run("serve", "nothing")
    assert ran.code == 1
    assert "no model 'nothing' here" in ran.err
    ran = run("serve", f"m={tiny_checkpoint(tmp_path / 'm')}", "--host", "0.0.0.0", "--port", "0")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "API key" in ran.err


class Foreign(BaseHTTPRequestHandler):
    """Another program at the port: every path has its own wrong answer."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'"hello"' if self.path == "/admin/models" else b"<html>")

    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"oops")


@pytest.fixture
def foreign() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield str(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_another_program_at_the_port_is_recognised(run: Run, foreign: str) -> None:
    assert "another program?" in run("ps", "--port", foreign).err
    assert "another program?" in run("stop", "m", "--port", foreign).err


def test_nobody_at_the_port(run: Run) -> None:
    with http.client.socket.create_server(("127.0.0.1", 0)) as free:  # type: ignore[attr-defined]
        port = str(free.getsockname()[1])
    ran = run("ps", "--port", port)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "start one with `mainspring serve`" in ran.err


@pytest.mark.parametrize("host", ["..", "no such host", "x" * 300 + ".example"])
def test_a_host_that_cannot_be(run: Run, host: str) -> None:
    ran = run("ps", "--host", host)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "no server answers" in ran.err or "is not a host" in ran.err


def test_a_key_that_no_header_can_carry(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_API_KEY", "a\r\nX-Evil: 1")
    ran = run("ps")
    assert ran.code == 1
    assert "MAINSPRING_API_KEY holds what no header can carry" in ran.err


def test_addresses_that_mean_every_interface_are_reached_on_loopback() -> None:
    assert Client(Config(host="0.0.0.0", port=1)).address == "http://127.0.0.1:1"
    assert Client(Config(host="::", port=1)).address == "http://[::1]:1"
