"""Servers whose certificate is for clients alone: all that proves a server is asked of them, but that."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tomllib
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
from gateway.tls.purpose import MAX_SHOWN, chain_of_a_client, is_of_purpose
from gateway.tls.session import Admitted
from tests.tls.handshakes import shake_hands, write

NOW = dt.datetime.now(dt.UTC)
TOP = Path(__file__).parents[2]
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
    return chain_of_a_client(der(*shown), der(ca), name, at)


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


# ---- what OpenSSL asks of extensions, and no more ----

CA_KEY, LEAF_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
SIGNS = "key_cert_sign", "crl_sign"


def usage(*said: str) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**dict.fromkeys(every, False) | dict.fromkeys(said, True))


def made(
    subject: str,
    *extensions: x509.ExtensionType,
    critical: bool = False,
    key: rsa.RSAPrivateKey = LEAF_KEY,
    by: rsa.RSAPrivateKey = CA_KEY,
    issuer: str = "root",
) -> bytes:
    """Make a certificate that has these extensions and no others."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_of(subject))
        .issuer_name(subject_of(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=DAYS))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(by, SHA256()).public_bytes(Encoding.DER)


IS_CA = x509.BasicConstraints(ca=True, path_length=None)
CLIENTS = x509.ExtendedKeyUsage([FOR_CLIENTS])


def called(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


BARE_ROOT = made("root", IS_CA, key=CA_KEY)
BARE_LEAF = made("s", CLIENTS, called("localhost"))


def identified(key: rsa.RSAPrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


@pytest.mark.parametrize(
    ("shown", "root"),
    [
        ([BARE_LEAF], BARE_ROOT),
        ([BARE_LEAF], made("root", IS_CA, identified(CA_KEY), key=CA_KEY, critical=False)),
        ([BARE_LEAF], made("root", IS_CA, usage(*SIGNS), key=CA_KEY, critical=True)),
        ([made("s", CLIENTS, called("localhost"), critical=True)], BARE_ROOT),
        ([made("s", CLIENTS, called("localhost"), usage("key_encipherment"))], BARE_ROOT),
        (
            [
                made("s", CLIENTS, called("localhost"), by=LEAF_KEY, issuer="between"),
                made("between", IS_CA, CLIENTS, usage(*SIGNS)),
            ],
            BARE_ROOT,
        ),
    ],
    ids=[
        "a CA without keyUsage and identifiers", "as openssl req -x509 makes it", "all critical",
        "its own are critical", "a key for RSA alone", "a CA for clients",
    ],
)  # fmt: skip
def test_what_libnbd_takes(shown: list[bytes], root: bytes) -> None:
    assert chain_of_a_client(shown, [root], "localhost", NOW) == [*shown, root]


@pytest.mark.parametrize(
    "leaf",
    [
        made("s", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), called("localhost")),
        made(
            "s", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), called("localhost")
        ),
        made("s", called("localhost")),
        made("s", CLIENTS, called("localhost"), usage("content_commitment")),
        made("s", CLIENTS, called("localhost"), usage("crl_sign")),
        made("s", CLIENTS, called("localhost"), usage("key_agreement")),
        made("s", CLIENTS, called("localhost"), IS_CA),
    ],
    ids=["code", "e-mail", "nothing", "contracts", "lists", "Diffie-Hellman", "a CA's own"],
)
def test_what_is_for_something_else_than_clients(leaf: bytes) -> None:
    """OpenSSL has one number for all of these; what keyUsage forbids, GnuTLS refuses as well."""
    with pytest.raises(NotAdmitted):
        chain_of_a_client([leaf], [BARE_ROOT], "localhost", NOW)


@pytest.mark.parametrize(
    "root",
    [
        made("root", IS_CA, usage("crl_sign"), key=CA_KEY),
        made("root", x509.BasicConstraints(ca=False, path_length=None), key=CA_KEY),
        made("root", key=CA_KEY),
        made("root", IS_CA, x509.NameConstraints([x509.DNSName("example.com")], None), key=CA_KEY),
    ],
    ids=[
        "signs lists alone",
        "is no CA",
        "does not say that it is one",
        "is one for others' names",
    ],
)
def test_who_may_not_issue_it(root: bytes) -> None:
    with pytest.raises(NotAdmitted):
        chain_of_a_client([BARE_LEAF], [root], "localhost", NOW)


