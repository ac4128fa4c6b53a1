"""Lists of revoked certificates, as the field uses them: each list covers what its own CA has issued.

If OpenSSL looks certificates up in lists, it refuses every certificate for whose CA it has no list: clients of
a second CA while CAs are exchanged, and clients of an intermediate CA if the list is the root's. GnuTLS, which
nbdkit, libnbd and qemu use, takes a missing list for an empty one. We do the same, and so look certificates up
by ourselves. A revoked peer gets no TLS alert for that: it is hung up on, and the log says why.

Nobody can rely on a list that has expired: all certificates of its CA are refused until there is a new one. The
new one may stand beside it. Then its end counts, and what either of both names is refused.

The issuer's name says which CA a list belongs to, compared as in RFC 5280, 7.1. If a CA of ca-cert.pem has
signed the list, it covers only what that CA's key has issued, for a CA may have had another key under the same
name. If the list belongs to an intermediate CA, whose certificate only the peer shows, we cannot check who has
signed it. But the operator gave us the list, so we believe it, and refuse what it names.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.tls.errors import NotAdmitted
from gateway.tls.reading import MAX_TOLD_CHARACTERS, UNREADABLE
from gateway.wire.handshake import printable


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
    """Make a list ready to be looked up in. Raises one of `UNREADABLE`."""
    issuer = comparable(crl.issuer)
    # The stubs leave out key types that sign nothing. For those this raises TypeError, which is in
    # `UNREADABLE`.
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
    """Refuse a peer if any certificate in its chain (DER; its own first, then each issuer's) is on the list of
    its CA, or that list has expired. The last of the chain counts, too: it may be trusted without the CA that
    has issued it. Raises `NotAdmitted`.
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        keys: list[bytes | None] = [_public_key(one) for one in certificates[1:]]
        keys += [_own_issuer(one) for one in certificates[-1:]]
        names = [comparable(one.issuer) for one in certificates]
        subjects = [_clipped(one.subject) for one in certificates]
    except UNREADABLE as error:
        raise NotAdmitted(f"the certificate cannot be looked up in a list: {error}") from None
    looked_up = zip(certificates, names, subjects, keys, strict=True)
    for certificate, name, subject, key in looked_up:
        for one in lists:
            if one.issuer != name or (key and one.signer and one.signer != key):
                continue
            if one.end is not None and one.end <= now and not is_followed(one, lists):
                raise NotAdmitted(f"the list of what {one.name} has revoked has expired")
            if certificate.serial_number in one.serials:
                raise NotAdmitted(f"{one.name} has revoked {subject}")


def is_followed(one: RevokedList, lists: Sequence[RevokedList]) -> bool:
    """Say whether another list of the same CA is good for longer, so that its end is the one that counts."""
    return one.end is not None and any(
        (other.issuer, other.signer) == (one.issuer, one.signer)
        and (other.end is None or other.end > one.end)
        for other in lists
    )


def _own_issuer(certificate: x509.Certificate) -> bytes | None:
    """Give the key of a certificate that has issued itself, as a root's; else None: who has is not there."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, *UNREADABLE):
        return None
    return _public_key(certificate)


def _clipped(name: x509.Name) -> str:
    """Give a peer's subject, short enough for a line of the log."""
    return printable(name.rfc4514_string())[:MAX_TOLD_CHARACTERS]


def comparable(name: x509.Name) -> tuple[frozenset[tuple[str, str | bytes]], ...]:
    """Give a name in a form that is equal for names that RFC 5280, 7.1, takes for the same: it ignores the case
    of letters, and how many spaces there are.
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
    """Give the chain (DER) that a handshake has verified, from the peer's certificate to one that we trust."""
    if hasattr(tls, "get_verified_chain"):  # CPython 3.13
        return list(tls.get_verified_chain())
    # Before 3.13 only the object that SSLObject wraps has the method.
    chain = tls._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]


def utc_now() -> datetime:
    """Give the time at which certificates and lists have to be valid."""
    return datetime.now(UTC)
