"""The directory of PEM files that nbdkit, qemu and libnbd use, checked before OpenSSL sees it.

    ca-cert.pem                       whom we trust: one or more CAs
    ca-crl.pem                        optional: what those CAs have revoked
    server-cert.pem server-key.pem    a server's own certificate, with intermediate ones after it, and key
    client-cert.pem client-key.pem    a client's own; both or neither

OpenSSL says "PEM lib" for most of what can be wrong with such files. So `cryptography`, which says more, reads
certificates and lists first, and OpenSSL loads what has passed.
"""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.there import status_of, unseen
from gateway.tls.errors import CredentialsError, all_told
from gateway.tls.reading import UNREADABLE, exposed, is_there, read
from gateway.tls.revoked import RevokedList, comparable, is_followed, revoked_list
from gateway.wire.handshake import printable

CA_CERT = "ca-cert.pem"
CA_CRL = "ca-crl.pem"

Role = Literal["server", "client"]

WARNING_DAYS = 30
"""How long before a certificate ends we warn of it: ACME clients renew it so early."""

_PURPOSES: dict[Role, tuple[x509.ObjectIdentifier, str]] = {
    "server": (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
}
"""What a certificate's extendedKeyUsage has to have for a role, if it has that extension."""

_PEM = "PEM, -----BEGIN CERTIFICATE-----"
_CRL_PEM = "a list of revoked certificates, PEM, -----BEGIN X509 CRL-----"
_CRL_BEGIN = b"-----BEGIN X509 CRL-----"
_CRL_END = b"-----END X509 CRL-----"
_KEY_BEGIN = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----", re.MULTILINE)
_KEY_ENCRYPTED = re.compile(rb"^(-----BEGIN ENCRYPTED|Proc-Type: 4,ENCRYPTED)", re.MULTILINE)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Term:
    """From when to when a certificate, or a list of revoked ones, is valid; and which it is."""

    path: Path
    what: str
    begin: datetime
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of a directory, which fit each other. `own` is our certificate with its key."""

    ca: Path | None
    lists: tuple[RevokedList, ...]
    """What CAs have revoked."""
    verify_flags: ssl.VerifyFlags
    own: tuple[Path, Path] | None
    terms: tuple[Term, ...]
    unsuited: str | None = None
    """A warning if our certificate is for something else, so that others may refuse it."""

    @property
    def exposed(self) -> str | None:
        """Warn if others can read our key."""
        return None if self.own is None else exposed(self.own[1])


def paths_of(directory: Path, role: Role) -> tuple[Path, ...]:
    """Give the files that a directory may have for a role: those to watch for changes."""
    names = (CA_CERT, CA_CRL, f"{role}-cert.pem", f"{role}-key.pem")
    return tuple(directory / name for name in names)


def load_certificates(directory: Path, role: Role, *, need_ca: bool) -> Certificates:
    """Read a directory. A server needs its certificate and key; a client has both or neither.

    This does not look whether a certificate is valid today: `warnings` does. Raises a `CredentialsError` that
    names all files that cannot be used.
    """
    ca, crl, certificate, key = paths_of(directory, role)
    expected = "expected a directory with ca-cert.pem and the other files of nbdkit, qemu, libnbd"
    try:
        status = status_of(directory)
        status_of(ca)  # a directory that can be listed may still not let us at its files
    except OSError as error:
        raise CredentialsError(directory, f"{unseen(error)}; {expected}") from None
    if status is None or not stat.S_ISDIR(status.st_mode):
        raise CredentialsError(directory, f"is no directory; {expected}")
    has_own = role == "server" or is_there(certificate) or is_there(key)
    has_ca = need_ca or is_there(ca)
    chain: list[x509.Certificate] = []
    cas: list[x509.Certificate] = []
    crls: list[x509.CertificateRevocationList] = []
    with all_told() as part:
        if has_own:
            with part():
                chain = _certificates(certificate, f"the {role}'s certificate ({_PEM})")
            with part():
                _check_key(key, certificate.name)
        if has_ca:
            with part():
                cas = _certificates(ca, f"the certificates of the CAs to trust ({_PEM})")
            with part():
                crls = _crls(crl) if is_there(crl) else []
    own = (certificate, key) if has_own else None
    unsuited = _unsuited(certificate, chain[0], role) if chain else None
    terms = [_term(certificate, one) for one in chain]
    if not has_ca:
        return Certificates(None, (), ssl.VerifyFlags(0), own, tuple(terms), unsuited)
    terms += [_term(ca, one) for one in cas]
    lists = [_list(crl, one, cas) for one in crls]
    lasting = [crl for crl, one in zip(crls, lists, strict=True) if not is_followed(one, lists)]
    terms += [_crl_term(crl, one) for one in lasting]
    return Certificates(ca, tuple(lists), _verify_flags(cas), own, tuple(terms), unsuited)


def apply(certificates: Certificates, context: ssl.SSLContext) -> None:
    """Load into a context what `load_certificates` has read.

    Raises `CredentialsError`: OpenSSL may be stricter (a key that is too short), and the files may have
    changed.
    """
    if certificates.own is not None:
        certificate, key = certificates.own
        with _as_credentials_error(key, f"cannot be used as the key of {certificate.name}"):
            # Without a password here OpenSSL might ask for one on the terminal. No key has one (see
            # _check_key).
            context.load_cert_chain(certificate, key, password="")
    if certificates.ca is not None:
        with _as_credentials_error(certificates.ca, "cannot be used"):
            context.load_verify_locations(certificates.ca)
    context.verify_flags |= certificates.verify_flags


def warnings(terms: Iterable[Term], now: datetime) -> list[str]:
    """Say what is not valid at `now` (with a time zone), or ends within 30 days. The earliest end comes first.

    This includes lists of revoked certificates. Once a list has ended, every certificate of its CA is refused.
    """
    said: list[tuple[datetime, str]] = []
    for term in terms:
        if term.begin > now:
            said.append(
                (term.begin, f"{term.path}: {term.what} is not valid before {_day(term.begin)}")
            )
        if term.end is None:
            continue
        if term.end <= now:
            said.append((term.end, f"{term.path}: {term.what} has expired on {_day(term.end)}"))
        elif term.end - now <= timedelta(days=WARNING_DAYS):
            left = (term.end - now).days
            days = "less than a day" if left == 0 else f"{left} day{'s' if left > 1 else ''}"
            said.append(
                (term.end, f"{term.path}: {term.what} expires in {days}, on {_day(term.end)}")
            )
    return [text for _, text in sorted(said)]


def first_to_end(terms: Iterable[Term]) -> Term | None:
    """Give the certificate or list that ends first."""
    ending = [(term.end, term) for term in terms if term.end is not None]
    return min(ending, key=lambda pair: pair[0])[1] if ending else None


def names_of(directory: Path) -> list[str]:
    """Give the hosts that a directory's server certificate is for. Raises `CredentialsError`."""
    path = directory / "server-cert.pem"
    [own, *_] = _certificates(path, f"the server's certificate ({_PEM})")
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return [str(each.value) for each in common]
    hosts = names.get_values_for_type(x509.DNSName)
    return [*hosts, *map(str, names.get_values_for_type(x509.IPAddress))]


def shown(name: x509.Name) -> str:
    """Give a subject or issuer as RFC 4514 writes it, on one line of printable characters."""
    return printable(name.rfc4514_string()) or "(no name)"


# ---- reading ----


def _check_key(key: Path, certificate: str) -> None:
    expected = f"the key of {certificate}, PEM, without a password"
    content = read(key, expected)
    # We do not parse the key: `cryptography` refuses some EC keys that certtool (GnuTLS 3.7.9) makes and
    # OpenSSL takes.
    if not _KEY_BEGIN.search(content):
        raise CredentialsError(key, f"is no key; expected {expected}")
    if _KEY_ENCRYPTED.search(content):
        raise CredentialsError(key, f"has a password; expected {expected}")


def _certificates(path: Path, expected: str) -> list[x509.Certificate]:
    content = read(path, expected)
    found = _parsed(path, expected, lambda: x509.load_pem_x509_certificates(content))
    # Only when a field is asked for do we learn that it cannot be read.
    _parsed(
        path,
        expected,
        lambda: [(_term(path, one), one.issuer.public_bytes(), one.extensions) for one in found],
    )
    return found


def _crls(path: Path) -> list[x509.CertificateRevocationList]:
    content = read(path, _CRL_PEM)
    blocks = [
        _CRL_BEGIN + block.partition(_CRL_END)[0] + _CRL_END + b"\n"
        for block in content.split(_CRL_BEGIN)[1:]
    ]
    if not blocks:
        raise CredentialsError(path, f"has none in it; expected {_CRL_PEM}")
    found = _parsed(path, _CRL_PEM, lambda: [x509.load_pem_x509_crl(block) for block in blocks])
    _parsed(path, _CRL_PEM, lambda: [_crl_term(path, one) for one in found])
    return found


def _list(
    path: Path, crl: x509.CertificateRevocationList, cas: list[x509.Certificate]
) -> RevokedList:
    made = _parsed(path, _CRL_PEM, lambda: revoked_list(crl, cas))
    if made.signer is None and any(comparable(ca.subject) == made.issuer for ca in cas):
        problem = f"has a list that {shown(crl.issuer)} of {CA_CERT} has not signed"
        raise CredentialsError(path, problem)
    return made


def _parsed(path: Path, expected: str, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except UNREADABLE as error:
        why = printable(str(error).partition("\n")[0])[:200]
        raise CredentialsError(path, f"cannot be understood ({why}); expected {expected}") from None


def _verify_flags(cas: list[x509.Certificate]) -> ssl.VerifyFlags:
    """How chains are verified. As with GnuTLS, whatever is in ca-cert.pem is trusted, also an intermediate CA
    without the CA above it. OpenSSL has to be told so (PARTIAL_CHAIN).
    """
    subjects = {ca.subject.public_bytes() for ca in cas}
    partial = any(ca.issuer.public_bytes() not in subjects for ca in cas)
    return ssl.VERIFY_X509_PARTIAL_CHAIN if partial else ssl.VerifyFlags(0)


def _unsuited(path: Path, certificate: x509.Certificate, role: Role) -> str | None:
    """Warn of a certificate whose extendedKeyUsage leaves a role out. GnuTLS takes it all the same, so whoever
    tries it with nbdkit, libnbd or qemu notices nothing.
    """
    purpose, word = _PURPOSES[role]
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if purpose in usage:
        return None
    name, other = shown(certificate.subject), "client" if role == "server" else "server"
    return (
        f"{path}: the certificate {name} is not for {role}s (its extendedKeyUsage has no {word}):"
        f" a {other} that uses OpenSSL may refuse it"
    )


def _term(path: Path, certificate: x509.Certificate) -> Term:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Term(path, f"the certificate {shown(certificate.subject)}", begin, end)


def _crl_term(path: Path, crl: x509.CertificateRevocationList) -> Term:
    what = f"the list of what {shown(crl.issuer)} has revoked"
    return Term(path, what, crl.last_update_utc, crl.next_update_utc)


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


class _as_credentials_error:  # noqa: N801 # reads as a word of the with statement
    def __init__(self, path: Path, problem: str) -> None:
        self._path = path
        self._problem = problem

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ssl.SSLError):
            why = (error.reason or str(error)).replace("_", " ").lower()
            raise CredentialsError(self._path, f"{self._problem}: {why}") from None
        if isinstance(error, OSError):
            raise CredentialsError(self._path, f"cannot be read: {error.strerror}") from None
