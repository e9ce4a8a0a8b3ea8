"""Routes: a path, who may call it, and what answers."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import unquote

from msgspec import Struct

from mainspring.api.call import Call
from mainspring.errors import BadRequest, MethodNotAllowed, NotFound
from mainspring.gateway.identity import Permission

__all__ = ["Handler", "Route", "Routes"]

Handler = Callable[[Call, str], Awaitable[None]]
"""Gets the call and what stands for the path's variable part, "" without one."""
VARIABLE = "/{name}"


class Route(Struct, frozen=True):
    """`path` may end in /{name}, which takes all the rest, percent-decoded."""

    method: str
    path: str
    permission: Permission
    handler: Handler

    def match(self, path: str) -> str | None:
        """The variable part of `path`; "" without one; None when this is another's path.

        Only the exact spelling matches: no case folding, no dot segments, no decoding.
        """
        if not self.path.endswith(VARIABLE):
            return "" if path == self.path else None
        prefix = self.path.removesuffix(VARIABLE) + "/"
        rest = path.removeprefix(prefix)
        return rest if path.startswith(prefix) and rest else None


class Routes:
    """All routes of a server. One without a permission cannot be mounted."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: list[Route] = []
        for route in routes:
            if not isinstance(route.permission, Permission):
                raise TypeError(f"{route.method} {route.path} has no permission")
            self._routes.append(route)

    def __iter__(self) -> Iterable[Route]:
        return iter(self._routes)

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route and the decoded variable part. Raises NotFound or MethodNotAllowed."""
        methods = set()
        for route in self._routes:
            rest = route.match(path)
            if rest is None:
                continue
            if method == route.method or (method == "HEAD" and route.method == "GET"):
                return route, _decoded(rest)
            methods.add(route.method)
        if methods:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(f"{path[:100]} takes {allowed}", allowed=allowed)
        raise NotFound(f"there is nothing at {path[:100]}; {self._hint(path)}")

    def _hint(self, path: str) -> str:
        """Most clients that miss have left out /v1, or the end of a path."""
        paths = [route.path for route in self._routes if not route.path.endswith(VARIABLE)]
        if near := difflib.get_close_matches(path[:100], paths, n=1, cutoff=0.7):
            return f"did you mean {near[0]}?"
        return f"there are {', '.join(paths)}"


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise BadRequest("the path is not UTF-8 after percent-decoding") from error
