"""What a person at a real terminal sees and types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tiny import tiny_checkpoint
from tests.unit.registry.hub_server import Repository, serve_hub

PATIENCE = 60.0


class Terminal:
    """The other side of a pseudo-terminal that a command has as its own."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.descriptor, self.process = descriptor, process
        self.seen = ""
        self.read_until = 0

    def expect(self, pattern: str) -> str:
        """Wait until `pattern` appears after what was expected before; what came up to its end."""
        end = time.monotonic() + PATIENCE
        while (match := re.compile(pattern).search(self.seen, self.read_until)) is None:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, left))
            data = self._data() if ready else b""
            assert data, f"no {pattern!r} in {self.seen[self.read_until :]!r}"
            self.seen += data.decode("utf-8", "replace")
        before = self.seen[self.read_until : match.end()]
        self.read_until = match.end()
        return before

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def _data(self) -> bytes:
        try:
            return os.read(self.descriptor, 65536)
        except OSError:  # Linux's end of file of a terminal
            return b""

    def ended(self) -> int:
        """Read to the end and give the exit code."""
        while select.select([self.descriptor], [], [], PATIENCE)[0] and (data := self._data()):
            self.seen += data.decode("utf-8", "replace")
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(home: Path, *arguments: str, **extra: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAINSPRING_", "HF_"))}
    environment.pop("NO_COLOR", None)
    environment |= {"MAINSPRING_HOME": str(home), "TERM": "xterm", "COLUMNS": "100", **extra}
    process = subprocess.Popen(
        [sys.executable, "-m", "mainspring.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        # The terminal becomes the command's own, so that ctrl-c is a signal to it.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", eos_token_id=[], max_position_embeddings=100_000)


def test_a_talk_with_ctrl_c_and_ctrl_d(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    flags = ("--isa", "reference", "--port", "0", "--kv-memory", "64MiB")
    with terminal(tmp_path, "run", str(checkpoint), *flags, "--context", "60000") as screen:
        screen.expect(r"loaded in this process\. /help for help")
        screen.expect(">>> ")
        screen.type("go on for ever\n")
        screen.expect("\n.+")  # the echo of the line, then the first of 60,000 tokens
        screen.type("\x03")
        screen.expect(r"\(cancelled\)")
        screen.expect(">>> ")
        screen.type("/clear\n")
        screen.expect("forgotten")
        screen.expect(">>> ")  # before it, ctrl-d would meet a terminal that readline has not taken
        screen.type("\x04")
        assert screen.ended() == 0
        assert "Traceback" not in screen.seen


def test_pull_draws_bars_and_colours_stay_on_the_terminal(tmp_path: Path, checkpoint: Path) -> None:
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    with serve_hub(owner__tiny=Repository(files)) as hub:
        command = ("pull", "owner/tiny")
        with terminal(tmp_path, *command, HF_ENDPOINT=hub.address, no_proxy="*") as screen:
            assert screen.ended() == 0
    assert "━" in screen.seen
    assert "pulled owner/tiny" in screen.seen
    with terminal(tmp_path, "list") as screen:
        assert screen.ended() == 0
    assert "\x1b[1mNAME" in screen.seen
    with terminal(tmp_path, "list", NO_COLOR="1") as screen:
        assert screen.ended() == 0
    assert "\x1b" not in screen.seen
