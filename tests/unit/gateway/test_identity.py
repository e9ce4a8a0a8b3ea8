from __future__ import annotations

import pytest

from mainspring.errors import BadRequest, Forbidden, Unauthenticated
from mainspring.gateway.identity import PUBLIC, Keys, Permission, check_exposure, is_loopback


def test_without_keys_everyone_is_the_local_user() -> None:
    keys = Keys(())
    assert keys.identify(None) == keys.identify("Bearer whatever")
    for permission in Permission:
        keys.identify(None).check(permission)


def test_keys_are_told_apart_and_never_kept() -> None:
    keys = Keys(["sesame-one", "sesame-two"])
    one, two = keys.identify("Bearer sesame-one"), keys.identify("Bearer sesame-two")
    assert one.tenant != two.tenant
    assert one == Keys(["other", "sesame-one"]).identify("Bearer sesame-one")
    assert "sesame" not in repr([vars(keys), one, two])


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "sesame",
        "Basic sesame",
        "Bearer SESAME",
        "Bearer sesame x",
        "Bearer sesame\0",
        "Bearer ' OR 1=1 --",
        "Bearer %",
        "Bearer " + "x" * 1_000_000,
        "Bearer \udcff",
    ],
)
def test_anything_else_is_nobody(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        Keys(["sesame"]).identify(header)


@pytest.mark.parametrize("key", ["", " a", "a\n", "a\0"])
def test_keys_that_cannot_be_sent(key: str) -> None:
    with pytest.raises(BadRequest):
        Keys([key])


def test_permissions() -> None:
    PUBLIC.check(Permission.PUBLIC)
    with pytest.raises(Forbidden, match="admin"):
        PUBLIC.check(Permission.ADMIN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, ())


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.nip.io"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
    check_exposure(host, ["key"])
    for keys in ((), [""]):
        with pytest.raises(BadRequest, match="MAINSPRING_API_KEY"):
            check_exposure(host, keys)
