"""Servers whose certificate is for clients alone: all that proves a server is asked of them, but that."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.tls.credentials import client_credentials, server_credentials
from gateway.tls.errors import NotAdmitted
from gateway.tls.issuing import Issued, issue, new_authority, subject_of
from gateway.tls.purpose import chain_of_any_purpose, is_of_purpose
from gateway.tls.session import Admitted
from tests.tls.handshakes import shake_hands, write

NOW = dt.datetime.now(dt.UTC)
DAYS = 10
CA = new_authority(DAYS, NOW)
FOR_CLIENTS = ExtendedKeyUsageOID.CLIENT_AUTH
NAMES = ["localhost", "127.0.0.1", "*.disks.example"]


def of_client(ca: Issued = CA, names: list[str] | None = None) -> Issued:
    return issue(ca, "s", NAMES if names is None else names, FOR_CLIENTS, DAYS, NOW)


def der(*issued: Issued) -> list[bytes]:
    return [each.certificate.public_bytes(Encoding.DER) for each in issued]


def chain(
    *shown: Issued, ca: Issued = CA, name: str = "localhost", at: dt.datetime = NOW
) -> list[bytes]:
    return chain_of_any_purpose(der(*shown), der(ca), name, at)


def between(ca: Issued | None, *, is_ca: bool) -> Issued:
    """What a CA has made to issue others with, or at least whoever has it does; without a CA, a root."""
    key = ec.generate_private_key(ec.SECP256R1())
    if ca is None:
        ca = Issued(CA.certificate, key)
    usage = x509.KeyUsage(*(place == 5 and is_ca for place in range(9)))
    builder = (
        x509.CertificateBuilder()
        .subject_name(CA.certificate.subject if ca.key is key else subject_of("between"))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
    )
    if is_ca:
        builder = builder.add_extension(usage, critical=True)
    return Issued(builder.sign(ca.key, SHA256()), key)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "one.disks.example", "LOCALHOST"])
def test_a_server_is_who_it_should_be(name: str) -> None:
    leaf = of_client()
    assert chain(leaf, name=name) == der(leaf, CA)


ROOT = between(None, is_ca=True)
MIDDLE = between(ROOT, is_ca=True)


def test_through_an_intermediate_ca() -> None:
    leaf = of_client(MIDDLE)
    assert chain(leaf, MIDDLE, ca=ROOT) == der(leaf, MIDDLE, ROOT)
    with pytest.raises(NotAdmitted):
        chain(leaf, ca=ROOT)  # without what is between


LATER = NOW + dt.timedelta(days=DAYS + 1)
IMPOSTOR = Issued(CA.certificate, ec.generate_private_key(ec.SECP256R1()))
NO_CA = between(CA, is_ca=False)


@pytest.mark.parametrize(
    ("shown", "name", "at"),
    [
        ([of_client()], "other.example", NOW),
        ([of_client()], "a.b.disks.example", NOW),
        ([of_client()], "127.0.0.2", NOW),
        ([of_client()], "not a name", NOW),
        ([of_client(names=[])], "s", NOW),
        ([of_client()], "localhost", LATER),
        ([of_client()], "localhost", NOW - dt.timedelta(days=DAYS)),
        ([of_client(new_authority(DAYS, NOW))], "localhost", NOW),
        ([of_client(IMPOSTOR)], "localhost", NOW),
        ([of_client(NO_CA), NO_CA], "localhost", NOW),
        ([of_client(under := between(CA, is_ca=True)), under], "localhost", NOW),
        ([CA], "localhost", NOW),
        ([], "localhost", NOW),
    ],
    ids=[
        "another name", "two labels for a star", "another address", "no name", "a common name",
        "expired", "not yet valid", "another CA", "not the CA's signature", "a leaf as CA",
        "a CA below one that may have none", "the CA itself", "nothing",
    ],
)  # fmt: skip
def test_whoever_is_not_who_it_should_be(shown: list[Issued], name: str, at: dt.datetime) -> None:
    with pytest.raises(NotAdmitted, match="for clients alone, and not accepted as such either"):
        chain(*shown, name=name, at=at)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
        dsa.generate_private_key(2048),
    ],
    ids=["RSA 1024", "a short curve", "DSA"],
)
def test_weak_keys(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey,
) -> None:
    leaf = of_client().certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for each in leaf.extensions:
        builder = builder.add_extension(each.value, each.critical)
    weak = builder.sign(CA.key, SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(NotAdmitted):
        chain_of_any_purpose([weak], der(CA), "localhost", NOW)


def test_what_is_no_certificate_and_nobody_trusted() -> None:
    for shown, trusted in (([b"nonsense"], der(CA)), (der(of_client()), [])):
        with pytest.raises(NotAdmitted):
            chain_of_any_purpose(shown, trusted, "localhost", NOW)


def folder_of(folder: Path, server: Issued) -> Path:
    for name, content in (CA.files("ca") | server.files("server")).items():
        write(folder / name, content)
    return folder


def refused(client: ssl.SSLContext, server: Path) -> ssl.SSLError:
    """Give what OpenSSL says of a server."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(theirs, ours, server_hostname="localhost")
    other = server_credentials(server, verify_client=False).session(b"")
    assert other is not None
    peer = other.wrap(ours, theirs)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    return caught.value


def test_only_the_purpose_is_forgiven(tmp_path: Path) -> None:
    trusting = ssl.create_default_context(
        cafile=folder_of(tmp_path / "a", of_client()) / "ca-cert.pem"
    )
    assert is_of_purpose(refused(trusting, tmp_path / "a"))
    late = issue(CA, "s", NAMES, FOR_CLIENTS, 1, NOW - dt.timedelta(days=5))
    stranger = of_client(new_authority(DAYS, NOW))
    for place, server in (("late", late), ("stranger", stranger)):
        told = client_credentials(
            folder_of(tmp_path / place, server), hostname="localhost", any_purpose=True
        )
        session = told.session()
        error = refused(session.context, tmp_path / place)
        assert session.is_forgiven(error) == is_of_purpose(error)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_second_handshake(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """The first has failed; a certificate that came meanwhile is looked at by OpenSSL again."""
    server = server_credentials(folder_of(tmp_path, of_client()), verify_client=False)
    client = client_credentials(tmp_path, hostname="localhost", any_purpose=True)
    error = refused(client.session().context, tmp_path)
    assert client.session().is_forgiven(error)
    result = shake_hands(server, client, version=version)
    assert result.client == Admitted(result.client_tls.getpeercert(binary_form=True), None)
    other = server_credentials(
        folder_of(tmp_path, of_client(names=["other.example"])), verify_client=False
    )
    assert "not accepted as such either" in str(shake_hands(other, client).client)
    right = issue(CA, "localhost", [], ExtendedKeyUsageOID.SERVER_AUTH, DAYS, NOW)
    assert shake_hands(
        server_credentials(folder_of(tmp_path, right), verify_client=False), client
    ).client


def test_nobody_else_forgives(tmp_path: Path) -> None:
    """A gateway of the fleet is no server of that kind; and who is not verified needs no forgiving."""
    error = refused(
        client_credentials(folder_of(tmp_path, of_client()), hostname="localhost")
        .session()
        .context,
        tmp_path,
    )
    for credentials in (
        client_credentials(tmp_path, hostname="localhost"),
        client_credentials(tmp_path, hostname="localhost", verify_peer=False, any_purpose=True),
    ):
        assert not credentials.session().is_forgiven(error)
