"""Who a client is, over TLS or not: what rules judge, limits count, and the log tells.

A value that grows: from the socket come an address or the kernel's word for a local user, and what TLS proves
is added by `gateway.tls.identity`, which alone needs a parser of certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from gateway.wire.handshake import printable

Address: TypeAlias = IPv4Address | IPv6Address

MAX_DESCRIBED_NAMES = 8
"""A certificate may have thousands of names, and a line of the log is read by people."""

_MAX_DESCRIBED_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """Who connected to a Unix socket (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"unix:pid={self.pid},uid={self.uid}"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, as far as it has proved anything. Texts are the peer's own words: may be of any
    characters.

    Names are in the order of the certificate. A certificate may have several CNs, or none.
    """

    peer: str = ""
    """Where it comes from, for the log: an address and a port, or a process."""
    address: Address | None = None
    """None if it has none: Unix sockets and vsock."""
    unix: UnixPeer | None = None
    cid: int | None = None
    """Which virtual machine it is (vsock(7)); 2 is the host."""
    psk_user: str | None = None
    subject: tuple[tuple[str, str], ...] = ()
    """Attributes by their short names of RFC 4514 (CN, O, OU, ...), or in dotted numbers."""
    common_names: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    issuer_common_names: tuple[str, ...] = ()
    fingerprint: str | None = None
    """SHA-256 of the certificate, 64 lower-case hexadecimal digits. None: there is no certificate."""
    tls_version: str | None = None
    cipher: str | None = None

    @classmethod
    def at(cls, host: str, port: int) -> Identity:
        """Give who is known by an address alone (text, as `parse_address` takes it)."""
        address = parse_address(host)
        if isinstance(address, IPv4Address):
            return cls(f"{address}:{port}", address)
        return cls(f"[{host}]:{port}", address)  # a scope is worth telling

    @property
    def tls(self) -> bool:
        """Whether it came over TLS, whatever it proved there."""
        return self.tls_version is not None

    @property
    def key(self) -> tuple[str, ...]:
        """Whom limits count as the same client: by the strongest proof that there is.

        A certificate counts by its issuer and subject, so that a renewed one is nobody new. Where the subject
        has no CN, it is the alternative names that tell one from another (SPIFFE's certificates all have the
        same subject); where it has none of those either, there is only the certificate itself.
        """
        if self.psk_user is not None:
            return "psk", self.psk_user
        if self.fingerprint is not None:
            # No kind of name has a "=" in it, so that two identities never have the same texts.
            issuer = [f"issuer={name}" for name in self.issuer_common_names]
            names = [f"{kind}={value}" for kind, value in self.subject]
            if not self.common_names:
                names += self._alternative_names("=") or [f"sha256={self.fingerprint}"]
            return "certificate", *issuer, *names
        if self.unix is not None:
            return "unix", str(self.unix.uid)
        if self.address is not None:
            return "address", str(self.address)
        if self.cid is not None:
            return "vsock", str(self.cid)
        return "peer", self.peer

    @property
    def origin(self) -> str:
        """Where it comes from, whatever it has proved: an address, a local user, a virtual machine."""
        if self.unix is not None:
            return f"unix:uid={self.unix.uid}"
        if self.address is not None:
            return str(self.address)
        if self.cid is not None:
            return f"vsock:{self.cid}"
        return self.peer

    def describe(self) -> str:
        """Give one field for the log, in printable characters alone: the strongest proof first."""
        said = []
        if self.psk_user is not None:
            said.append(f"psk:{self.psk_user}")
        if self.fingerprint is not None:
            names = [f"cn:{name}" for name in self.common_names] + self._alternative_names(":")
            said += [_clipped(name) for name in names[:MAX_DESCRIBED_NAMES]]
            if len(names) > MAX_DESCRIBED_NAMES:
                said.append(f"and {len(names) - MAX_DESCRIBED_NAMES} names more")
            said.append(f"sha256:{self.fingerprint[:16]}")
        if self.unix is not None:
            said.append(str(self.unix))
        if self.peer and self.peer not in said:  # of a Unix socket, it is the same
            said.append(self.peer)
        return printable(" ".join(said)) or "nobody"

    def _alternative_names(self, mark: str) -> list[str]:
        kinds = {
            "dns": self.dns_names,
            "uri": self.uris,
            "email": self.emails,
            "ip": self.ip_addresses,
        }
        return [f"{kind}{mark}{name}" for kind, names in kinds.items() for name in names]


NOBODY = Identity()
"""Of whom nothing is known."""


def parse_address(text: str) -> Address:
    """Read an address as rules compare it: an IPv4 client of a socket for both families is an IPv4 client
    (RFC 4291, 2.5.5.2), and by which of our interfaces a link-local one came in (RFC 4007, 11) is left out.

    Raises `ValueError`.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _clipped(text: str) -> str:
    text = printable(text)  # which makes it longer, up to ten times
    if len(text) <= _MAX_DESCRIBED_CHARACTERS:
        return text
    return f"{text[: _MAX_DESCRIBED_CHARACTERS - 3]}..."
