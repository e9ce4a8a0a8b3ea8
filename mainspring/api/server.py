"""The ASGI application: guards, routes, errors, one log line a request.

The server that runs it cancels the application's task when the client leaves; that is how a
disconnect becomes a cancelled generation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from mainspring.api.call import Call
from mainspring.api.exchange import Receive, Scope, Send
from mainspring.api.routes import Routes
from mainspring.errors import Forbidden, InternalError, MainspringError, Misdirected
from mainspring.gateway.identity import Keys, Permission, is_loopback
from mainspring.telemetry.log import pairs

__all__ = ["Server", "Sites"]

GONE = 499
"""In log and metrics: the client left before the answer's end."""

log = logging.getLogger(__name__)


class Sites:
    """The Host names and Origins that this server answers to.

    A page on another site can make a browser send requests here, under a name of its choice that
    resolves to this machine (DNS rebinding). An address is never such a name; loopback names and
    those that the operator allowed are known.
    """

    def __init__(self, host: str, allowed: tuple[str, ...]) -> None:
        self._all = "*" in allowed
        self._names = {name.lower() for name in (host, "localhost", *allowed)}

    def check_host(self, header: str | None) -> None:
        """Raises Misdirected."""
        name = _host_of(f"//{header}")
        if not self._known(name):
            raise Misdirected(
                f"this server does not answer to the host {name[:100]!r}: the operator can add "
                f"it with --allowed-hosts"
            )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raises Forbidden for a browser's request from a page that is not ours or local."""
        if origin is None:
            return
        name = _host_of(origin)
        same = origin.partition("://")[2].lower() == (host or "").lower()
        if not (same or is_loopback(name)):
            raise Forbidden("requests from web pages of other sites are refused")

    def _known(self, name: str) -> bool:
        return self._all or name in self._names or _is_address(name)


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()


class Server:
    """One ASGI application over all routes."""

    def __init__(
        self,
        routes: Routes,
        keys: Keys,
        sites: Sites,
        count: Callable[[str, str, int], None],
    ) -> None:
        self._routes = routes
        self._keys = keys
        self._sites = sites
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, not {scope['type']}")
        call = Call(scope, receive, send)
        try:
            await self._answer(call)
        except asyncio.CancelledError:
            call.status = GONE
            raise
        finally:
            self._note(call)

    async def _answer(self, call: Call) -> None:
        try:
            await self._dispatch(call)
        except MainspringError as error:
            if call.status:
                raise
            if error.detail:
                log.warning("%s", pairs(id=call.id, code=error.code, detail=error.detail))
            await call.fail(error)
        except Exception:  # the process edge: the client gets an id, the log the rest
            log.exception("request failed id=%s", call.id)
            if call.status:
                raise
            message = f"internal error; the server's log has it as {call.id}"
            await call.fail(InternalError(message))

    async def _dispatch(self, call: Call) -> None:
        host = call.header(b"host")
        self._sites.check_host(host)
        self._sites.check_origin(call.header(b"origin"), host)
        route, rest = self._routes.find(call.method, call.path)
        call.route = route.path
        if route.permission is not Permission.PUBLIC:
            call.identity = self._keys.identify(call.header(b"authorization"))
            call.identity.check(route.permission)
        await route.handler(call, rest)

    def _note(self, call: Call) -> None:
        method = call.method if call.method in {"GET", "HEAD", "POST"} else "other"
        self._count(call.route, method, call.status)
        probe = call.route.startswith("/health/") or (call.record is None and call.status == 200)
        level = logging.DEBUG if probe else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "%s", _line(call))


def _line(call: Call) -> str:
    record = call.record
    fields = {
        "id": call.id,
        "route": call.route,
        "method": call.method[:16],
        "status": call.status,
        "who": call.identity.name,
        "seconds": time.monotonic() - call.started,
    }
    if record is not None:
        fields |= {
            "model": record.model,
            "outcome": record.outcome,
            "code": record.code or None,
            "prompt": record.usage.prompt,
            "cached": record.usage.cached,
            "output": record.usage.output,
        }
        if record.timings is not None:
            fields |= {
                "queue": record.timings.queue,
                "first": record.timings.first_token,
                "decode": record.timings.decode,
            }
    return "request " + pairs(**fields)
