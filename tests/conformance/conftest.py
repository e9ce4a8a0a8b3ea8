"""A live server process with tiny random models, and the unmodified openai clients."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.tiny import tiny_checkpoint

SERVE = """
import sys
from mainspring import app
from mainspring.config import load_config
config = load_config({"port": 0, "models": sys.argv[1:]})
app.serve(config, on_ready=lambda address: print(address, flush=True))
"""
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    address: str
    process: subprocess.Popen[str]
    seconds: float
    """From the process's start to ready."""

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def metric(self, name: str, model: str = "tiny") -> float:
        pattern = rf'^{re.escape(name)}\{{[^}}]*model_name="{model}"[^}}]*\}} (\S+)$'
        found = re.search(pattern, self.metrics(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def wait_for_idle(self, seconds: float = 5.0) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            running = self.metric("vllm:num_requests_running")
            if running + self.metric("vllm:num_requests_waiting") == 0:
                return
        raise AssertionError("the engine is not idle")


def start(models: list[str], log: Path, **settings: str) -> Server:
    """Start a server process and wait until it is ready."""
    began = time.monotonic()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *models],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env={**os.environ, "MAINSPRING_ISA": "reference", **settings},
        )
    assert process.stdout
    address = process.stdout.readline().strip()
    assert address, log.read_text()
    return Server(address, process, time.monotonic() - began)


def stop(server: Server) -> int:
    server.process.terminate()
    try:
        return server.process.wait(15)
    finally:
        server.process.kill()
        server.process.wait()
        if server.process.stdout:
            server.process.stdout.close()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "stderr"
    server = start([f"tiny={checkpoint}"], log)
    yield server
    assert stop(server) == 0, log.read_text()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client