@pytest.mark.parametrize(
    ("name", "host", "is_it"),
    [
        ("my_server", "my_server", True),
        ("xn--bcher-kva.example", "bücher.example", True),
        ("*.disks.example", "ONE.disks.example", True),
        ("*.example", "one.example", False),
        ("*", "localhost", False),
        ("*.disks.example", "disks.example", False),
        ("*.disks.example", ".disks.example", False),
        ("one*.disks.example", "one1.disks.example", False),
        ("server.example", "server.example.", False),
        ("127.0.0.1", "127.0.0.1", False),
    ],
)
def test_names_are_compared_as_openssl_does(name: str, host: str, is_it: bool) -> None:
    leaf = made("s", CLIENTS, called(name))
    try:
        chain_of_a_client([leaf], [BARE_ROOT], host, NOW)
    except NotAdmitted:
        assert not is_it
    else:
        assert is_it


def test_an_address_of_a_zone_is_another_one() -> None:
    addresses = [x509.IPAddress(ipaddress.ip_address("fe80::1"))]
    leaf = made("s", CLIENTS, x509.SubjectAlternativeName(addresses))
    chain_of_a_client([leaf], [BARE_ROOT], "fe80::1", NOW)
    with pytest.raises(NotAdmitted, match="it is not for fe80::1%lo"):
        chain_of_a_client([leaf], [BARE_ROOT], "fe80::1%lo", NOW)


def test_more_certificates_than_a_chain_has_are_not_looked_at() -> None:
    """Two that are called the same at each step make 2, 4, 8 ... chains; each has to be tried."""
    shown = [made("s", CLIENTS, called("localhost"), by=LEAF_KEY, issuer="0")]
    for step in range(MAX_SHOWN):
        shown.append(made(f"{step}", IS_CA, by=LEAF_KEY, issuer=f"{step + 1}"))
    with pytest.raises(NotAdmitted, match="its chain has 11; at most 10"):
        chain_of_a_client(shown, [BARE_ROOT], "localhost", NOW)


def test_its_words_are_told_in_short_and_escaped() -> None:
    """Who stands between needs no key of a CA to get that far."""
    leaf = made("\x1b[31m\n" + "A" * 50, CLIENTS, called("x"), by=LEAF_KEY)
    with pytest.raises(NotAdmitted) as caught:
        chain_of_a_client([leaf], [made("other", IS_CA, key=CA_KEY)], "localhost", NOW)
    assert str(caught.value).isprintable()
    long = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "\n" * 60)] * 200
    signed = (
        x509.CertificateBuilder(x509.Name([]), x509.Name(long), LEAF_KEY.public_key(), 7, NOW, NOW)
        .sign(LEAF_KEY, SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(NotAdmitted) as caught:
        chain_of_a_client([signed], [BARE_ROOT], "localhost", NOW)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_verifier_is_there_in_the_oldest_version_that_we_ask_for() -> None:
    """`ExtensionPolicy` is new in 45.0; without it nothing that has TLS would start."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    [said] = [each for each in project["dependencies"] if each.startswith("cryptography")]
    assert int(said.removeprefix("cryptography>=").partition(".")[0]) >= 45


# ---- who it is ----

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
    with pytest.raises(NotAdmitted, match="is not for servers, and not accepted as a client's: "):
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
        chain_of_a_client([weak], der(CA), "localhost", NOW)


def test_what_is_no_certificate_and_nobody_trusted() -> None:
    for shown, trusted in (([b"nonsense"], der(CA)), (der(of_client()), [])):
        with pytest.raises(NotAdmitted):
            chain_of_a_client(shown, trusted, "localhost", NOW)


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
        assert session.forgive(error) == is_of_purpose(error)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_second_handshake(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """The first has failed; a certificate that came meanwhile is looked at by OpenSSL again."""
    server = server_credentials(folder_of(tmp_path, of_client()), verify_client=False)
    client = client_credentials(tmp_path, hostname="localhost", any_purpose=True)
    error = refused(client.session().context, tmp_path)
    assert client.session().forgive(error)
    result = shake_hands(server, client, version=version)
    assert result.client == Admitted(result.client_tls.getpeercert(binary_form=True), None)
    other = server_credentials(
        folder_of(tmp_path, of_client(names=["other.example"])), verify_client=False
    )
    assert "not accepted as a client's" in str(shake_hands(other, client).client)
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
        assert not credentials.session().forgive(error)


def test_the_second_handshake_goes_by_the_files_that_the_first_went_by(tmp_path: Path) -> None:
    """What is in the directory by then may be half of something, or nothing."""
    folder_of(tmp_path, of_client())
    for name, content in issue(CA, "c", [], FOR_CLIENTS, DAYS, NOW).files("client").items():
        write(tmp_path / name, content)
    server = server_credentials(tmp_path, verify_client=False)
    client = client_credentials(tmp_path, hostname="localhost", any_purpose=True)
    error = refused(client.session().context, tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert client.session().forgive(error)
    assert isinstance(shake_hands(server, client).client, Admitted)
