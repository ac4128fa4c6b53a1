"""--as, --from and --at: who is meant, and what is said of those who cannot be."""

from __future__ import annotations

import os
import pwd
from datetime import datetime

import pytest

from gateway.cli import UsageError
from gateway.cli.claims import UNKNOWN_FINGERPRINT, identity_of, time_of
from gateway.identity import Identity, parse_address

ME = pwd.getpwuid(os.getuid())


@pytest.mark.parametrize(
    ("claims", "proved"),
    [
        ([], {}),
        (["tls"], {"tls": True}),
        (["tls=true"], {"tls": True}),
        (["tls=false"], {"tls": False}),
        (
            ["cn=backup-7"],
            {"common_names": ("backup-7",), "fingerprint": UNKNOWN_FINGERPRINT, "tls": True},
        ),
        (["cn=a", "cn=b"], {"common_names": ("a", "b"), "subject": (("CN", "a"), ("CN", "b"))}),
        (["cn=x,CN=admin"], {"common_names": ("x,CN=admin",)}),
        (["issuer-cn=Backup CA"], {"issuer_common_names": ("Backup CA",), "tls": True}),
        (["san-dns=a.example", "tls"], {"dns_names": ("a.example",)}),
        (["san-uri=spiffe://a/b?c=d"], {"uris": ("spiffe://a/b?c=d",)}),
        (["fingerprint=" + ":".join(32 * ["AB"])], {"fingerprint": 32 * "ab", "tls": True}),
        (["psk-user=joe"], {"psk_user": "joe", "fingerprint": None, "tls": True}),
    ],
)
def test_who_is_meant(claims: list[str], proved: dict[str, object]) -> None:
    identity = identity_of(claims, "::ffff:10.1.2.3")
    assert identity.address == parse_address("10.1.2.3")
    assert {name: getattr(identity, name) for name in proved} == proved


def test_nobody() -> None:
    assert identity_of([], None) == Identity()


@pytest.mark.parametrize("who", [ME.pw_name, str(ME.pw_uid)])
def test_a_unix_user(who: str) -> None:
    peer = identity_of([f"unix-user={who}"], None).unix
    assert peer is not None
    assert (peer.uid, peer.gid) == (ME.pw_uid, ME.pw_gid)


def test_a_unix_user_who_has_no_name_here() -> None:
    peer = identity_of(["unix-user=3999999999"], None).unix
    assert peer is not None
    assert peer.uid == 3999999999


@pytest.mark.parametrize(
    ("claims", "address", "mistake"),
    [
        (["joe"], None, 'expected one of cn, issuer-cn, .*, tls, got "joe"$'),
        (["psk_user=joe"], None, 'got "psk_user", did you mean "psk-user"'),
        (["cn"], None, 'expected cn=VALUE, got "cn"'),
        (["cn="], None, 'expected cn=VALUE, got "cn="'),
        (["tls=yes"], None, 'expected tls, tls=true or tls=false, got "tls=yes"'),
        (["tls=false", "cn=a"], None, "without TLS a client shows no certificate"),
        (["tls=false", "psk-user=a"], None, "without TLS a client shows no certificate"),
        (["cn=a", "psk-user=a"], None, "TLS takes one or the other"),
        (["psk-user=a", "psk-user=b"], None, "expected psk-user once, got a and b"),
        (["fingerprint=ab"], None, '64 hexadecimal digits, got "ab"'),
        (["unix-user=no such user"], None, 'there is no user "no such user" on this machine'),
        (["unix-user=0"], "10.0.0.1", "who comes over a Unix socket has no address"),
        ([], "10.0.0", 'expected an IP address such as "10.1.2.3", got "10.0.0"'),
    ],
)
def test_who_cannot_be_meant(claims: list[str], address: str | None, mistake: str) -> None:
    with pytest.raises(UsageError, match=mistake):
        identity_of(claims, address)


def test_when() -> None:
    assert time_of("2026-11-21T12:00") == datetime(2026, 11, 21, 12).astimezone()
    assert time_of("2026-11-21T12:00+00:00").timestamp() == 1795262400
    assert time_of(None).tzinfo is not None
    with pytest.raises(UsageError, match='such as "2026-11-21T12:00", got "noon"'):
        time_of("noon")
