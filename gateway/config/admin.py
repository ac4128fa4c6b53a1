"""`[admin]`: where a gateway is looked at and told what to do over HTTP, and by whom.

Nobody is listened to without this table. What it says by default is what does no harm on a machine that others
use as well: a loopback address, where who has no token may look and not do. A Unix socket is for those whom its
mode lets in. Everything else asks for a token or for a client's certificate; `checks.py` refuses it otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, PlainValidator

from gateway.config.base import TEXT_OR_TEXTS, Section, shown, texts
from gateway.config.values import File, SocketMode
from gateway.uri import check_socket_path

DEFAULT_PORT = 10811
"""Beside NBD's own 10809, and 10810 of the gateway."""

_EXPECTED = 'expected "http://127.0.0.1:10811", "https://HOST:PORT" or "http+unix:///PATH"'

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.IGNORECASE)
"""A name as DNS has them (RFC 1123, 2.1), to listen at or to be called by; underscores are in none."""


@dataclass(frozen=True, slots=True)
class AdminUri:
    """An address of HTTP: `path` for a Unix socket, else `host` and `port`."""

    secure: bool = False
    host: str = ""
    port: int = DEFAULT_PORT
    path: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Nobody beyond this machine gets there."""
        return self.host == "localhost" or (is_address(self.host) and _is_loopback(self.host))

    @property
    def is_private(self) -> bool:
        """Neither a token nor a certificate is asked for."""
        return self.path is not None or self.is_loopback

    def __str__(self) -> str:
        scheme = "https" if self.secure else "http"
        if self.path is not None:
            return f"{scheme}+unix://{self.path}"
        return f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def is_address(host: str) -> bool:
    """Say whether it is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    found = ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def parse_admin_uri(written: str) -> AdminUri:
    """Read an address. Raises ValueError."""
    try:
        parts = urlsplit(written)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{_EXPECTED}, got {shown(written)}: {error}") from None
    if parts.scheme == "http+unix" and not parts.netloc and parts.path.startswith("/"):
        if parts.query or parts.fragment:
            raise ValueError(f"{_EXPECTED}, got {shown(written)}: the path is all of it")
        return AdminUri(path=Path(check_socket_path(written, parts.path)))
    if parts.scheme not in ("http", "https") or not parts.hostname or _has_more(parts):
        raise ValueError(f"{_EXPECTED}, got {shown(written)}")
    if not (is_address(parts.hostname) or _HOST.fullmatch(parts.hostname)):
        raise ValueError(f"{_EXPECTED}, got {shown(written)}: no host has such a name")
    secure = parts.scheme == "https"
    return AdminUri(secure, parts.hostname, DEFAULT_PORT if port is None else port)


def _has_more(parts: SplitResult) -> bool:
    more = parts.path not in ("", "/") or parts.query or parts.fragment
    return bool(more) or parts.username is not None


def _uris(value: object) -> tuple[AdminUri, ...]:
    found: list[AdminUri] = []
    for each in texts(value):
        uri = parse_admin_uri(each)
        if uri in found and uri.port:
            raise ValueError(f"{uri} is there already")
        found.append(uri)
    return tuple(found)


def _hosts(value: object) -> tuple[str, ...]:
    names = texts(value)
    for name in names:
        if not _HOST.fullmatch(name):
            raise ValueError(f'expected a name such as "gateway.example.com", got {shown(name)}')
    return tuple(name.lower() for name in names)


AdminUris = Annotated[tuple[AdminUri, ...], PlainValidator(_uris), TEXT_OR_TEXTS]
Hosts = Annotated[tuple[str, ...], PlainValidator(_hosts), TEXT_OR_TEXTS]

DEFAULT_URIS = (AdminUri(host="127.0.0.1"),)


class Admin(Section):
    """`[admin]`: metrics, health, an API and a page for browsers."""

    uri: AdminUris = Field(
        default=DEFAULT_URIS,
        description="Where HTTP is spoken, one address or several: http://HOST:PORT, https://HOST:PORT or"
        " http+unix:///PATH. Port 0 takes a free one.",
    )
    # Who may connect may do what the gateway's user may, if it is that user or root; others look.
    socket_mode: SocketMode = Field(
        default=0o600,
        description="Permissions of a Unix socket, octal. The gateway's user and root may do everything there,"
        " others look.",
    )
    tokens: File | None = Field(
        default=None,
        description='File with a line for each token: "look NAME TOKEN" or "full NAME TOKEN".',
    )
    certificates: File | None = Field(
        default=None,
        description="For https: directory with server-cert.pem, server-key.pem and ca-cert.pem.",
    )
    verify_client: bool | None = Field(
        default=None,
        description="For https: whether clients need a certificate of that CA. Default: true.",
    )
    # An address cannot be bound to another one by a DNS of somebody else's; a name can.
    hosts: Hosts = Field(
        default=(),
        description="Names by which browsers reach it. Addresses, localhost and the machine's own name are"
        " known.",
    )
