"""Directories of certificates: what is wrong with them is said of the file, and what is late is told."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.tls.certificates import Term, first_to_end, load_certificates, warnings
from gateway.tls.credentials import (
    ClientCredentials,
    ServerCredentials,
    client_credentials,
    client_paths,
    server_credentials,
    server_paths,
)
from gateway.tls.errors import CredentialsError
from gateway.tls.issuing import issue, new_authority
from tests.fuzz.__main__ import mutated
from tests.fuzz.texts import CERTIFICATES, REVOKED
from tests.tls.handshakes import DAY, NOW, crl_of, directory, shake_hands, write
from tests.tools.forbidden import forbid

GARBAGE = b"-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"


def _encrypted(content: bytes) -> bytes:
    key = load_pem_private_key(content, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("server-cert.pem", None, "No such file or directory; expected the server's certificate"),
        ("server-key.pem", None, "No such file or directory; expected the key of server-cert.pem"),
        ("ca-cert.pem", None, "No such file or directory; expected the certificates of the CAs"),
        ("server-cert.pem", lambda _: b"", "expected the server's certificate (PEM"),
        ("server-cert.pem", lambda _: b"\x30\x82", "expected the server's certificate (PEM"),
        ("server-cert.pem", lambda _: GARBAGE, "expected the server's certificate (PEM"),
        ("ca-cert.pem", lambda _: GARBAGE, "expected the certificates of the CAs to trust (PEM"),
        ("server-key.pem", lambda _: GARBAGE, "is no key; expected the key of server-cert.pem"),
        ("server-key.pem", _encrypted, "has a password; expected the key of server-cert.pem"),
        ("server-key.pem", lambda key: key[:90] + key[120:], "cannot be used as the key of"),
        ("ca-crl.pem", lambda _: b"", "has none in it; expected a list of revoked certificates"),
        (
            "ca-crl.pem",
            lambda _: b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            "cannot be understood",
        ),
    ],
)
def test_bad_files(
    server_dir: Path,
    ca: trustme.CA,
    name: str,
    change: Callable[[bytes], bytes] | None,
    expected: str,
) -> None:
    write(server_dir / "ca-crl.pem", crl_of(ca))
    path = server_dir / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CredentialsError) as caught:
        server_credentials(server_dir)
    assert caught.value.path == path
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [False, True])
def test_a_directory_that_may_not_be_entered(
    server_dir: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that directory which is to be mended, and not each of its files."""
    forbid(monkeypatch, server_dir if inside else server_dir.parent)
    for load in (
        lambda: server_credentials(server_dir),
        lambda: client_credentials(server_dir, hostname="localhost"),
    ):
        with pytest.raises(
            CredentialsError, match="cannot be looked at: Permission denied"
        ) as caught:
            load()
        assert [each.path for each in caught.value.each] == [server_dir]


def test_a_list_that_its_ca_has_not_signed(server_dir: Path, ca: trustme.CA) -> None:
    forger = SimpleNamespace(cert_pem=ca.cert_pem, private_key_pem=trustme.CA().private_key_pem)
    write(server_dir / "ca-crl.pem", crl_of(forger))  # type: ignore[arg-type] # what it looks at
    with pytest.raises(CredentialsError, match=r"has a list that .* has not signed"):
        server_credentials(server_dir)


def test_a_key_that_does_not_fit(server_dir: Path, ca: trustme.CA) -> None:
    other = ca.issue_cert("localhost").private_key_pem.bytes()
    write(server_dir / "server-key.pem", other)
    with pytest.raises(
        CredentialsError,
        match=r"server-key\.pem: cannot be used as the key of server-cert\.pem: key values mismatch",
    ):
        server_credentials(server_dir)


def test_half_of_a_client(client_dir: Path) -> None:
    (client_dir / "client-key.pem").unlink()
    with pytest.raises(CredentialsError, match=r"client-key\.pem: cannot be read: No such file"):
        client_credentials(client_dir, hostname="localhost")


def test_what_is_not_enough(tmp_path: Path, anonymous_dir: Path) -> None:
    with pytest.raises(CredentialsError, match="a directory of certificates, a PSK file, or both"):
        server_credentials(None)
    with pytest.raises(CredentialsError, match="absent: is no directory; expected a directory"):
        server_credentials(tmp_path / "absent")
    with pytest.raises(CredentialsError, match="expected tls-hostname"):
        client_credentials(anonymous_dir)
    assert client_credentials(anonymous_dir, verify_peer=False)


def test_a_server_that_verifies_nobody_needs_no_ca(server_dir: Path) -> None:
    (server_dir / "ca-cert.pem").unlink()
    assert server_credentials(server_dir, verify_client=False)
    with pytest.raises(CredentialsError, match=r"ca-cert\.pem"):
        server_credentials(server_dir)


def test_a_chain_in_the_certificates_file(tmp_path: Path, ca: trustme.CA) -> None:
    leaf = ca.create_child_ca().issue_cert("localhost")
    assert len(leaf.cert_chain_pems) == 2
    server = server_credentials(directory(tmp_path / "s", ca, server=leaf), verify_client=False)
    client = client_credentials(directory(tmp_path / "c", ca), hostname="localhost")
    assert shake_hands(server, client).admitted


