"""Speaks to the server that runs on this machine, over plain HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from mainspring.config import Config
from mainspring.errors import (
    BadRequest,
    InternalError,
    MainspringError,
    Unauthenticated,
    Unavailable,
)

__all__ = ["Client"]

ANSWER_LIMIT = 16 << 20
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Client:
    """One server. Every method raises Unavailable when it does not answer."""

    def __init__(self, config: Config, *, timeout: float = 30.0) -> None:
        self.host = EVERY_ADDRESS.get(config.host, config.host)
        self.port = config.port
        self.timeout = timeout
        self._key = config.api_keys[0] if config.api_keys else ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise BadRequest("MAINSPRING_API_KEY holds what no header can carry: check its value")

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        return self._json("GET", path, None)

    def models(self) -> list[dict[str, Any]]:
        """The rows of /admin/models."""
        answer = self.get("/admin/models")
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Unavailable(
                f"{self.address} does not answer as Mainspring does: another program?"
            )
        return rows

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON of a POST."""
        return self._json("POST", path, body)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer. Closing the iterator ends the connection."""
        with closing(self._connection()) as connection:
            reply = self._send(connection, "POST", path, body)
            for data in _events(reply):
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise _refusal(500, event, self.address)
                yield event

    def _json(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        with closing(self._connection()) as connection:
            reply = self._send(connection, method, path, body)
            try:
                return json.loads(reply.read(ANSWER_LIMIT))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Unavailable(
                    f"{self.address} did not answer as Mainspring does ({error}): another program?"
                ) from error

    def _connection(self) -> http.client.HTTPConnection:
        try:
            return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        except http.client.InvalidURL as error:
            raise BadRequest(f"{self.host!r} is not a host: give a name or an address") from error

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: dict[str, Any] | None,
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json, text/event-stream"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, path, body=data, headers=headers)
            reply = connection.getresponse()
            if reply.status < 400:
                return reply
            answer = reply.read(ANSWER_LIMIT)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unavailable(
                f"no server answers at {self.address} ({reason}): start one with `mainspring "
                "serve`, or name another with --port"
            ) from error
        try:
            raise _refusal(reply.status, json.loads(answer), self.address)
        except ValueError as error:
            raise Unavailable(
                f"{self.address} answers {reply.status} without saying why: another program?"
            ) from error


def _refusal(status: int, answer: Any, address: str) -> MainspringError:
    """The server's error in the OpenAI shape as our own."""
    inner = answer.get("error") if isinstance(answer, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else None
    if status == 401:
        return Unauthenticated(
            f"{address} wants an API key: set MAINSPRING_API_KEY to one that it knows"
        )
    error = InternalError(str(message or f"{address} answers {status}"))
    error.code = str(inner.get("code") or "") if isinstance(inner, dict) else ""
    return error


def _events(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of server-sent events; raises Unavailable when the stream breaks off."""
    parts: list[bytes] = []
    try:
        while line := reply.readline(ANSWER_LIMIT):
            line = line.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                parts.append(line[5:].removeprefix(b" "))
            elif not line and parts:
                yield b"\n".join(parts)
                parts = []
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the answer broke off ({error}): ask again") from error
