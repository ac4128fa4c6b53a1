"""Lists of revoked certificates, as the field uses them: each is about what its own CA has issued.

OpenSSL, told to look certificates up in lists, refuses all that it has no list for: the clients of a second
CA while CAs are exchanged, those of an intermediate CA where the list is the root's. GnuTLS, which nbdkit,
libnbd and qemu have, takes a missing list for an empty one; so it is here. That costs the alert by which
OpenSSL would have told the peer: it is hung up on, and the log says why.

A list that has ended is none that anybody can rely on: its CA's certificates are refused until there is
another.

Whose a list is, is told by its issuer's name, as RFC 5280 compares names (7.1), and settled when it is read.
Where a CA of ca-cert.pem has signed it, it is about what that key has issued, for a CA may have had another key
under the same name. Who has signed the list of an intermediate CA, which only the peer shows, cannot be told;
it is ours, and so it is believed: whom it names is refused.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.tls.errors import NotAdmitted
from gateway.tls.reading import UNREADABLE
from gateway.wire.handshake import printable

MAX_TOLD_CHARACTERS = 200
"""Of a subject, which is the peer's own words and may be as long as a certificate."""


@dataclass(frozen=True, slots=True)
class RevokedList:
    """What a CA has revoked, ready to be looked up in. `issuer` is the CA's name as `comparable` gives it,
    `signer` the public key (DER) of the CA of ca-cert.pem that has signed it, if it is one of those.
    """

    issuer: tuple[frozenset[tuple[str, str | bytes]], ...]
    name: str
    serials: frozenset[int]
    end: datetime | None
    signer: bytes | None


def revoked_list(
    crl: x509.CertificateRevocationList, cas: Sequence[x509.Certificate]
) -> RevokedList:
    """Make a list ready. Raises one of `UNREADABLE`."""
    issuer = comparable(crl.issuer)
    # The stubs leave out key types that sign nothing; for those it raises TypeError, which is of `UNREADABLE`.
    signers = [
        _public_key(ca)
        for ca in cas
        if comparable(ca.subject) == issuer and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    ]
    return RevokedList(
        issuer,
        crl.issuer.rfc4514_string(),
        frozenset(one.serial_number for one in crl),
        crl.next_update_utc,
        signers[0] if signers else None,
    )


def check_not_revoked(chain: Sequence[bytes], lists: Sequence[RevokedList], now: datetime) -> None:
    """Look a peer's certificates (DER; its own first, then each issuer's) up in the lists of those CAs that
    have one: all of them, for the last may be trusted without the CA that has issued it. Raises `NotAdmitted`.
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        keys = [_public_key(one) for one in certificates[1:]]
        names = [comparable(one.issuer) for one in certificates]
        subjects = [_clipped(one.subject) for one in certificates]
    except UNREADABLE as error:
        raise NotAdmitted(f"the certificate cannot be looked up in a list: {error}") from None
    looked_up = zip(certificates, names, subjects, [*keys, None], strict=True)
    for certificate, name, subject, key in looked_up:
        for one in lists:
            if one.issuer != name or (key and one.signer and one.signer != key):
                continue
            if one.end is not None and one.end <= now:
                raise NotAdmitted(f"the list of what {one.name} has revoked has expired")
            if certificate.serial_number in one.serials:
                raise NotAdmitted(f"{one.name} has revoked {subject}")


def _clipped(name: x509.Name) -> str:
    """Give a peer's subject for one line of the log."""
    return printable(name.rfc4514_string())[:MAX_TOLD_CHARACTERS]


def comparable(name: x509.Name) -> tuple[frozenset[tuple[str, str | bytes]], ...]:
    """Give a name so that it equals whatever RFC 5280, 7.1, takes for the same: the case of letters does not
    count, nor does how many spaces there are.
    """
    return tuple(
        frozenset((each.oid.dotted_string, _folded(each.value)) for each in rdn)
        for rdn in name.rdns
    )


def _folded(value: str | bytes) -> str | bytes:
    return " ".join(value.split()).casefold() if isinstance(value, str) else value


def _public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verified_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Give the certificates (DER) that a handshake has found to lead from the peer to one that is trusted."""
    if hasattr(tls, "get_verified_chain"):  # CPython 3.13
        return list(tls.get_verified_chain())
    # Before 3.13 the method is there, but only on what SSLObject wraps.
    chain = tls._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]


def utc_now() -> datetime:
    """Give the time that certificates and lists are held against."""
    return datetime.now(UTC)
