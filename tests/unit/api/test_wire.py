"""The bytes on the wire: what is refused, how much is read, how long is waited."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mainspring.api.connection import Limits
from mainspring.api.listener import bind
from mainspring.errors import Conflict
from tests.unit.api.scripted import Reply, Running, Script, chat_body, read_all, running

BODY = json.dumps(chat_body()).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("m"), body_limit=1 << 20, log_level="error") as server:
        yield server


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(POST + LENGTH, id="length"),
        pytest.param(POST + JSON + LENGTH, id="media type"),
        pytest.param(POST + b"Content-Type: Application/JSON ;charset=x\r\n" + LENGTH, id="case"),
    ],
)
def test_a_plain_request_is_answered(server: Running, head: bytes) -> None:
    reply = Reply.of(server.raw(head + b"Connection: close\r\n\r\n" + BODY))
    assert reply.status == 200
    assert reply.json["choices"][0]["message"]["content"] == "Hello"


def test_chunks_and_trailers_are_taken(server: Running) -> None:
    trailers = CHUNKS.removesuffix(b"\r\n") + b"X-Trailer: 1\r\n\r\n"
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert Reply.of(server.raw(head + trailers)).status == 200


def test_one_connection_serves_request_after_request(server: Running) -> None:
    with server.connect() as client:
        for _ in range(3):
            client.sendall(POST + LENGTH + b"\r\n" + BODY)
            data = b""
            while not data.endswith(b"}}"):
                data += client.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")


def test_pipelined_requests_get_the_first_answer_and_the_end(server: Running) -> None:
    data = server.raw((POST + LENGTH + b"\r\n" + BODY) * 3)
    assert data.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in data


def test_http_1_0_is_answered_without_chunks(server: Running) -> None:
    body = json.dumps(chat_body(stream=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    data = server.raw(head % len(body) + body)
    assert b"transfer-encoding" not in data
    assert data.endswith(b"data: [DONE]\n\n")


def test_expect_continue(server: Running) -> None:
    with server.connect() as client:
        client.sendall(POST + LENGTH + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert Reply.of(read_all(client)).status == 200


def test_an_offer_to_upgrade_is_passed_over(server: Running) -> None:
    # Java's client sends this with its first request.
    head = POST + LENGTH + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    with server.connect() as client:
        client.sendall(head + BODY)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    late = [head[:-8], head[-8:] + BODY]  # the offer in two packets is refused, never misread
    with server.connect() as client:
        for part in late:
            client.sendall(part)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert client.recv(12) in {b"HTTP/1.1 200", b"HTTP/1.1 400"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, id="CL and TE"
        ),
        pytest.param(POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY, id="two lengths"),
        pytest.param(POST + LENGTH + LENGTH + b"\r\n" + BODY, id="the same length twice"),
        pytest.param((POST + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY, id="line feeds"),
        pytest.param(POST.replace(b"t\r\n", b"t\n") + LENGTH + b"\r\n" + BODY, id="one line feed"),
        pytest.param(POST + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY, id="folded header"),
        pytest.param(POST + b"X: a\0b\r\n" + LENGTH + b"\r\n" + BODY, id="NUL"),
        pytest.param(POST + b"X: a\xff\r\n" + LENGTH + b"\r\n" + BODY, id="not UTF-8"),
        pytest.param(POST + b"Content-Length : 3\r\n\r\nabc", id="space before colon"),
        pytest.param(POST + b"Content-Length: -2\r\n\r\n", id="negative length"),
        pytest.param(POST + b"Content-Length: +2\r\n\r\nhi", id="signed length"),
        pytest.param(POST + b"Content-Length: 99999999999999999999999\r\n\r\n", id="huge length"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS, id="gzip coding"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, id="unknown coding"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\nhi\r\n0\r\n\r\n", id="chunk overflow"),
        pytest.param(CHUNKED + b"2\nhi\n0\n\n", id="chunk line feeds"),
        pytest.param(CHUNKED + b"2;" + b"a" * 1_000_000 + b"\r\nhi\r\n0\r\n\r\n", id="extension"),
        pytest.param(CHUNKED + b"1\r\n[\r\n" * 1_000_000 + b"0\r\n\r\n", id="million chunks"),
        pytest.param(POST + b"Host: b\r\n" + LENGTH + b"\r\n" + BODY, id="two hosts"),
        pytest.param(POST.replace(b"Host: localhost\r\n", LENGTH) + b"\r\n" + BODY, id="no host"),
        pytest.param(POST.replace(b"localhost", b"a/?x=") + LENGTH + b"\r\n" + BODY, id="bad host"),
        pytest.param(
            POST.replace(b"localhost", b"localhost/docs?") + LENGTH + b"\r\n" + BODY, id="host path"
        ),
        pytest.param(POST.replace(b"/v1", b"http://b/v1") + LENGTH + b"\r\n" + BODY, id="absolute"),
        pytest.param(POST.replace(b"HTTP/1.1", b"HTTP/9.9") + LENGTH + b"\r\n" + BODY, id="9.9"),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", id="connect"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, id="TLS hello"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    ],
)
def test_what_is_not_strict_http_is_refused_and_the_connection_closed(
    server: Running, data: bytes
) -> None:
    before = len(server.script.requests)
    reply = send_and_read(server, data)
    assert reply.status == 400
    assert reply.error["code"] == "invalid_http"
    assert reply.headers["connection"] == "close"
    assert len(server.script.requests) == before


def send_and_read(server: Running, data: bytes) -> Reply:
    """Like Running.raw, but reads while it sends: the refusal may come long before the end."""
    with server.connect() as client:

        def send() -> None:
            try:
                client.sendall(data)
            except OSError:
                return  # refused before all was sent

        sender = threading.Thread(target=send)
        sender.start()
        out = read_all(client)
        sender.join()
    return Reply.of(out)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(
            POST + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431, "headers_too_large", id="long"
        ),
        pytest.param(POST + b"X: " + b"a" * 70_000, 431, "headers_too_large", id="unended"),
        pytest.param(
            POST + b"".join(b"X-%d: a\r\n" % i for i in range(200)) + b"\r\n",
            431,
            "headers_too_large",
            id="many",
        ),
        pytest.param(
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            414,
            "url_too_long",
            id="url",
        ),
    ],
)
def test_heads_have_a_size(server: Running, data: bytes, status: int, code: str) -> None:
    reply = send_and_read(server, data)
    assert (reply.status, reply.error["code"]) == (status, code)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/%76%31/models",
        "/v1/%2e%2e/v1/models",
        "/v1/../v1/models",
        "/v1/models;x",
        "/V1/models",
        "/v1/models%00",
        "/admin%2fmodels",
    ],
)
def test_only_the_exact_spelling_of_a_path_is_a_path(server: Running, path: str) -> None:
    assert server.call("GET", path).status == 404


def test_a_body_over_the_limit_is_refused_by_its_length(server: Running) -> None:
    reply = Reply.of(server.raw(POST + b"Content-Length: 1048577\r\n\r\n"))
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert "1048576" in reply.error["message"]


def test_a_body_over_the_limit_is_refused_after_little_more_than_the_limit(
    server: Running,
) -> None:
    with server.connect() as client:
        client.sendall(CHUNKED)
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        sent = 0
        client.settimeout(0.05)
        out = b""
        while not out and sent < 200:
            try:
                client.sendall(chunk)
                sent += 1
                if sent > 16:
                    out = client.recv(65536)
            except TimeoutError:
                continue
    assert Reply.of(out).status == 413
    assert sent <= 16 + 8


def test_slow_headers_and_slow_bodies_are_ended(tmp_path: Path) -> None:
    with running(tmp_path, header_seconds=0.3, log_level="error") as server:
        for start in (POST[:20], POST + LENGTH + b"\r\n" + BODY[:5]):
            with server.connect() as client:
                client.sendall(start)
                began = time.monotonic()
                reply = Reply.of(read_all(client))
                assert reply.status == 408
                assert 0.2 < time.monotonic() - began < 5
        with server.connect() as client:
            assert read_all(client) == b""


def test_connections_are_counted(tmp_path: Path) -> None:
    with running(tmp_path, connection_limit=3) as server:
        held = [server.connect() for _ in range(3)]
        for client in held:
            client.sendall(b"G")
        until_full(server, 3)
        with server.connect() as one_more:
            assert Reply.of(read_all(one_more)).status == 503
        held[0].close()
        until_full(server, 2)
        assert server.call("GET", "/health/live").status == 200
        for client in held:
            client.close()


def test_idle_connections_make_room(tmp_path: Path) -> None:
    with running(tmp_path, connection_limit=3) as server:
        idle = [server.connect() for _ in range(3)]
        until_full(server, 3)
        assert server.call("GET", "/health/live").status == 200
        assert idle[0].recv(1) == b""
        for client in idle:
            client.close()


def test_a_request_in_single_bytes(server: Running) -> None:
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in POST + LENGTH + b"Connection: close\r\n\r\n" + BODY:
            client.sendall(bytes([byte]))
        assert Reply.of(read_all(client)).status == 200


def test_mutilated_requests_never_end_the_server(server: Running) -> None:
    random = Random(7)
    whole = POST + JSON + LENGTH + b"Connection: close\r\n\r\n" + BODY
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.randint(1, 6)):
            place = random.randrange(len(data))
            match random.randrange(3):
                case 0:
                    data[place] = random.randrange(256)
                case 1:
                    del data[place : place + random.randint(1, 9)]
                case _:
                    data[place:place] = random.choice((b"\r\n", b"\0", b":", b"\n", b"0", b" "))
        with server.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
        assert not answer or int(answer[9:12]) in {200, *range(400, 432), 501}
    assert server.call("GET", "/health/live").status == 200
    until_full(server, 0)


def until_full(server: Running, count: int) -> None:
    until = time.monotonic() + 5
    while server.app.listener.open != count and time.monotonic() < until:
        time.sleep(0.005)
    assert server.app.listener.open == count


def test_a_client_that_never_reads_is_dropped_and_its_request_cancelled(tmp_path: Path) -> None:
    script = Script(endless=True)
    with running(tmp_path, script, write_seconds=0.3) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps(chat_body(stream=True)).encode()
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert script.closed.wait(10)
        metrics = server.call("GET", "/metrics").body
        assert b'finished_reason="abort",model_name="m"} 1.0' in metrics
        client.settimeout(5)
        taken = len(read_all(client))
        assert taken < 1 << 20
        client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(tmp_path: Path, stream: bool) -> None:
    script = Script(hold=True)
    with running(tmp_path, script) as server:
        client = server.connect()
        body = json.dumps(chat_body(stream=stream)).encode()
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert script.entered.wait(5)
        client.close()
        assert script.closed.wait(5)
        assert b'finished_reason="abort",model_name="m"} 1.0' in server.call("GET", "/metrics").body


def test_a_client_that_leaves_in_the_middle_of_its_stream(tmp_path: Path) -> None:
    script = Script(endless=True)
    with running(tmp_path, script) as server:
        client = server.connect()
        body = json.dumps(chat_body(stream=True)).encode()
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
        client.close()
        assert script.closed.wait(5)


def test_an_address_in_use_is_one_line() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(Conflict, match="choose another"):
        bind("127.0.0.1", first.getsockname()[1])


def test_limits_are_those_promised() -> None:
    limits = Limits()
    assert (limits.head_bytes, limits.headers, limits.url_bytes) == (32768, 100, 8192)
    assert limits.chunks == 65536
