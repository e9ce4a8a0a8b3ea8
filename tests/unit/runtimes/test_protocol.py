"""The Worker's channel: framed, typed, bounded, and nobody else's."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mainspring import errors
from mainspring.config import ModelConfig
from mainspring.engine import sequence
from mainspring.runtimes import protocol
from mainspring.runtimes.link import environment
from mainspring.runtimes.protocol import (
    FRAME_LIMIT,
    Add,
    Cancel,
    Frames,
    FromWorker,
    Load,
    Output,
    ProtocolError,
    Shutdown,
    Step,
    ToWorker,
    error_from,
    frame,
)
from mainspring.types import EngineStats, Event, Finish, Sampling, TokenTime
from tests.tiny import tiny_checkpoint

ADD = Add("1", (1, 2), Sampling(logit_bias={3: 1.5}, stop_token_ids=(4,)), b"salt", (5,))
OUTPUT = sequence.Output(
    id="1",
    tokens=(7,),
    logprobs=(sequence.TokenLogprob(-0.5, ((7, -0.5), (8, -1.0))),),
    times=(TokenTime(1.5, 3, 2, 0),),
    finish=Finish.STOP,
    stop_reason=7,
    events=(Event("queued", 1.0),),
    cached=32,
)


def test_messages_survive_any_cut() -> None:
    data = frame(ADD) + frame(Cancel("1")) + frame(Shutdown())
    for size in (1, 3, 7, len(data)):
        frames = Frames(ToWorker)
        parts = [data[i : i + size] for i in range(0, len(data), size)]
        assert [m for part in parts for m in frames.feed(part)] == [ADD, Cancel("1"), Shutdown()]


def test_the_engines_output_arrives_as_ours() -> None:
    assert sequence.Output.__struct_fields__ == Output.__struct_fields__
    assert sequence.TokenLogprob.__struct_fields__ == protocol.TokenLogprob.__struct_fields__
    step = Step((OUTPUT,), 3, True, EngineStats(steps=3))  # type: ignore[arg-type]
    (told,) = Frames(FromWorker).feed(frame(step))
    (output,) = told.outputs
    for field in Output.__struct_fields__:
        assert msgspec.to_builtins(getattr(output, field)) == msgspec.to_builtins(
            getattr(OUTPUT, field)
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "exec", "code": "1"}),
        msgspec.msgpack.encode({"type": "cancel", "id": 5}),
        msgspec.msgpack.encode(["cancel", "1"]),
        pickle.dumps({"type": "cancel"}),
        b"\x81" * 5000,
        msgspec.msgpack.encode({"type": "cancel", "id": "1"}) + b"x",
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Frames(ToWorker).feed(struct.pack(">I", len(body)) + body)


def test_a_frame_is_bounded_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="above the limit"):
        Frames(ToWorker).feed(struct.pack(">I", FRAME_LIMIT + 1))


def test_every_error_keeps_its_kind() -> None:
    for kind in (*protocol.FROM_ENGINE, errors.Overloaded):
        told = error_from(kind.code, "because", "prompt")
        assert type(told) is kind and told.message == "because"
    assert type(error_from("no such code", "x")) is errors.InternalError


# The process --------------------------------------------------------------------------------------


def spawn() -> tuple[subprocess.Popen[str], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "mainspring.runtimes.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(os.environ),
        )
    return process, ours


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=20)
    return process.returncode, stderr


@pytest.mark.parametrize("data", [struct.pack(">I", 3) + b"\xc1ab", struct.pack(">I", 1 << 31)])
def test_a_malformed_frame_ends_the_worker_with_a_reason(data: bytes) -> None:
    process, ours = spawn()
    with ours:
        ours.sendall(data)
        status, stderr = ended(process)
    assert status == 3
    assert "mainspring worker: ends:" in stderr and "Traceback" not in stderr


def test_a_worker_ends_when_its_socket_closes() -> None:
    process, ours = spawn()
    ours.close()
    assert ended(process) == (0, "")


def test_the_first_message_must_load() -> None:
    process, ours = spawn()
    with ours:
        ours.sendall(frame(Cancel("1")))
        status, stderr = ended(process)
    assert status == 3 and "first message" in stderr


def test_a_worker_is_private_and_small(tmp_path: Path) -> None:
    """No name to connect to, no new privileges, no secrets, and only what it needs imported."""
    process, ours = spawn()
    with ours:
        path = tiny_checkpoint(tmp_path)
        ours.sendall(frame(Load(str(path), ModelConfig(isa="reference"))))
        frames = Frames(FromWorker)
        while not any(isinstance(m, protocol.Ready) for m in frames.feed(ours.recv(1 << 16))):
            pass
        assert ours.getsockname() == "" and ours.getpeername() == ""
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "tokenizers" not in maps and "uvloop" not in maps
        ours.sendall(frame(Shutdown()))
        assert ended(process) == (0, "")


def test_children_get_no_secrets() -> None:
    given = {"PATH": "/bin", "MAINSPRING_API_KEY": "x", "HF_TOKEN": "y", "PYTHONPATH": "/z"}
    kept = environment(given)
    assert kept["PATH"] == "/bin" and kept["PYTHONPATH"].endswith(":/z")
    assert "MAINSPRING_API_KEY" not in kept and "HF_TOKEN" not in kept
