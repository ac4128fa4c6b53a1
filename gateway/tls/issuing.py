"""Certificates and keys for trying TLS out, and the list of what is revoked. Nothing is written here.

Keys are of NIST P-256, which every TLS library of the field takes.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.tls.errors import CredentialsError
from gateway.tls.reading import UNREADABLE

MAX_NAME_CHARACTERS = 64
"""ub-common-name of RFC 5280, appendix A.1."""

CLOCK_SKEW = timedelta(hours=1)
"""How far certificates are dated back: a machine whose clock is a little slow must find them valid."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def files(self, name: str) -> dict[str, bytes]:
        """Give the files that hold both."""
        return {f"{name}-cert.pem": pem_of(self.certificate), f"{name}-key.pem": _key_pem(self.key)}


def new_authority(days: int, now: datetime) -> Issued:
    """Make an authority, with a name of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    # People who read error messages, and some libraries, would take two authorities of one name for each other.
    name = subject_of(f"nbd-gateway trial CA {secrets.token_hex(4)}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, name, key, days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
    )
    return Issued(builder.sign(key, SHA256()), key)


def client_files(ca: Issued, name: str, days: int, now: datetime) -> dict[str, bytes]:
    """Give the files of a client's certificate. Raises `CredentialsError`."""
    # The name is that of a directory, too.
    if not re.fullmatch(r"[\w@+-][\w .@+-]*", name):
        raise CredentialsError(
            None,
            "a client's name has letters, digits, spaces and any of . @ + - _, and begins with no space"
            f" or dot, not {name!r}",
        )
    return issue(ca, name, [], ExtendedKeyUsageOID.CLIENT_AUTH, days, now).files("client")


def issue(
    ca: Issued,
    common_name: str,
    hosts: list[str],
    purpose: x509.ObjectIdentifier,
    days: int,
    now: datetime,
) -> Issued:
    """Make a certificate for a purpose, with a key of its own. Raises `CredentialsError`."""
    names = [_host(host) for host in hosts]
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,  # an EC key cannot do that; but qemu before 3.1 insists on it
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = (
        _builder(subject_of(common_name), ca.certificate.subject, key, days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Issued(builder.sign(ca.key, SHA256()), key)


def issued_again(old: x509.Certificate, ca: Issued, days: int, now: datetime) -> x509.Certificate:
    """Issue a certificate once more: the same but for its time and serial number."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(ca.certificate.subject)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(ca.key, SHA256())


def list_of_revoked(ca: Issued, gone: Mapping[int, datetime], now: datetime) -> bytes:
    """Give the list of what an authority has revoked, as a file. It is valid as long as the authority is."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now)
        .next_update(ca.certificate.not_valid_after_utc)
    )
    for serial, since in gone.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca.key, SHA256()).public_bytes(Encoding.PEM)


def is_issued(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Say whether a CA has issued a certificate; it has issued its own."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def subject_of(common_name: str) -> x509.Name:
    """Give the name of a certificate's owner."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:MAX_NAME_CHARACTERS])])


def pem_of(certificate: x509.Certificate) -> bytes:
    """Give a certificate as a file."""
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    if not re.fullmatch(rf"(\*\.)?{labels}(\.{labels})*", host) or len(host) > 253:
        raise CredentialsError(None, f"expected a host's name or IP address, got {host!r}")
    return x509.DNSName(host)
