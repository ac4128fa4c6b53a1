"""Lists of revoked certificates, as the field uses them: each is about what its own CA has issued.

OpenSSL, told to look certificates up in lists, refuses all that it has no list for: the clients of a second
CA while CAs are exchanged, those of an intermediate CA where the list is the root's. GnuTLS, which nbdkit,
libnbd and qemu have, takes a missing list for an empty one; so it is here. That costs the alert by which
OpenSSL would have told the peer: it is hung up on, and the log says why.

A list that has ended is none that anybody can rely on: its CA's certificates are refused until there is
another.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509

from gateway.tls.errors import NotAdmitted

Lists = Sequence[x509.CertificateRevocationList]


def check_not_revoked(chain: Sequence[bytes], lists: Lists, now: datetime) -> None:
    """Look a peer's certificates (DER; its own first, then each issuer's) up in the lists of those CAs that
    have one. Raises `NotAdmitted`.
    """
    certificates = [x509.load_der_x509_certificate(der) for der in chain]
    for certificate, issuer in pairwise(certificates):
        for one in lists:
            if not is_of(one, issuer):
                continue
            name = issuer.subject.rfc4514_string()
            if one.next_update_utc is not None and one.next_update_utc <= now:
                raise NotAdmitted(f"the list of what {name} has revoked has expired")
            if one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                raise NotAdmitted(f"{name} has revoked {certificate.subject.rfc4514_string()}")


def is_of(one: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    """Say whether a list is signed by a CA: there may be two of one name, the old and the new."""
    return one.issuer == ca.subject and one.is_signature_valid(ca.public_key())  # type: ignore[arg-type]


def verified_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Give the certificates (DER) that a handshake has found to lead from the peer to one that is trusted."""
    if hasattr(tls, "get_verified_chain"):  # CPython 3.13
        return list(tls.get_verified_chain())
    chain = tls._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]


def utc_now() -> datetime:
    """Give the time that certificates and lists are held against."""
    return datetime.now(UTC)