def test_paths_to_watch() -> None:
    names = [str(path) for path in server_paths(Path("d"), Path("keys.psk"))]
    assert names == [
        "d/ca-cert.pem", "d/ca-crl.pem", "d/server-cert.pem", "d/server-key.pem", "keys.psk",
    ]  # fmt: skip
    assert client_paths(Path("d"), None)[2] == Path("d/client-cert.pem")
    assert client_paths(None, None) == ()


# ---- what is late ----

PATH = Path("server-cert.pem")


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (NOW - DAY, NOW + 31 * DAY, None),
        (NOW - DAY, None, None),
        (NOW - DAY, NOW + 30 * DAY, "x expires in 30 days, on 2026-02-14 12:00 UTC"),
        (NOW - DAY, NOW + 1.5 * DAY, "x expires in 1 day, on 2026-01-17 00:00 UTC"),
        (NOW - DAY, NOW + 0.5 * DAY, "x expires in less than a day, on 2026-01-16 00:00 UTC"),
        (NOW - DAY, NOW, "x has expired on 2026-01-15 12:00 UTC"),
        (NOW + DAY, NOW + 99 * DAY, "x is not valid before 2026-01-16 12:00 UTC"),
    ],
)
def test_warnings(begin: dt.datetime, end: dt.datetime | None, expected: str | None) -> None:
    term = Term(PATH, "x", begin, end)
    assert warnings([term], NOW) == ([f"server-cert.pem: {expected}"] if expected else [])


def test_the_first_to_end_comes_first() -> None:
    terms = [Term(PATH, str(days), NOW - DAY, NOW + days * DAY) for days in (9, 3, 5)]
    terms.append(Term(PATH, "never", NOW, None))
    assert [text.split()[1] for text in warnings(terms, NOW)] == ["3", "5", "9"]
    assert first_to_end(terms) == terms[1]
    assert first_to_end(terms[3:]) is None


@pytest.mark.parametrize(
    ("role", "purposes", "lacks"),
    [
        ("server", [ExtendedKeyUsageOID.CLIENT_AUTH], "serverAuth"),
        ("client", [ExtendedKeyUsageOID.SERVER_AUTH], "clientAuth"),
        ("server", [ExtendedKeyUsageOID.SERVER_AUTH], None),
        ("client", [ExtendedKeyUsageOID.CLIENT_AUTH], None),
        ("server", [], None),
    ],
)
def test_a_certificate_that_is_for_something_else_is_warned_of(
    tmp_path: Path, role: str, purposes: list[x509.ObjectIdentifier], lacks: str | None
) -> None:
    """Those that GnuTLS takes, and OpenSSL does not."""
    now = dt.datetime.now(dt.UTC)
    ca = new_authority(50, now)
    files = ca.files("ca")
    if purposes:
        files |= issue(ca, "joe", ["localhost"], purposes[0], 50, now).files(role)
    else:  # which is for anything
        files |= ca.files(role)
    for name, content in files.items():
        write(tmp_path / name, content)
    credentials: ServerCredentials | ClientCredentials = (
        server_credentials(tmp_path)
        if role == "server"
        else client_credentials(tmp_path, hostname="localhost")
    )
    said = credentials.warnings(now)
    assert len(said) == (lacks is not None)
    if lacks:
        assert said[0].startswith(f"{tmp_path / role}-cert.pem: the certificate CN=joe ")
        assert f"is not for {role}s (its extendedKeyUsage has no {lacks})" in said[0]


def test_whose_terms(server_dir: Path, ca: trustme.CA, server_leaf: trustme.LeafCert) -> None:
    write(server_dir / "ca-crl.pem", crl_of(ca, end=dt.datetime.now(dt.UTC) + 3 * DAY))
    server = server_credentials(server_dir)
    assert {term.path.name for term in server.terms} == {
        "server-cert.pem", "ca-cert.pem", "ca-crl.pem",
    }  # fmt: skip
    assert server.first_to_end is not None
    assert server.first_to_end.path.name == "ca-crl.pem"
    [warning] = server.warnings(dt.datetime.now(dt.UTC))
    assert "the list of what " in warning
    assert "has revoked expires in 2 days" in warning


@pytest.mark.filterwarnings("ignore::UserWarning")  # of `cryptography`, at some of them
@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 1000), marks=pytest.mark.real)], ids=str
)
def test_garbage_in_files_is_refused_politely(seeds: range, tmp_path: Path) -> None:
    """Some fields are read only when they are asked for, and then it is late for a good error."""
    for seed in seeds:
        random = Random(seed)
        files = {"ca-cert.pem": random.choice(CERTIFICATES), "ca-crl.pem": REVOKED}
        changed = random.choice(list(files))
        files[changed] = mutated(random, files[changed])
        for (name, der), kind in zip(files.items(), ("CERTIFICATE", "X509 CRL"), strict=True):
            body = base64.encodebytes(der).decode()
            text = f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n"
            (tmp_path / name).write_text(text)
        try:
            loaded = load_certificates(tmp_path, "client", need_ca=True)
            said = warnings(loaded.terms, NOW)
        except CredentialsError as error:
            said = [str(error)]
        assert all(line.isprintable() for line in said), seed
