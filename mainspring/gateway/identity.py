"""Who asks, and what they may do."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from mainspring.errors import BadRequest, Forbidden, Unauthenticated

__all__ = ["Identity", "Keys", "Permission", "check_exposure", "is_loopback"]


class Permission(StrEnum):
    """What a route asks of the caller."""

    PUBLIC = "public"
    """nothing, not even a key"""
    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


EVERYTHING = frozenset(Permission)


class Identity(Struct, frozen=True):
    """One caller."""

    name: str
    """For the log; tells nothing of the key."""
    tenant: str
    permissions: frozenset[Permission] = EVERYTHING

    def check(self, permission: Permission) -> None:
        """Raises Forbidden without `permission`."""
        if permission is not Permission.PUBLIC and permission not in self.permissions:
            raise Forbidden(f"this key lacks the permission {permission.value!r}")


ANONYMOUS = Identity("local", "")
"""Whoever reaches a server without keys, which listens on loopback only."""
PUBLIC = Identity("public", "", frozenset())


class Keys:
    """The API keys of one server. Holds digests only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._identities: list[tuple[bytes, Identity]] = []
        for key in keys:
            if not key or key != key.strip() or not key.isprintable():
                raise BadRequest(
                    "an API key must be printable, without spaces around it, and not empty",
                    param="api_keys",
                )
            digest = hashlib.sha256(key.encode()).digest()
            tenant = hashlib.sha256(b"tenant" + digest).hexdigest()[:16]
            self._identities.append((digest, Identity(f"key-{tenant[:8]}", tenant)))

    def identify(self, authorization: str | None) -> Identity:
        """The caller behind an Authorization header. Raises Unauthenticated.

        Takes the same time for every wrong key: all digests are compared, each in constant time.
        """
        if not self._identities:
            return ANONYMOUS
        if authorization is None:
            raise Unauthenticated("an API key is needed: send `Authorization: Bearer KEY`")
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, identity in self._identities:
            if hmac.compare_digest(digest, given):
                found = identity
        if found is None or scheme.lower() != "bearer":
            raise Unauthenticated("the API key is not one that this server knows")
        return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address bound at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(host: str, keys: Iterable[str]) -> None:
    """Raises BadRequest where a server without keys would be open to the network."""
    if not is_loopback(host) and not any(keys):
        raise BadRequest(
            f"refusing to listen on {host} without an API key: set MAINSPRING_API_KEY, or leave "
            "--host at 127.0.0.1",
            param="host",
        )
