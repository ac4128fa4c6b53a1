"""A client on its way from one process to another, before any upstream was asked for it. Pure.

What a client has negotiated with us until then is little: the flags of its handshake, whether it has structured
replies or extended headers, how many options it has used. The option that names an export was read and not
answered; it goes along as it came, with whatever was received behind it, and is read again at home. What was
selected by SET_META_CONTEXT does not go along: it was selected where it was asked, and there the export stays.

Who the client is goes along, too. A socket that was handed over says where it leads, but not what TLS has
proved, nor whom a load balancer speaks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any

from gateway.handover.message import NotUnderstood
from gateway.identity import Identity, UnixPeer
from gateway.protocol.server_role import Unfinished

Door = tuple[object, ...]
"""Which `[[listen]]` a client came through: what `gateway.handover.homes.door_of` gives."""


@dataclass(frozen=True, slots=True)
class DiskSite:
    """A disk, in words that two processes have in common: where its server is, and its name there."""

    where: frozenset[tuple[str, ...]]
    """All the addresses of the server; they lead to one server's disks. A server that we start is known by the
    name of its upstream."""
    name: str

    @classmethod
    def at(cls, where: frozenset[tuple[str, ...]], name: str) -> DiskSite:
        """Give the disk at a place. A server that we start is one thing, whatever names it has."""
        return cls(where, "" if any(each[0] == "upstream" for each in where) else name)

    def meets(self, other: DiskSite) -> bool:
        """Say whether both are one disk, as far as is known."""
        return self.name == other.name and self.beside(other)

    def beside(self, other: DiskSite) -> bool:
        """Say whether both are of one server."""
        return bool(self.where & other.where)

    def as_said(self) -> dict[str, Any]:
        """Give it for a message."""
        return {"where": sorted(map(list, self.where)), "name": self.name}

    @classmethod
    def of(cls, said: Any) -> DiskSite:
        """Read what `as_said` gave. Raises `NotUnderstood`."""
        try:
            where = frozenset(tuple(map(_text, address)) for address in said["where"])
            if not where:
                raise ValueError("it is nowhere")
            name = _text(said["name"])
            name.encode("utf-8", "surrogateescape")  # as a name that came from a client
            return cls(where, name)
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood(f"expected a disk's place, got {said!r:.80} ({error})") from None


@dataclass(frozen=True, slots=True)
class Given:
    """A client that is handed over. Its socket goes beside it."""

    number: int
    """By which the other side answers; whoever says it gives the number."""
    session_id: str
    """What the log knows it by, in every process."""
    door: Door
    identity: Identity
    site: DiskSite | None
    """The disk that it asks for; None: it asks for a list."""
    seconds: float
    """How much of its time it has used."""
    negotiation: Unfinished | None
    """None: an oldstyle client, which says nothing; or one that another gateway leads to the home of its disk:
    that gateway negotiates, from the beginning."""
    via_tls: bool = False
    """Its socket leads to where its TLS is."""
    way: str = ""
    """What the connection is called over which another gateway leads it to the home of its disk, and no other
    connection is; empty: it is not led, or by a version that does not say it."""

    def as_said(self) -> dict[str, Any]:
        """Give it for a message; the bytes that it has sent (`unread`) go behind it."""
        talk = self.negotiation
        return {
            "number": self.number,
            "id": self.session_id,
            "door": list(self.door),
            "who": identity_as_said(self.identity),
            "site": None if self.site is None else self.site.as_said(),
            "seconds": self.seconds,
            "tls": self.via_tls,
            "way": self.way,
            "talk": None
            if talk is None
            else {
                each.name: getattr(talk, each.name)
                for each in fields(talk)
                if each.name != "unread"
            },
        }

    @property
    def unread(self) -> bytes:
        """What it has sent and nobody has answered."""
        return b"" if self.negotiation is None else self.negotiation.unread

    @classmethod
    def of(cls, said: Any, unread: bytes) -> Given:
        """Read what `as_said` gave. Raises `NotUnderstood`."""
        try:
            talk = said["talk"]
            negotiation = None
            if talk is not None:
                values = {
                    each.name: _of(talk[each.name], bool if each.type == "bool" else int)
                    for each in fields(Unfinished)
                    if each.name != "unread"
                }
                negotiation = Unfinished(unread=unread, **values)
            site = said["site"]
            return cls(
                _of(said["number"], int),
                _text(said["id"]),
                tuple(said["door"]),
                identity_of_said(said["who"]),
                None if site is None else DiskSite.of(site),
                float(said["seconds"]),
                negotiation,
                _of(said["tls"], bool),
                _text(said.get("way", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood(f"expected a client, got {said!r:.80} ({error})") from None


# --- Who it is

_NAMES = (
    "common_names",
    "dns_names",
    "uris",
    "emails",
    "ip_addresses",
    "issuer_common_names",
)
_TEXTS = ("psk_user", "fingerprint", "tls_version", "cipher")


def identity_as_said(identity: Identity) -> dict[str, Any]:
    """Give for a message who somebody is: what is known, and nothing else."""
    said: dict[str, Any] = {"peer": identity.peer}
    if identity.address is not None:
        said["address"] = str(identity.address)
    if identity.unix is not None:
        said["unix"] = [identity.unix.pid, identity.unix.uid, identity.unix.gid]
    if identity.cid is not None:
        said["cid"] = identity.cid
    if identity.subject:
        said["subject"] = [list(pair) for pair in identity.subject]
    for key in (*_NAMES, *_TEXTS):
        if value := getattr(identity, key):
            said[key] = list(value) if key in _NAMES else value
    return said


def identity_of_said(said: Mapping[str, Any]) -> Identity:
    """Read what `identity_as_said` gave. Raises `NotUnderstood`."""
    try:
        known: dict[str, Any] = {"peer": _text(said["peer"])}
        if "address" in said:
            known["address"] = ip_address(_text(said["address"]))
        if "unix" in said:
            pid, uid, gid = said["unix"]
            known["unix"] = UnixPeer(_of(pid, int), _of(uid, int), _of(gid, int))
        if "cid" in said:
            known["cid"] = _of(said["cid"], int)
        known["subject"] = tuple(
            (_text(kind), _text(value)) for kind, value in said.get("subject", ())
        )
        known |= {key: tuple(map(_text, said.get(key, ()))) for key in _NAMES}
        known |= {key: _text(said[key]) for key in _TEXTS if key in said}
        return Identity(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise NotUnderstood(f"expected who a client is, got {said!r:.80} ({error})") from None


def _text(value: object) -> str:
    text: str = _of(value, str)
    return text


def _of(value: Any, type_: type) -> Any:
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {type_.__name__}")
    return value
