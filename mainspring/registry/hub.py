"""A client of the Hugging Face hub's HTTP API: list a repository, read a file from an offset.

Why not the huggingface_hub package: its download checks sizes but not the sha256 of what arrived,
keeps its own cache of links, and costs 200 ms of imports. What is needed here are two requests.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import IO, Any

import msgspec
from msgspec import Struct

from mainspring.errors import (
    BadRequest,
    Forbidden,
    MainspringError,
    ModelError,
    ModelNotFound,
    Unavailable,
)

__all__ = ["Cut", "Hub", "HubFile", "Listing"]

DEFAULT_ENDPOINT = "https://huggingface.co"
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,200}")
SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LISTING_LIMIT = 64 << 20
TIMEOUT = 30.0


class Cut(Exception):
    """The connection failed in a way that another attempt may survive."""


class HubFile(Struct, frozen=True, kw_only=True):
    """A file as the hub lists it, with at least one digest."""

    name: str
    size: int
    sha256: str = ""
    """of the content; large files have it"""
    blob: str = ""
    """git's sha1 of the content; small files have only this"""


class Listing(Struct, frozen=True, kw_only=True):
    id: str
    commit: str
    names: tuple[str, ...]
    """every file of the repository, sized and with a digest or not"""
    files: dict[str, HubFile]


class _Lfs(Struct):
    sha256: str = ""
    size: int = -1


class _Sibling(Struct):
    rfilename: str
    size: int | None = None
    blobId: str | None = None
    lfs: _Lfs | None = None


class _Model(Struct):
    sha: str
    id: str = ""
    siblings: list[_Sibling] = []


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but the token stays with the host it is meant for."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message | http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme != "https" and new.scheme != old.scheme:
            raise ModelError(f"the hub redirects from {old.scheme} to {new.scheme}: refused")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if made is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            made.remove_header("Authorization")
        return made


class Hub:
    """One hub. `endpoint` is its address, `token` the bearer token for private repositories."""

    def __init__(self, endpoint: str = DEFAULT_ENDPOINT, token: str = "") -> None:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise BadRequest(f"HF_ENDPOINT is {endpoint!r}: write it as https://HOST")
        if not (token.isascii() and token.isprintable()):
            raise BadRequest("HF_TOKEN holds what no header can carry: check its value")
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        self._opener = urllib.request.build_opener(_Redirects())

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Hub:
        """The hub that HF_ENDPOINT and HF_TOKEN name."""
        return cls(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT, environ.get("HF_TOKEN", ""))

    def url(self, id: str) -> str:
        return f"{self.endpoint}/{id}"

    def listing(self, id: str, revision: str) -> Listing:
        """The repository's files at `revision` (branch, tag or commit), pinned to a commit.

        Raises BadRequest, ModelNotFound, Forbidden, ModelError, or Cut.
        """
        if ID.fullmatch(id) is None:
            raise BadRequest(f"{id[:100]!r} is not OWNER/NAME of a hub, nor a directory here")
        if REVISION.fullmatch(revision) is None or ".." in revision:
            raise BadRequest(f"{revision[:100]!r} is not a branch, tag or commit")
        quoted = urllib.parse.quote(revision, safe="")
        with self._request(f"/api/models/{id}/revision/{quoted}?blobs=true", id, revision) as reply:
            model = _decode(_limited(reply), _Model)
        if SHA1.fullmatch(model.sha) is None:
            raise ModelError(f"the hub gives no commit for {id}@{revision}: cannot pin it")
        return Listing(
            id=id,
            commit=model.sha,
            names=tuple(s.rfilename for s in model.siblings),
            files={s.rfilename: _file(s) for s in model.siblings},
        )

    def open(self, listing: Listing, name: str, start: int) -> http.client.HTTPResponse:
        """The file's bytes from `start` on; status 206, or 200 when the hub sends all of them."""
        path = f"/{listing.id}/resolve/{listing.commit}/{urllib.parse.quote(name)}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self._request(path, listing.id, listing.commit, headers)

    def similar(self, id: str) -> list[str]:
        """Ids that resemble `id`, best first; none when the hub does not answer."""
        words = urllib.parse.quote(id.rpartition("/")[2])
        try:
            with self._request(f"/api/models?search={words}&limit=3", id, "") as reply:
                found = _decode(_limited(reply), list[dict[str, Any]])
        except (MainspringError, Cut):
            return []
        names = (entry.get("id") for entry in found)
        return [name for name in names if isinstance(name, str) and ID.fullmatch(name)]

    def _request(
        self, path: str, id: str, revision: str, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.endpoint + path, headers=dict(headers or {}))
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", "mainspring")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            return self._opener.open(request, timeout=TIMEOUT)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error, id, revision) from error
        except urllib.error.URLError as error:
            raise Cut(str(getattr(error.reason, "strerror", None) or error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Cut(str(error) or type(error).__name__) from error

    def _refusal(self, error: urllib.error.HTTPError, id: str, revision: str) -> Exception:
        code = error.headers.get("X-Error-Code", "")
        if error.code == 429 or error.code >= 500:
            return Cut(f"the hub answers {error.code}")
        if error.code == 416:
            return Cut("the hub refuses to continue the file")
        if code == "RevisionNotFound":
            return ModelNotFound(f"{id} has no revision {revision!r}: leave it out to take main")
        if code == "GatedRepo" or error.code == 403:
            return Forbidden(
                f"{id} needs its owner's permission: ask on {self.url(id)}, then set HF_TOKEN"
            )
        if error.code == 401 and code != "RepoNotFound":
            return Forbidden(
                f"the hub refuses HF_TOKEN for {id}: make a new token with read access"
            )
        if error.code in {401, 404}:
            hint = "check the spelling" if self._token else "check the spelling, or set HF_TOKEN"
            return ModelNotFound(f"{self.url(id)} does not exist or is private: {hint}")
        if error.code < 400:
            return ModelError(f"the hub redirects {id} to an address that is refused")
        return Unavailable(f"the hub answers {error.code} for {id}: check HF_ENDPOINT")


def _file(sibling: _Sibling) -> HubFile:
    """Digests of a wrong form count as none."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    blob = sibling.blobId or ""
    size = sibling.lfs.size if sibling.lfs and sibling.lfs.size >= 0 else sibling.size
    return HubFile(
        name=sibling.rfilename,
        size=-1 if size is None else size,
        sha256=sha256 if SHA256.fullmatch(sha256) else "",
        blob="" if sibling.lfs or not SHA1.fullmatch(blob) else blob,
    )


def _limited(reply: http.client.HTTPResponse) -> bytes:
    try:
        data = reply.read(LISTING_LIMIT + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Cut(str(error) or type(error).__name__) from error
    if len(data) > LISTING_LIMIT:
        raise ModelError("the hub's listing is larger than 64 MiB: refused")
    return data


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except ValueError as error:
        raise Unavailable(
            f"the hub's answer is not what its API says ({error}): check HF_ENDPOINT"
        ) from error
