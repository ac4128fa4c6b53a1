"""`[fleet]`: several gateways that serve as one, and etcd, which decides which of them may serve a disk."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator

from gateway.config.base import TEXT_OR_TEXTS, Section, shown, text, texts, written_as
from gateway.config.values import File
from gateway.uri import NbdUri, Transport, UriError, parse_nbd_uri

MOST_NAME = 64
"""Characters of a gateway's name: it is a part of keys, and of lines for people."""

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
    return uri


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
