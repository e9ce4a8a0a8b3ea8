"""The README's commands are run as they stand there, against `make run`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)
# `make run` is the fixture below; `make test` is what runs this file.
COMMANDS = [text for language, text in BLOCKS if language == "sh" and text[:5] != "make "]
SCRIPTS = [text for language, text in BLOCKS if language == "python"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    assert ("sh", "make run\n") in BLOCKS
    assert ("sh", "make test\n") in BLOCKS
    chosen = free_port()
    server = subprocess.Popen(
        ["make", "run"],
        cwd=ROOT,
        env={**os.environ, "MAINSPRING_PORT": str(chosen)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, "make run ended"
            assert time.monotonic() < deadline, "make run was not ready within 60 s"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{chosen}/health/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield chosen
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def run(command: list[str], port: int) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "MAINSPRING_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.xdist_group("server")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_answers(command: str, port: int) -> None:
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    command = command.replace(".venv/bin/mainspring", "mainspring")
    output = run(["bash", "-euc", command], port)
    assert len(output.strip()) > 20, output
    assert '"error"' not in output


@pytest.mark.xdist_group("server")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_of_the_readme_answers(script: str, port: int) -> None:
    script = script.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    assert len(run([sys.executable, "-c", script], port).strip()) > 20


@pytest.mark.xdist_group("server")
def test_the_guide_knows_the_answer_the_readme_asks_for(port: int) -> None:
    curl = next(text for text in COMMANDS if text.startswith("curl"))
    output = run(["bash", "-euc", curl.replace("127.0.0.1:8000", f"127.0.0.1:{port}")], port)
    assert "MAINSPRING_API_KEY" in output
