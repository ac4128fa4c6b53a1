"""`[fleet]`: several gateways that serve as one, and etcd, which decides which of them may serve a disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator

from gateway.config.base import TEXT_OR_TEXTS, Section, shown, text, texts, written_as
from gateway.config.values import File
from gateway.uri import Address, NbdUri, Transport, UriError, address_of, parse_nbd_uri

MOST_NAME = 64
"""Characters of a gateway's name: it is a part of keys, and of lines for people."""

FENCE_SECONDS = 60.0
"""How long a fence may take: a hypervisor, or a switch, has to be reached for it."""

PATIENCE_SECONDS = 30.0
"""How much longer than what has to be waited for a client's request for an export may take: for etcd, for
another gateway, and for sessions of the time before to end."""

RECONNECT_WAITS = 2
"""So many of the longest waits a session lives on without its home. One is for a home that has died; and the
next one may die before it has begun."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _members(value: object) -> tuple[str, ...]:
    found = texts(value)
    for each in found:
        try:
            parts = urlsplit(each)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or not parts.port
        except ValueError:
            wrong = True
        if wrong or parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise ValueError(
                f'expected "https://HOST:PORT" or "http://HOST:PORT", got {shown(each)}'
            )
    return tuple(found)


def _gateway(value: object) -> str:
    name = text(value)
    if len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f'expected a name of up to {MOST_NAME} letters, digits, ".", "_" and "-", got {shown(value)}'
        )
    return name


def _address(value: object) -> NbdUri:
    uri = parse_nbd_uri(text(value))
    plain = uri.username is None and not uri.parameters and not uri.export_named
    if not (uri.tls and uri.transport is Transport.TCP and uri.host and uri.port and plain):
        raise UriError(str(uri), 'expected "nbds://HOST:PORT", where other gateways reach this one')
    if _is_everywhere(uri.host):
        wrong = "expected an address of this gateway's own: whoever connects to this one comes to himself"
        raise UriError(str(uri), wrong)
    return uri


def _is_everywhere(host: str) -> bool:
    """Say whether a host is what one listens at to be reached at all addresses."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _prefix(value: object) -> str:
    prefix = text(value)
    if not re.fullmatch(r"/([A-Za-z0-9._-]+/)+", prefix):
        raise ValueError(
            f'expected a path that ends in "/", as in "/nbd-gateway/", got {shown(value)}'
        )
    return prefix


def _command(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(e, str) for e in value):
        raise ValueError(
            f'expected a program and its arguments, as in ["/sbin/cut"], got {shown(value)}'
        )
    if not value[0] or any("\0" in each for each in value):
        raise ValueError(f"expected a program and its arguments, got {shown(value)}")
    return tuple(value)


def longest_wait(late_write_seconds: float, lease_seconds: float, *, fenced: bool) -> float:
    """Give how many seconds whoever asks for a disk waits at most for its home to serve: for a lease to end,
    and for what may be on its way, or for a fence; and some patience.
    """
    late = FENCE_SECONDS if fenced else late_write_seconds
    return late + 2 * lease_seconds + PATIENCE_SECONDS


def late_writes(upstreams: Mapping[str, tuple[Sequence[NbdUri], float]]) -> dict[str, float]:
    """Give how many seconds a write may be on its way to the server of each upstream. Of each are given its
    URIs and its late-write-seconds; where several lead to one address, the longest holds.
    """
    at: dict[Address, float] = {}
    for uris, seconds in upstreams.values():
        for uri in uris:
            at[address_of(uri)] = max(at.get(address_of(uri), 0.0), seconds)
    return {
        name: max([seconds, *(at[address_of(uri)] for uri in uris)])
        for name, (uris, seconds) in upstreams.items()
    }


class Fleet(Section):
    """`[fleet]`: several gateways that serve as one."""

    etcd: Annotated[tuple[str, ...], PlainValidator(_members), TEXT_OR_TEXTS] = Field(
        description="The members of etcd: https://HOST:PORT, one or several.",
    )
    name: Annotated[str, *written_as(_gateway)] = Field(
        description="What this gateway is called; no two of a fleet have one name.",
    )
    address: Annotated[NbdUri, *written_as(_address)] = Field(
        description="nbds://HOST:PORT, where this gateway listens for the others of the fleet, and they find"
        " it. Clients do not come here.",
    )
    certificates: File = Field(
        description="For `address`: directory with ca-cert.pem, server-cert.pem, server-key.pem,"
        " client-cert.pem and client-key.pem. Whoever has a certificate of that CA is of the fleet, and is"
        " believed about who its clients are.",
    )
    etcd_certificates: File | None = Field(
        default=None,
        description="For etcd over https: directory with ca-cert.pem, and client-cert.pem and client-key.pem if"
        " etcd asks for them.",
    )
    etcd_user: Annotated[str, *written_as(text)] | None = Field(
        default=None, description="The user of etcd to be, where it has users."
    )
    etcd_password_file: File | None = Field(
        default=None, description="File with that user's password."
    )
    # Several fleets may have one etcd.
    prefix: Annotated[str, *written_as(_prefix)] = Field(
        default="/nbd-gateway/",
        description="What all keys of this fleet begin with. Every gateway of a fleet has the same.",
    )
    # etcd's own elections take up to a few seconds; twice that is lost before anything has to stop.
    lease_seconds: Annotated[int, Field(ge=2, le=600)] = Field(
        default=10,
        description="How long etcd has a gateway be there that says nothing. A fifth of it is not used.",
    )
    # None: what cuts a machine off is different everywhere.
    fence: Annotated[tuple[str, ...], *written_as(_command, array=True)] | None = Field(
        default=None,
        description="A program that cuts off a gateway which has ended without giving its disks away: its"
        " connections at the server, at a switch or at a hypervisor. Until it has succeeded the next one sends"
        " nothing. Without it the next one waits for late-write-seconds.",
    )

    def longest_wait(self, late_write_seconds: float) -> float:
        """Give how long whoever asks for a disk waits at most for its home to serve, where a write may be on
        its way to the server for so long. All in seconds.
        """
        fenced = self.fence is not None
        return longest_wait(late_write_seconds, self.lease_seconds, fenced=fenced)
