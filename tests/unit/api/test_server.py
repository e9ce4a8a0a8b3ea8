"""Guards, routes, answers and errors, over HTTP with a scripted Runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.api import inference
from mainspring.api.call import Call
from mainspring.api.routes import Route, Routes
from mainspring.errors import (
    BadRequest,
    InsufficientMemory,
    InternalError,
    ModelError,
    Overloaded,
)
from mainspring.gateway.identity import Permission
from tests.unit.api.scripted import Reply, Running, Script, chat_body, read_all, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("m"), log_level="error") as server:
        yield server


# Who may ask ------------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    with running(tmp_path, api_keys=["one", "two"]) as server:
        for path in ("/v1/models", "/metrics", "/admin/models"):
            assert server.call("GET", path).status == 401
            for wrong in ("Bearer three", "Bearer ", "one", "Basic one", "Bearer one two", ""):
                reply = server.call("GET", path, headers={"Authorization": wrong})
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
            for right in ("Bearer one", "Bearer two", "bearer one"):
                assert server.call("GET", path, headers={"Authorization": right}).status == 200
        for public in ("/health/live", "/health/ready"):
            assert server.call("GET", public).status == 200
        server.call("POST", CHAT, chat_body(), {"Authorization": "Bearer one"})
        server.call("POST", CHAT, chat_body(), {"Authorization": "Bearer two"})
        tenants = {request.tenant for request in server.script.requests}
        assert len(tenants) == 2
        assert not any("one" in tenant or "two" in tenant for tenant in tenants)


def test_the_key_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    with running(tmp_path, api_keys=["one"]) as server:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        assert server.raw(head.encode()).startswith(b"HTTP/1.1 401 ")


def test_two_authorizations_are_refused(tmp_path: Path) -> None:
    with running(tmp_path, api_keys=["one"]) as server:
        data = server.raw(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer one\r\nAuthorization: Bearer two\r\n\r\n"
        )
        assert data.startswith(b"HTTP/1.1 400 ")


def test_an_open_server_without_a_key_does_not_start(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(BadRequest, match="MAINSPRING_API_KEY"), running(tmp_path, host=host):
            pass


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("192.0.2.7", 200),
        ("allowed.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_hosts(tmp_path: Path, host: str, status: int) -> None:
    with running(tmp_path, allowed_hosts=["allowed.example"]) as server:
        assert server.call("GET", "/v1/models", headers={"Host": host}).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("http://[::1]:5173", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
        ("chrome-extension://abcdef", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_change_nothing(server: Running, origin: str, status: int) -> None:
    reply = server.call("POST", CHAT, chat_body(), {"Origin": origin})
    assert reply.status == status
    assert "access-control-allow-origin" not in reply.headers
    unload = server.call("POST", "/admin/models/unload", {"model": "none"}, {"Origin": origin})
    assert unload.status == (404 if status == 200 else 403)
    assert server.call("GET", "/v1/models", headers={"Origin": origin}).status == status


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/health", "did you mean /health/live?"),
        ("/", "there are /v1/models, /v1/chat/completions,"),
    ],
)
def test_a_missed_path_is_told_the_near_one(server: Running, path: str, hint: str) -> None:
    reply = server.call("GET", path)
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert hint in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"quantize": "int3"}, "quantize", "expected one of none, int8, int4, float32"),
        ({"context": -1}, "context", "setting context: expected `int` >= 0"),
        ({"contxt": 1}, "contxt", "did you mean context?"),
        ({"name": "../x"}, "name", "is not a model name"),
        ({"name": ""}, "name", "is not a model name"),
        ({"name": "a\nb"}, "name", "is not a model name"),
        ({"model": ""}, "model", "the model's name is empty"),
    ],
)
def test_a_wrong_load_names_the_setting(
    server: Running, fields: dict[str, Any], param: str, words: str
) -> None:
    reply = server.call("POST", "/admin/models/load", {"model": "mainspring-guide", **fields})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert words in reply.error["message"]


def test_a_route_without_a_permission_cannot_be_mounted() -> None:
    async def handler(call: Call, _: str) -> None: ...

    with pytest.raises(TypeError, match="permission"):
        Routes([Route("GET", "/x", None, handler)])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Route("GET", "/x", handler=handler)  # type: ignore[call-arg]


def test_every_mounted_route_but_health_asks_for_a_permission(server: Running) -> None:
    routes = {route.path: route.permission for route in Routes(server.app.routes())}
    public = {path for path, permission in routes.items() if permission is Permission.PUBLIC}
    assert public == {"/health/live", "/health/ready"}
    assert len(routes) == 14


# What is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/jsonx"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 200),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "br, gzip"}, 415),
        ({"Content-Encoding": "identity"}, 200),
    ],
)
def test_media(server: Running, headers: dict[str, str], status: int) -> None:
    assert server.call("POST", CHAT, chat_body(), headers).status == status


def test_methods_and_paths(server: Running) -> None:
    reply = server.call("GET", CHAT)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert server.call("DELETE", "/v1/models").status == 405
    assert server.call("GET", "/nothing").error["code"] == "not_found"
    head = server.call("HEAD", "/v1/models")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0


def test_models(server: Running) -> None:
    listed = server.call("GET", "/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["m"]
    assert server.call("GET", "/v1/models/m").json == listed["data"][0]
    assert server.call("GET", "/v1/models/%6D").status == 200
    assert server.call("GET", "/v1/models/%ff").status == 400
    reply = server.call("POST", CHAT, chat_body() | {"model": "n"})
    assert (reply.status, reply.error["param"]) == (404, "model")
    assert "known: m" in reply.error["message"]


def test_request_ids(server: Running) -> None:
    reply = server.call("GET", "/v1/models", headers={"X-Request-Id": "a\tb" + "c" * 500})
    assert reply.headers["x-client-request-id"] == "ab" + "c" * 126
    assert len(reply.headers["x-request-id"]) == 32
    again = server.call("GET", "/v1/models", headers={"X-Request-Id": "same"})
    assert again.headers["x-request-id"] != reply.headers["x-request-id"]


def test_ignored_fields_are_named(server: Running) -> None:
    reply = server.chat(metadata={"a": "b"}, **{"x\r\ny": 1})
    assert reply.headers["x-mainspring-ignored"] == "metadata,xy"


# What is answered -------------------------------------------------------------------------------


def events(data: bytes) -> list[Any]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_a_stream(server: Running) -> None:
    reply = server.chat(stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    deltas = [event["choices"][0]["delta"] for event in events(reply.body)]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]


@pytest.mark.parametrize("error", [None, Overloaded("full", retry_after=1)])
def test_a_long_wait_has_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    monkeypatch.setattr(inference, "QUIET_SECONDS", 0.02)
    script = Script(hold=True, error=error)
    with running(tmp_path, script) as server:
        body = json.dumps(chat_body(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with server.connect() as client:
            client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
            data = b""
            while data.count(b": waiting") < 3:
                data += client.recv(1000)
            script.release()
            reply = Reply.of(data + read_all(client))
    assert reply.status == 200
    rest = reply.body.replace(b": waiting\n\n", b"")
    assert len(reply.body) - len(rest) >= 3 * len(b": waiting\n\n")
    last = events(rest)[-1]
    assert last["error"]["code"] == "overloaded" if error else "choices" in last


def test_leaving_a_long_wait_cancels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "QUIET_SECONDS", 0.02)
    script = Script(hold=True)
    with running(tmp_path, script) as server:
        body = json.dumps(chat_body(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with server.connect() as client:
            client.sendall(head.encode() + body)
            while b": waiting" not in client.recv(1000):
                continue
        assert script.closed.wait(5)
        assert b'finished_reason="abort",model_name="m"} 1.0' in server.call("GET", "/metrics").body


def test_an_error_before_the_first_chunk_has_its_own_status(tmp_path: Path) -> None:
    script = Script(error=Overloaded("full", retry_after=2.3))
    with running(tmp_path, script) as server:
        for stream in (True, False):
            reply = server.chat(stream=stream)
            assert reply.status == 429
            assert reply.headers["retry-after"] == "3"
            assert reply.headers["retry-after-ms"] == "2300"
            assert reply.error["type"] == "rate_limit_error"
        metrics = server.call("GET", "/metrics").body.decode()
        assert 'mainspring_rejections_total{code="overloaded"' in metrics


def test_an_error_in_the_middle_of_a_stream_is_an_event(tmp_path: Path) -> None:
    script = Script(error=InternalError("broken"), error_after=1)
    with running(tmp_path, script) as server:
        last = events(server.chat(stream=True).body)[-1]
        assert last == {
            "error": {
                "message": "broken",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            }
        }
        assert server.chat().status == 500


def test_a_bug_is_an_id_to_the_client_and_a_traceback_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(error=ZeroDivisionError("secret detail"))
    with running(tmp_path, script) as server:
        reply = server.chat()
    assert reply.status == 500
    assert "secret" not in reply.body.decode()
    assert reply.error["code"] == "internal_error"


# Health, metrics --------------------------------------------------------------------------------


def test_ready_follows_the_runtime(tmp_path: Path) -> None:
    script = Script()
    with running(tmp_path, script) as server:
        assert server.call("GET", "/health/ready").status == 200
        script.unhealthy = "no progress for 6 s"
        reply = server.call("GET", "/health/ready")
        assert (reply.status, reply.json["reasons"]) == (503, {"m": "no progress for 6 s"})
        assert server.call("GET", "/health/live").status == 200


def test_metrics_hold_no_names_from_outside(server: Running) -> None:
    server.call("GET", "/nothing-secret")
    server.call("POST", CHAT, chat_body() | {"model": "label-bomb"})
    server.call("BREW", "/v1/models")
    server.chat()
    text = server.call("GET", "/metrics").body.decode()
    assert "secret" not in text
    assert "label-bomb" not in text
    assert "BREW" not in text
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in text
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5' in text
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}' in text


# Loading and unloading --------------------------------------------------------------------------


def test_admin(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with running(tmp_path) as server:
        load = "/admin/models/load"
        reply = server.call("POST", load, {"model": f"other={other}", "max_running": 3})
        assert (reply.status, reply.json["state"]) == (200, "loaded")
        rows = server.call("GET", "/admin/models").json["data"]
        assert [row["name"] for row in rows] == ["m", "other"]
        assert rows[1]["settings"]["max_running"] == 3
        assert rows[1]["stats"]["blocks"] == 10
        reply = server.call("POST", load, {"model": f"other={other}"})
        assert (reply.status, reply.error["code"]) == (409, "conflict")
        assert server.call("POST", load, {"model": str(other), "name": "third"}).status == 200
        assert server.call("POST", load, {"model": "nothing-here"}).status == 404
        reply = server.call("POST", load, {"model": str(other), "quantize": "int3"})
        assert (reply.status, "quantize" in reply.error["message"]) == (400, True)
        assert server.call("POST", load, {"model": str(other), "quant": "int8"}).status == 400
        unload = "/admin/models/unload"
        assert server.call("POST", unload, {"model": "other"}).status == 200
        assert server.call("POST", unload, {"model": "other"}).status == 404
        assert server.script.stopped.is_set()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InsufficientMemory("needs 4.1 GiB, 2.0 free: try --quantize int4"), 507),
        (ModelError("config.json is broken"), 422),
    ],
)
def test_a_load_that_fails_leaves_nothing(tmp_path: Path, error: Any, status: int) -> None:
    script = Script()
    with running(tmp_path, script) as server:
        script.load_error = error
        reply = server.call("POST", "/admin/models/load", {"model": f"x={tmp_path}"})
        assert (reply.status, reply.error["message"]) == (status, error.message)
        assert len(server.call("GET", "/admin/models").json["data"]) == 1


def test_a_model_that_cannot_be_loaded_at_start_ends_the_server(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError),
        running(tmp_path, Script(load_error=ModelError("no"))),
    ):
        pass


# The end ----------------------------------------------------------------------------------------


def test_draining(tmp_path: Path) -> None:
    script = Script(hold=True)
    with running(tmp_path, script) as server:
        replies = []
        asking = threading.Thread(target=lambda: replies.append(server.chat()))
        asking.start()
        assert script.entered.wait(5)
        assert script.loop
        script.loop.call_soon_threadsafe(server.app.stop)
        while (reply := server.call("GET", "/health/ready")).status == 200:
            continue
        assert reply.json["reasons"] == {"server": "shutting down"}
        refused = server.chat()
        assert (refused.status, refused.error["code"]) == (503, "unavailable")
        assert "retry-after" in refused.headers
        script.release()
        asking.join(5)
        assert replies[0].status == 200
        assert script.stopped.wait(5)


def test_a_drain_ends_in_time(tmp_path: Path) -> None:
    script = Script(hold=True)
    with running(tmp_path, script, drain_seconds=0.1) as server:
        client = server.connect()
        body = json.dumps(chat_body()).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert script.entered.wait(5)
        assert script.loop
        script.loop.call_soon_threadsafe(server.app.stop)
        assert script.closed.wait(5)
        client.close()
