"""A server whose certificate is for clients alone (its extendedKeyUsage has clientAuth, and no serverAuth).

GnuTLS, by which libnbd, qemu and nbdkit go, does not ask what a certificate is for; OpenSSL does, and Python's
`ssl` cannot be told to leave out that alone. So people have such servers, and find out at a gateway. Where
OpenSSL has refused one for its purpose, the next handshake goes without OpenSSL's check of the chain, and
`chain_of_a_client` checks it afterwards, before a byte is said or believed: by `cryptography`'s verifier it has
to be the chain of a client that our CA would let in (signatures, what a CA must be, dates, keys), and then the
server's name has to be in it.

Where that differs from OpenSSL it is the stricter: the name has to be in the subjectAltName, and keys and
signatures have to be as for the web (CA/Browser Forum's baseline: RSA, or NIST's curves). Of extensions no more
is asked than OpenSSL asks by itself: a CA that `openssl req -x509` makes has no keyUsage. What one gives away:
our own certificate, though never its key, is shown before the server has proved anything. (In TLS 1.2 whoever
listens sees it at any time.)
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
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from gateway.tls.errors import NotAdmitted
from gateway.tls.reading import MAX_TOLD_CHARACTERS, UNREADABLE
from gateway.wire.handshake import printable

UNSUITABLE_PURPOSE = 26
"""OpenSSL's number (X509_V_ERR_INVALID_PURPOSE) for a certificate that is not for what it is shown for."""

MAX_SHOWN = 10
"""How many certificates of a server are looked at. Real chains have up to four; of more, whose issuers are all
called the same, so many chains can be made that one server would keep the whole gateway busy."""

MIN_RSA_BITS, MIN_CURVE_BITS = 2048, 224
"""What is as good as 112 bits of a cipher's key: SSL_CTX_set_security_level(3), level 2."""


def is_of_purpose(error: ssl.SSLError) -> bool:
    """Say whether OpenSSL has refused a certificate for what it is for, and, as far as it has looked, for
    nothing else.
    """
    return (
        isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == UNSUITABLE_PURPOSE
    )


def chain_of_a_client(
    shown: Sequence[bytes], trusted: Sequence[bytes], hostname: str, now: datetime
) -> list[bytes]:
    """Give the chain (DER, the server's certificate first, a trusted one last) that proves a server to be
    `hostname`, a name or an IP address, by a client's certificate. `shown`: what it has shown, its own
    certificate first. `trusted`: our CAs (DER). Raises `NotAdmitted`.
    """
    text = "its certificate is not for servers, and not accepted as a client's"
    if len(shown) > MAX_SHOWN:
        raise NotAdmitted(f"{text}: its chain has {len(shown)}; at most {MAX_SHOWN} are looked at")
    try:
        leaf, *between = map(x509.load_der_x509_certificate, shown)
        cas = Store(list(map(x509.load_der_x509_certificate, trusted)))
        policy = PolicyBuilder().store(cas).time(now)
        policy = policy.extension_policies(
            ca_policy=_policy_of_cas(), ee_policy=_policy_of_clients()
        )
        chain = policy.build_client_verifier().verify(leaf, between).chain
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_named = _is_among(hostname, names)
        key = leaf.public_key()
    except (VerificationError, *UNREADABLE) as error:
        # The verifier tells whose certificate it is, in the peer's own words.
        raise NotAdmitted(f"{text}: {printable(str(error))[:MAX_TOLD_CHARACTERS]}") from None
    if not is_named:
        raise NotAdmitted(f"{text}: it is not for {hostname}")
    if not _is_strong(key):
        raise NotAdmitted("its certificate has a key that is too weak")
    return [each.public_bytes(Encoding.DER) for each in chain]


def _policy_of_clients() -> ExtensionPolicy:
    policy = ExtensionPolicy.webpki_defaults_ee()
    policy = policy.require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_clients)
    policy = policy.require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    policy = policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _for_handshakes)
    return policy.may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)


def _policy_of_cas() -> ExtensionPolicy:
    policy = ExtensionPolicy.webpki_defaults_ca()
    policy = policy.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_ca)
    policy = policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _for_issuing)
    policy = policy.may_be_present(x509.SubjectKeyIdentifier, Criticality.AGNOSTIC, None)
    return policy.may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)


# What the verifier asks of an extension. Each raises `ValueError`.


def _for_clients(_policy: Policy, _leaf: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    # OpenSSL finds fault with what is for e-mail or code by the same number; who has that is no client either.
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("its extendedKeyUsage has no clientAuth")


def _for_handshakes(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    # This, too, has the number of a purpose in OpenSSL, and GnuTLS does ask for it.
    if usage is not None and not (usage.digital_signature or usage.key_encipherment):
        raise ValueError("its keyUsage has neither digitalSignature nor keyEncipherment")


def _is_ca(_policy: Policy, _issuer: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("a certificate has issued another and is no CA's")


def _for_issuing(_policy: Policy, _issuer: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the keyUsage of a CA has no keyCertSign")


def _is_among(hostname: str, names: x509.SubjectAlternativeName) -> bool:
    """Compare as OpenSSL does for `ssl`: a star is a whole label, the first, and has two more behind it."""
    try:
        return ipaddress.ip_address(hostname) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        host = hostname.encode("idna").decode().lower()
    first, _, rest = host.partition(".")
    named = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return host in named or (bool(first) and "." in rest and f"*.{rest}" in named)


def _is_strong(key: CertificatePublicKeyTypes) -> bool:
    """As OpenSSL wants a server's key, at level 2. The verifier asks it of CAs only."""
    match key:
        case rsa.RSAPublicKey():
            return key.key_size >= MIN_RSA_BITS
        case ec.EllipticCurvePublicKey():
            return key.key_size >= MIN_CURVE_BITS
    return isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)


def shown_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Give what a server has shown in a handshake that has not checked it (DER, its own certificate first)."""
    if hasattr(tls, "get_unverified_chain"):  # CPython 3.13
        return list(tls.get_unverified_chain())
    # Before 3.13 only the object that SSLObject wraps has the method.
    chain = tls._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]
