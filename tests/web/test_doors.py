"""Who may do what, from which door; and what browsers are kept from."""

from __future__ import annotations

import os

import pytest

from gateway.web.doors import (
    Caller,
    Role,
    comes_from_elsewhere,
    host_of,
    is_ours,
    visitor_without_token,
)

OWN = os.geteuid()


@pytest.mark.parametrize(
    ("caller", "has_tokens", "role"),
    [
        (Caller("unix", "x", uid=OWN), False, Role.FULL),
        (Caller("unix", "x", uid=OWN), True, Role.FULL),
        (Caller("unix", "x", uid=0), True, Role.FULL),
        (Caller("unix", "x", uid=OWN + 1), False, Role.LOOK),
        (Caller("unix", "x"), False, Role.LOOK),
        (Caller("loopback", "x"), False, Role.LOOK),
        (Caller("loopback", "x"), True, Role.LOOK),
        (Caller("loopback", "x", certified="cn:me"), False, Role.FULL),
        (Caller("other", "x", certified="cn:me"), False, Role.FULL),
        (Caller("other", "x", certified="cn:me"), True, None),
        (Caller("other", "x"), True, None),
        (Caller("other", "x"), False, None),
    ],
)
def test_without_a_token(caller: Caller, has_tokens: bool, role: Role | None) -> None:
    assert visitor_without_token(caller, has_tokens=has_tokens).role is role


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost:10811", "localhost"),
        ("127.0.0.1:10811", "127.0.0.1"),
        ("[::1]:10811", "::1"),
        ("[::1]", "::1"),
        ("gw:", "gw"),
        ("", None),
        (":80", None),
        ("[::1", None),
        ("[evil]", None),
        ("[::1]evil", None),
        ("a:b", None),
        ("a:80:80", None),
        ("a:\u0661", None),
    ],
)
def test_a_host(header: str, host: str | None) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("localhost:1", True),
        ("localhost.", True),
        ("10.1.2.3:10811", True),
        ("[fe80::1]", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_a_name_of_somebody_elses_is_none_of_ours(header: str, ours: bool) -> None:
    assert is_ours(header, {"localhost"}) is ours


@pytest.mark.parametrize(
    ("origin", "site", "elsewhere"),
    [
        (None, None, False),  # a program
        ("http://localhost:1", None, False),
        ("http://LOCALHOST:1", "same-origin", False),
        ("https://localhost:1", None, False),
        (None, "none", False),
        ("http://localhost:2", None, True),
        ("http://localhost", None, True),
        ("http://evil.example", None, True),
        ("null", None, True),
        ("file://", None, True),
        ("http://localhost:1", "cross-site", True),
        (None, "same-site", True),
    ],
)
def test_a_page_of_somebody_elses(origin: str | None, site: str | None, elsewhere: bool) -> None:
    assert comes_from_elsewhere("localhost:1", origin, site) is elsewhere
