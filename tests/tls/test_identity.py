"""Who a certificate or a key says somebody is."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.identity import Identity, UnixPeer
from gateway.tls.credentials import client_credentials, server_credentials
from gateway.tls.errors import NotAdmitted
from gateway.tls.identity import identity_of
from gateway.tls.revoked import RevokedList, check_not_revoked, comparable
from tests.tls.handshakes import DAY, NOW, shake_hands

KEY = ec.generate_private_key(ec.SECP256R1())


def _certificate(
    subject: list[tuple[x509.ObjectIdentifier, str]], names: list[x509.GeneralName]
) -> bytes:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(kind, value) for kind, value in subject]))
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


SUBJECT = [
    (NameOID.COUNTRY_NAME, "DE"),
    (NameOID.ORGANIZATION_NAME, "Disks, Inc."),
    (NameOID.COMMON_NAME, "joe"),
]
FULL = _certificate(
    [*SUBJECT, (NameOID.COMMON_NAME, "joseph")],
    [
        x509.DNSName("vm1.example"),
        x509.DNSName("*.example"),
        x509.UniformResourceIdentifier("spiffe://example/vm1"),
        x509.RFC822Name("joe@example.org"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
    ],
)


def test_everything() -> None:
    unix = UnixPeer(1, 2, 3)
    base = replace(Identity.at("192.0.2.1", 5), unix=unix)
    identity = identity_of(FULL, None, base=base, tls_version="TLSv1.3", cipher="AES")
    assert identity == Identity(
        peer="192.0.2.1:5",
        address=ipaddress.ip_address("192.0.2.1"),
        unix=unix,
        psk_user=None,
        subject=(("C", "DE"), ("O", "Disks, Inc."), ("CN", "joe"), ("CN", "joseph")),
        common_names=("joe", "joseph"),
        dns_names=("vm1.example", "*.example"),
        uris=("spiffe://example/vm1",),
        emails=("joe@example.org",),
        ip_addresses=("192.0.2.1", "2001:db8::1"),
        issuer_common_names=("The CA",),
        fingerprint=hashlib.sha256(FULL).hexdigest(),
        tls_version="TLSv1.3",
        cipher="AES",
    )
    assert identity.describe() == (
        "cn:joe cn:joseph dns:vm1.example dns:*.example uri:spiffe://example/vm1"
        " email:joe@example.org ip:192.0.2.1 ip:2001:db8::1"
        f" sha256:{hashlib.sha256(FULL).hexdigest()[:16]} unix:pid=1,uid=2 192.0.2.1:5"
    )


def test_a_key() -> None:
    identity = identity_of(None, "joe", base=Identity("h:1"))
    assert identity == Identity(peer="h:1", psk_user="joe")
    assert identity.describe() == "psk:joe h:1"


def test_nobody() -> None:
    assert identity_of(None, None) == Identity()


def test_a_renewed_certificate_is_the_same_client() -> None:
    # Each signature is another, and so each fingerprint.
    first, renewed = (identity_of(_certificate(SUBJECT, []), None) for _ in range(2))
    assert first.fingerprint != renewed.fingerprint
    assert first.key == renewed.key
    assert first.key == ("certificate", "issuer=The CA", "C=DE", "O=Disks, Inc.", "CN=joe")


def test_a_name_that_looks_like_two() -> None:
    certificate = _certificate([(NameOID.COMMON_NAME, "x,O=admins+CN=root/CN=root")], [])
    identity = identity_of(certificate, None)
    assert identity.subject == (("CN", "x,O=admins+CN=root/CN=root"),)
    assert identity.common_names == ("x,O=admins+CN=root/CN=root",)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\0b", r"a\x00b"),
        ("\u202eevil", r"\u202eevil"),
        ("jö", "jö"),
        ("x" * 64, "x" * 64),
    ],
)
def test_control_characters_are_escaped(name: str, shown: str) -> None:
    identity = identity_of(_certificate([(NameOID.COMMON_NAME, name)], []), None)
    assert identity.common_names == (name,)
    assert identity.describe().startswith(f"cn:{shown} sha256:")
    assert Identity(psk_user=name).describe() == f"psk:{shown}"


def test_a_revoked_name_is_told_in_one_line() -> None:
    der = _certificate([(NameOID.COMMON_NAME, "\x1b[2J" + "x" * 50)] * 8, [])
    issuer = comparable(x509.load_der_x509_certificate(der).issuer)
    revoked = RevokedList(issuer, "The CA", frozenset({1}), None, None)
    with pytest.raises(NotAdmitted) as refused:
        check_not_revoked([der], [revoked], NOW)
    assert str(refused.value).startswith(r"The CA has revoked CN=\x1b[2Jxxx")
    assert len(str(refused.value)) < 300


def test_a_line_of_the_log_is_bounded() -> None:
    names = [x509.DNSName("x" * 60 + str(i) + "." + "y" * 60) for i in range(1000)]
    text = identity_of(_certificate([(NameOID.COMMON_NAME, "a")], list(names)), None).describe()
    assert "and 993 names more" in text
    assert len(text) < 1000
    # However much longer they become where they are escaped.
    tags = [(NameOID.COMMON_NAME, "\U000e0041" * 16)] * 8
    assert len(identity_of(_certificate(tags, []), None).describe()) < 1000


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x00",
        FULL[:-1],
        FULL[:100],
        b"\xff" * 100,
        FULL[:12] + b"\1" + FULL[13:],  # version 2, which there is not
    ],
    ids=["empty", "nothing in it", "cut by one", "cut at 100", "no DER", "version 2"],
)
def test_malformed(der: bytes) -> None:
    with pytest.raises(NotAdmitted, match="its certificate cannot be understood"):
        identity_of(der, None)


@given(st.integers(0, len(FULL) - 1), st.binary(min_size=1, max_size=4))
@example(15, b"\x00")  # a serial number that is 0, which `cryptography` takes still, and warns of
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_garbage_is_refused_politely(at: int, garbage: bytes) -> None:
    try:
        text = identity_of(FULL[:at] + garbage + FULL[at + len(garbage) :], None).describe()
    except NotAdmitted as error:
        text = str(error)
    assert text.isprintable()


def test_of_a_session(server_dir: Path, client_dir: Path) -> None:
    result = shake_hands(
        server_credentials(server_dir), client_credentials(client_dir, hostname="localhost")
    )
    assert result.server_tls is not None
    cipher = result.server_tls.cipher()
    assert cipher is not None
    admitted = result.admitted
    identity = identity_of(
        admitted.certificate,
        admitted.psk_user,
        tls_version=result.server_tls.version(),
        cipher=cipher[0],
    )
    assert identity.common_names == ("joe",)
    assert identity.emails == ("joe@example.org",)
    assert (identity.tls_version, identity.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
