"""A hub on loopback with the endpoints that `pull` uses, and faults to order."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    files: dict[str, bytes]
    large: tuple[str, ...] = ("model.safetensors",)
    """listed with a sha256, as LFS files are"""
    token: str = ""
    gated: bool = False
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """listed fields that lie, by file"""


@dataclass
class Faults:
    cut_after: list[int] = field(default_factory=list)
    """each next download of a weight file ends after so many bytes"""
    refuse: list[int] = field(default_factory=list)
    """each next request is answered with this status"""
    corrupt: int = 0
    """so many next downloads of weight files have their first byte flipped"""
    ranges: bool = True
    endless: bool = False
    """weight files send more bytes than they have"""
    elsewhere: str = ""
    """base URL to redirect downloads to"""


@dataclass
class TestHub:
    __test__ = False
    repositories: dict[str, Repository]
    address: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def of(self, text: str) -> list[dict[str, str]]:
        """The headers of the requests whose path has `text`."""
        return [headers for path, headers in self.requests if text in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: TestHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.faults.refuse:
            self.answer(self.hub.faults.refuse.pop(0))
            return
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/api/models":
            wanted = urllib.parse.parse_qs(url.query)["search"][0].lower()
            found = [{"id": name} for name in self.hub.repositories if wanted[:3] in name.lower()]
            self.answer(200, json.dumps(found).encode())
        elif url.path.startswith("/api/models/"):
            id, _, revision = url.path[len("/api/models/") :].partition("/revision/")
            self.listing(id, urllib.parse.unquote(revision))
        else:
            id, _, rest = url.path[1:].partition("/resolve/")
            self.download(id, *urllib.parse.unquote(rest).split("/", 1))

    def repository(self, id: str) -> Repository | None:
        found = self.hub.repositories.get(id)
        if found is None:
            self.answer(401, X_Error_Code="RepoNotFound")
            return None
        if found.token and self.headers.get("Authorization") != f"Bearer {found.token}":
            wrong = "Authorization" in self.headers
            self.answer(401, **({} if wrong else {"X_Error_Code": "RepoNotFound"}))
            return None
        if found.gated:
            self.answer(403, X_Error_Code="GatedRepo")
            return None
        return found

    def listing(self, id: str, revision: str) -> None:
        if (found := self.repository(id)) is None:
            return
        if revision not in {"main", "refs/pr/1", COMMIT}:
            self.answer(404, X_Error_Code="RevisionNotFound")
            return
        siblings = []
        for name, data in found.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name in found.large:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(entry | found.changes.get(name, {}))
        self.answer(200, json.dumps({"id": id, "sha": COMMIT, "siblings": siblings}).encode())

    def download(self, id: str, commit: str, name: str) -> None:
        if self.hub.faults.elsewhere:
            self.answer(302, Location=self.hub.faults.elsewhere + self.path)
            return
        if (found := self.repository(id)) is None:
            return
        if commit != COMMIT or name not in found.files:
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        self.send(found.files[name], weights=name in found.large)

    def send(self, data: bytes, *, weights: bool) -> None:
        faults, start, whole = self.hub.faults, 0, len(data)
        if weights and faults.corrupt:
            faults.corrupt -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        if weights and faults.endless:
            data += b"x" * 4096
        asked = self.headers.get("Range", "")
        if asked and faults.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data)
        if weights and faults.cut_after:
            end = start + faults.cut_after.pop(0)
            self.close_connection = True
        self.wfile.write(data[start:end])


@contextmanager
def serve_hub(**repositories: Repository) -> Iterator[TestHub]:
    """A running hub; `owner__name` names the repository owner/name."""
    hub = TestHub({name.replace("__", "/"): found for name, found in repositories.items()})
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
