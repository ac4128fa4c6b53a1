"""Who somebody is, in the words of a command line: what `--as` and `--from` say of a client that is not there.

We reckon as if TLS had proved what is said. A client with a certificate's name has a certificate, and a client
with a certificate or a pre-shared key comes over TLS.
"""

from __future__ import annotations

import pwd
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from gateway import clock
from gateway.cli import UsageError

if TYPE_CHECKING:
    from gateway.identity import Address, Identity, UnixPeer

CERTIFICATE = ("cn", "issuer-cn", "san-dns", "san-uri")
"""What a certificate says; each may be given several times."""

KEYS = (*CERTIFICATE, "fingerprint", "psk-user", "unix-user", "tls")

UNKNOWN_FINGERPRINT = 64 * "0"
"""The fingerprint of a certificate of which only names are said."""

TLS_VERSION, CIPHER = "TLSv1.3", "TLS_AES_256_GCM_SHA384"
"""What two peers of today agree on. No rule looks at it."""


def identity_of(claims: Sequence[str], address: str | None) -> Identity:
    """Give the identity that is claimed. Raises `UsageError`."""
    from gateway.identity import Identity

    said = _parsed(claims)
    certified = any(said[key] for key in (*CERTIFICATE, "fingerprint"))
    user = _single(said, "psk-user")
    unix = _unix_peer(said, address)
    if certified and user is not None:
        raise UsageError("--as psk-user stands beside a certificate: TLS takes one or the other")
    source = None if address is None else _address(address)
    tls = _comes_over_tls(said, proved=certified or user is not None)
    return Identity(
        peer=str(unix or source or ""),
        address=source,
        unix=unix,
        psk_user=user,
        subject=tuple(("CN", name) for name in said["cn"]),
        common_names=said["cn"],
        dns_names=said["san-dns"],
        uris=said["san-uri"],
        issuer_common_names=said["issuer-cn"],
        fingerprint=_fingerprint(said) if certified else None,
        tls_version=TLS_VERSION if tls else None,
        cipher=CIPHER if tls else None,
    )


def time_of(text: str | None) -> datetime:
    """Give the time that is said, with its zone; if none is, now. Raises `UsageError`."""
    if text is None:
        return clock.here()
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise UsageError(
            f'--at: expected a time such as "2026-11-21T12:00", got "{text}"'
        ) from None


def _parsed(claims: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    said: dict[str, tuple[str, ...]] = dict.fromkeys(KEYS, ())
    for claim in claims:
        key, equals, value = claim.partition("=")
        if claim == "tls":
            key, equals, value = "tls", "=", "true"
        if key not in said:
            raise UsageError(f'--as: expected one of {", ".join(KEYS)}, got "{key}"{_hint(key)}')
        if not equals or not value:
            raise UsageError(f'--as: expected {key}=VALUE, got "{claim}"')
        said[key] += (value,)
    return said


def _hint(key: str) -> str:
    from gateway.config.base import did_you_mean

    return did_you_mean(key.lower().replace("_", "-"), [*KEYS])


def _single(said: Mapping[str, tuple[str, ...]], key: str) -> str | None:
    values = said[key]
    if len(values) > 1:
        raise UsageError(f"--as: expected {key} once, got {' and '.join(values)}")
    return values[0] if values else None


def _comes_over_tls(said: Mapping[str, tuple[str, ...]], *, proved: bool) -> bool:
    value = _single(said, "tls")
    if value not in (None, "true", "false"):
        raise UsageError(f'--as: expected tls, tls=true or tls=false, got "tls={value}"')
    if proved and value == "false":
        raise UsageError("--as tls=false: without TLS a client shows no certificate and no key")
    return proved or value == "true"


def _fingerprint(said: Mapping[str, tuple[str, ...]]) -> str:
    value = _single(said, "fingerprint")
    if value is None:
        return UNKNOWN_FINGERPRINT
    digits = value.replace(":", "").lower()
    if len(digits) != len(UNKNOWN_FINGERPRINT) or not set(digits) <= set("0123456789abcdef"):
        raise UsageError(
            "--as fingerprint: expected the SHA-256 of a certificate, 64 hexadecimal digits,"
            f' got "{value}"'
        )
    return digits


def _unix_peer(said: Mapping[str, tuple[str, ...]], address: str | None) -> UnixPeer | None:
    from gateway.identity import UnixPeer

    value = _single(said, "unix-user")
    if value is None:
        return None
    if address is not None:
        raise UsageError("--as unix-user and --from: who comes over a Unix socket has no address")
    number = int(value) if value.isascii() and value.isdecimal() else None
    try:
        entry = pwd.getpwnam(value) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError, OverflowError):
        if number is None:
            raise UsageError(f'--as: there is no user "{value}" on this machine') from None
        return UnixPeer(0, number, number)
    return UnixPeer(0, entry.pw_uid, entry.pw_gid)


def _address(text: str) -> Address:
    from gateway.identity import parse_address

    try:
        return parse_address(text)
    except ValueError:
        raise UsageError(
            f'--from: expected an IP address such as "10.1.2.3", got "{text}"'
        ) from None
