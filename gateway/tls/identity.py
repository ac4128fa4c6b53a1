"""What a certificate or a key says of its owner.

Attributes come from the parsed certificate (RFC 5280, 4.1.2.4 and 4.2.1.6), never from a formatted name: there
a CN of "x,O=admins" would look like two attributes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cryptography import x509

from gateway.identity import NOBODY, Identity
from gateway.tls.errors import NotAdmitted
from gateway.tls.reading import UNREADABLE
from gateway.wire.handshake import printable


def identity_of(
    certificate: bytes | None,
    psk_user: str | None,
    *,
    base: Identity = NOBODY,
    tls_version: str | None = None,
    cipher: str | None = None,
) -> Identity:
    """Add to a peer's identity what its certificate says (DER, verified by the handshake), and the user of its
    key; either may be None.

    Raises `NotAdmitted` if the certificate cannot be understood.
    """
    base = replace(base, psk_user=psk_user, tls_version=tls_version, cipher=cipher)
    if certificate is None:
        return base
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        subject = _attributes(parsed.subject)
        names = _alternative_names(parsed)
        return replace(
            base,
            subject=subject,
            common_names=_common_names(subject),
            dns_names=tuple(names.get_values_for_type(x509.DNSName)),
            uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
            emails=tuple(names.get_values_for_type(x509.RFC822Name)),
            ip_addresses=tuple(map(str, names.get_values_for_type(x509.IPAddress))),
            issuer_common_names=_common_names(_attributes(parsed.issuer)),
            fingerprint=hashlib.sha256(certificate).hexdigest(),
        )
    except UNREADABLE as error:
        why = printable(str(error).partition("\n")[0])[:200]
        raise NotAdmitted(f"its certificate cannot be understood: {why}") from None


def _attributes(name: x509.Name) -> tuple[tuple[str, str], ...]:
    # An attribute may be bytes (a bit string as an X.500 identifier). Those are no text, and must not match
    # any.
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
