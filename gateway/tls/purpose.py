"""A server whose certificate is for clients alone (its extendedKeyUsage has clientAuth, and no serverAuth).

GnuTLS, by which libnbd, qemu and nbdkit go, does not ask what a certificate is for; OpenSSL does, and Python's
`ssl` cannot be told to leave out that alone. So people have such servers, and find out at a gateway. Where
OpenSSL has refused one for its purpose, the next handshake goes without OpenSSL's check of the chain, and
`chain_of_any_purpose` checks it afterwards, before a byte is said or believed: signatures up to a CA that we
trust, what a CA must be, dates, keys, the name. All but the purpose, by `cryptography`'s verifier.

Where that differs from OpenSSL it is the stricter: the name has to be in the subjectAltName, and a chain has to
be as for the web (RFC 5280; CA/Browser Forum's baseline for keys and signatures). What one gives away: our own
certificate, though never its key, is shown before the server has proved anything. (In TLS 1.2 whoever listens
sees it at any time.)
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from gateway.tls.errors import NotAdmitted
from gateway.tls.reading import UNREADABLE

UNSUITABLE_PURPOSE = 26
"""OpenSSL's number (X509_V_ERR_INVALID_PURPOSE) for a certificate that is not for what it is shown for."""

MIN_RSA_BITS, MIN_CURVE_BITS = 2048, 224
"""What is as good as 112 bits of a cipher's key: SSL_CTX_set_security_level(3), level 2."""


def is_of_purpose(error: ssl.SSLError) -> bool:
    """Say whether OpenSSL has refused a certificate for what it is for, and, as far as it has looked, for
    nothing else.
    """
    return (
        isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == UNSUITABLE_PURPOSE
    )


def chain_of_any_purpose(
    shown: Sequence[bytes], trusted: Sequence[bytes], hostname: str, now: datetime
) -> list[bytes]:
    """Give the chain (DER, the server's certificate first, a trusted one last) that proves a server to be
    `hostname`, a name or an IP address. `shown`: what it has shown, its own certificate first. `trusted`: our
    CAs (DER). Raises `NotAdmitted`.
    """
    try:
        leaf, *between = map(x509.load_der_x509_certificate, shown)
        cas = Store(list(map(x509.load_der_x509_certificate, trusted)))
        servers = ExtensionPolicy.webpki_defaults_ee().may_be_present(
            x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None
        )
        policy = PolicyBuilder().store(cas).time(now)
        policy = policy.extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=servers
        )
        chain = policy.build_server_verifier(_named(hostname)).verify(leaf, between)
        key = leaf.public_key()
    except (VerificationError, *UNREADABLE) as error:
        text = "its certificate is for clients alone, and not accepted as such either"
        raise NotAdmitted(f"{text}: {error}") from None
    if not _is_strong(key):
        raise NotAdmitted("its certificate has a key that is too weak")
    return [each.public_bytes(Encoding.DER) for each in chain]


def _is_strong(key: CertificatePublicKeyTypes) -> bool:
    """As OpenSSL wants a server's key, at level 2. The verifier asks it of CAs only."""
    match key:
        case rsa.RSAPublicKey():
            return key.key_size >= MIN_RSA_BITS
        case ec.EllipticCurvePublicKey():
            return key.key_size >= MIN_CURVE_BITS
    return isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)


def _named(hostname: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(hostname))
    except ValueError:
        return x509.DNSName(hostname)


def shown_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Give what a server has shown in a handshake that has not checked it (DER, its own certificate first)."""
    if hasattr(tls, "get_unverified_chain"):  # CPython 3.13
        return list(tls.get_unverified_chain())
    # Before 3.13 only the object that SSLObject wraps has the method.
    chain = tls._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]
