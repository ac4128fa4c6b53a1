"""Who comes, and what that lets them do. Pure.

There are two roles: to look, and to do everything that the gateway's own user may do. Which of them somebody
has follows from the door where he came, and from what he has proved there:

    door               without a token                           with one
    a Unix socket      the gateway's user and root: full,        the better of both
                       others whom its mode lets in: look
    loopback           look                                      the token's
    any, client's      full, if there is no file of tokens       the token's
    certificate
    any other          nobody                                    the token's

A token is a header, which no page of somebody else's can send. But over a loopback address, or with a
certificate in the browser, the browser itself is the proof, and any page that is open in it may have it ask us.
So:

- the Host has to be one of ours. A name that somebody else's DNS has bound to 127.0.0.1 is none
  (DNS rebinding); an address cannot be bound to anything;
- what changes anything is a POST with JSON. No form can send that without asking first (fetch.spec.whatwg.org,
  "CORS-preflight"), and nobody is told that he may;
- an Origin, or Sec-Fetch-Site, that is there has to be our own.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from gateway.web.settings import Kind


class Role(StrEnum):
    """What somebody may do."""

    LOOK = "look"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection, before a token is seen."""

    kind: Kind
    where: str
    """An address, or a process, for the log."""
    uid: int | None = None
    """The user of a Unix socket's client."""
    certified: str | None = None
    """Who its certificate says it is, if it had to have one."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for something; `name` is for the log."""

    role: Role | None
    """None: nobody who may see anything."""
    name: str


def visitor_without_token(caller: Caller, *, has_tokens: bool) -> Visitor:
    """Say who it is that has shown no token; `has_tokens`: there is a file of tokens."""
    if caller.kind == "unix":
        own = caller.uid in (0, os.geteuid())
        return Visitor(Role.FULL if own else Role.LOOK, caller.where)
    if caller.certified is not None and not has_tokens:
        return Visitor(Role.FULL, f"{caller.certified} at {caller.where}")
    return Visitor(Role.LOOK if caller.kind == "loopback" else None, caller.where)


def host_of(header: str) -> str | None:
    """Give the name or address of a Host header (RFC 9112, 3.2), in lower case; None if it is malformed."""
    text = header.strip().lower()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_address(host):
            return None
        return host if rest == "" or _is_port(rest) else None
    host, colon, port = text.partition(":")
    if not host or (colon and not _is_port(f":{port}")):
        return None
    return host


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and (text[1:].isdecimal() or text == ":")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_ours(header: str, names: Collection[str]) -> bool:
    """Say whether a Host header means us: by an address, or by one of our names."""
    host = host_of(header)
    return host is not None and (_is_address(host) or host.rstrip(".") in names)


def comes_from_elsewhere(host: str, origin: str | None, site: str | None) -> bool:
    """Say whether a browser says that a page of somebody else's has had it ask: by Origin (RFC 6454, 7) or
    Sec-Fetch-Site (w3.org/TR/fetch-metadata). A program says neither.
    """
    if site is not None and site not in ("same-origin", "none"):
        return True
    if origin is None:
        return False
    scheme, mark, rest = origin.lower().partition("://")
    return not mark or scheme not in ("http", "https") or rest != host.strip().lower()
