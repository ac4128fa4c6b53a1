"""What a certificate or a key says of who has it: what policies judge and the log tells.

Attributes are taken from the parsed certificate (RFC 5280, 4.1.2.4 and 4.2.1.6), never from a formatted
name, where a CN of "x,O=admins" looks like two attributes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509

from gateway.tls.certificates import UNREADABLE
from gateway.tls.errors import NotAdmitted
from gateway.wire.handshake import printable


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """Who connected to a Unix socket (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, as far as it has proved anything. Texts are the peer's own words: may be of any
    characters.

    Names are in the order of the certificate. A certificate may have several CNs, or none.
    """

    peer: str | None = None
    """Its address, as the caller writes it."""
    unix: UnixPeer | None = None
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
    """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""
    tls_version: str | None = None
    cipher: str | None = None

    def describe(self) -> str:
        """Give one field for the log, in printable characters alone: the strongest proof first."""
        said = []
        if self.psk_user is not None:
            said.append(f"psk:{self.psk_user}")
        if self.fingerprint is not None:
            names = [f"cn:{name}" for name in self.common_names]
            names += [f"dns:{name}" for name in self.dns_names]
            names += [f"uri:{name}" for name in self.uris]
            names += [f"email:{name}" for name in self.emails]
            names += [f"ip:{name}" for name in self.ip_addresses]
            said += [_clipped(name) for name in names[:MAX_DESCRIBED_NAMES]]
            if len(names) > MAX_DESCRIBED_NAMES:
                said.append(f"and {len(names) - MAX_DESCRIBED_NAMES} names more")
            said.append(f"sha256:{self.fingerprint[:16]}")
        if self.unix is not None:
            said.append(f"unix:pid={self.unix.pid},uid={self.unix.uid}")
        if self.peer is not None:
            said.append(self.peer)
        return printable(" ".join(said)) or "nobody"


MAX_DESCRIBED_NAMES = 8
"""A certificate may have thousands of names, and a line of the log is read by people."""

_MAX_DESCRIBED_CHARACTERS = 80


def identity_of(
    certificate: bytes | None,
    psk_user: str | None,
    *,
    peer: str | None = None,
    unix: UnixPeer | None = None,
    tls_version: str | None = None,
    cipher: str | None = None,
) -> Identity:
    """Give who it is by a certificate (DER, verified by the handshake) and the user of a key; either may be
    None.

    Raises `NotAdmitted` if the certificate cannot be understood.
    """
    if certificate is None:
        return Identity(peer, unix, psk_user, tls_version=tls_version, cipher=cipher)
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        subject = _attributes(parsed.subject)
        issuer = _attributes(parsed.issuer)
        names = _alternative_names(parsed)
        return Identity(
            peer,
            unix,
            psk_user,
            subject,
            _common_names(subject),
            tuple(names.get_values_for_type(x509.DNSName)),
            tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
            tuple(names.get_values_for_type(x509.RFC822Name)),
            tuple(str(address) for address in names.get_values_for_type(x509.IPAddress)),
            _common_names(issuer),
            hashlib.sha256(certificate).hexdigest(),
            tls_version,
            cipher,
        )
    except UNREADABLE as error:
        why = printable(str(error).partition("\n")[0])[:200]
        raise NotAdmitted(f"its certificate cannot be understood: {why}") from None


def _attributes(name: x509.Name) -> tuple[tuple[str, str], ...]:
    # An attribute may be bytes (a bit string as an X.500 identifier); what is no text is not compared as one.
    return tuple(
        (attribute.rfc4514_attribute_name, attribute.value)
        for attribute in name
        if isinstance(attribute.value, str)
    )


def _common_names(attributes: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(value for kind, value in attributes if kind == "CN")


def _alternative_names(
    certificate: x509.Certificate,
) -> x509.SubjectAlternativeName:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])
    return found.value


def _clipped(text: str) -> str:
    if len(text) <= _MAX_DESCRIBED_CHARACTERS:
        return text
    return f"{text[: _MAX_DESCRIBED_CHARACTERS - 3]}..."
