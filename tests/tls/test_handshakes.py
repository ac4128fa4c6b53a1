"""Who gets in, and who does not: handshakes in memory."""

from __future__ import annotations

import datetime as dt
import ssl
import warnings
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID

from gateway.tls.credentials import client_credentials, server_credentials
from gateway.tls.errors import NotAdmitted
from gateway.tls.revoked import check_not_revoked, comparable
from tests.tls.handshakes import DAY, VERSIONS, Result, crl_of, directory, shake_hands

TLS12, TLS13 = VERSIONS
both_versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
GCM = ("TLS_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384")


@both_versions
@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 16])
def test_certificates_of_both(
    server_dir: Path, client_dir: Path, version: ssl.TLSVersion, piece_bytes: int
) -> None:
    result = shake_hands(
        server_credentials(server_dir),
        client_credentials(client_dir, hostname="localhost"),
        version=version,
        piece_bytes=piece_bytes,
    )
    assert result.admitted.certificate is not None
    assert result.admitted.psk_user is None
    cipher = result.client_tls.cipher()
    assert cipher is not None
    assert cipher[0] in GCM
    assert result.client_tls.compression() is None


@both_versions
def test_a_client_without_a_certificate(
    server_dir: Path, anonymous_dir: Path, version: ssl.TLSVersion
) -> None:
    client = client_credentials(anonymous_dir, hostname="localhost")
    result = shake_hands(server_credentials(server_dir), client, version=version)
    assert result.server == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    result = shake_hands(
        server_credentials(server_dir, verify_client=False), client, version=version
    )
    assert result.admitted.certificate is None


@both_versions
def test_a_client_of_another_ca(
    server_dir: Path, tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA, version: ssl.TLSVersion
) -> None:
    theirs = directory(tmp_path / "theirs", ca, client=other_ca.issue_cert("joe@example.org"))
    client = client_credentials(theirs, hostname="localhost")
    result = shake_hands(server_credentials(server_dir), client, version=version)
    assert result.server == "CERTIFICATE_VERIFY_FAILED"
    assert isinstance(result.client, str)


def test_a_server_of_another_ca(server_dir: Path, tmp_path: Path, other_ca: trustme.CA) -> None:
    client = client_credentials(directory(tmp_path / "other", other_ca), hostname="localhost")
    server = server_credentials(server_dir, verify_client=False)
    assert shake_hands(server, client).client == "CERTIFICATE_VERIFY_FAILED"
    # The system's CAs do not know a CA for tests either.
    assert shake_hands(server, client_credentials(hostname="localhost")).client == (
        "CERTIFICATE_VERIFY_FAILED"
    )
    trusting = client_credentials(
        directory(tmp_path / "other", other_ca), hostname="localhost", verify_peer=False
    )
    assert shake_hands(server, trusting).admitted.certificate is None


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [
        ("localhost", None),
        ("server.example", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("other.example", "CERTIFICATE_VERIFY_FAILED"),
        ("127.0.0.2", "CERTIFICATE_VERIFY_FAILED"),
        ("::2", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_the_name_of_the_server(
    server_dir: Path, anonymous_dir: Path, hostname: str, expected: str | None
) -> None:
    server = server_credentials(server_dir, verify_client=False)
    result = shake_hands(server, client_credentials(anonymous_dir, hostname=hostname))
    assert (result.client if expected else None) == expected
    trusting = client_credentials(anonymous_dir, hostname=hostname, verify_peer=False)
    assert shake_hands(server, trusting).admitted


@pytest.mark.parametrize(("begin", "end"), [(-20, -10), (10, 90)], ids=["expired", "not yet valid"])
def test_out_of_time(
    tmp_path: Path, server_dir: Path, anonymous_dir: Path, ca: trustme.CA, begin: int, end: int
) -> None:
    now = dt.datetime.now(dt.UTC)
    leaf = ca.issue_cert("localhost", not_before=now + begin * DAY, not_after=now + end * DAY)
    # It loads: whoever starts the gateway is told, and clients that look see for themselves.
    server = server_credentials(directory(tmp_path / "old", ca, server=leaf), verify_client=False)
    [warning] = server.warnings(now)
    assert ("expired" in warning) == (end < 0)
    result = shake_hands(server, client_credentials(anonymous_dir, hostname="localhost"))
    assert result.client == "CERTIFICATE_VERIFY_FAILED"

    client = client_credentials(directory(tmp_path / "old", ca, client=leaf), hostname="localhost")
    result = shake_hands(server_credentials(server_dir), client)
    assert result.server == "CERTIFICATE_VERIFY_FAILED"


def test_revoked(
    server_dir: Path,
    client_dir: Path,
    tmp_path: Path,
    ca: trustme.CA,
    client_leaf: trustme.LeafCert,
    server_leaf: trustme.LeafCert,
) -> None:
    bad = ca.issue_cert("bad@example.org")
    directory(server_dir, None, crl=crl_of(ca, [bad]))
    server = server_credentials(server_dir)
    assert shake_hands(server, client_credentials(client_dir, hostname="localhost")).admitted
    revoked = directory(tmp_path / "revoked", ca, client=bad)
    result = shake_hands(server, client_credentials(revoked, hostname="localhost"))
    assert " has revoked " in str(result.server)

    directory(client_dir, None, crl=crl_of(ca, [server_leaf]))
    result = shake_hands(server, client_credentials(client_dir, hostname="localhost"))
    assert " has revoked " in str(result.client)
    # Who is not verified is not looked up either.
    unverified = client_credentials(client_dir, hostname="localhost", verify_peer=False)
    assert shake_hands(server, unverified).admitted


def test_a_list_of_revoked_certificates_that_has_ended(
    server_dir: Path, client_dir: Path, ca: trustme.CA
) -> None:
    now = dt.datetime.now(dt.UTC)
    directory(server_dir, None, crl=crl_of(ca, begin=now - 9 * DAY, end=now - DAY))
    server = server_credentials(server_dir)
    [warning] = server.warnings(now)
    assert "has expired" in warning
    result = shake_hands(server, client_credentials(client_dir, hostname="localhost"))
    assert str(result.server).endswith(" has revoked has expired")


def test_a_list_of_one_ca_is_about_its_own_certificates(tmp_path: Path) -> None:
    """While CAs are exchanged there are two, and the new one may not have revoked anything."""
    old, new = trustme.CA(), trustme.CA()
    both = old.cert_pem.bytes() + new.cert_pem.bytes()
    now = dt.datetime.now(dt.UTC)
    good, bad = (old.issue_cert(f"{name}@example.org") for name in ("good", "bad"))
    for crl, refused in (
        (crl_of(old, [bad]), {"bad"}),
        (crl_of(old, [bad], begin=now - 9 * DAY, end=now - DAY), {"bad", "good"}),
    ):
        server_dir = directory(tmp_path / "s", old, server=old.issue_cert("localhost"), crl=crl)
        (server_dir / "ca-cert.pem").write_bytes(both)
        server = server_credentials(server_dir)
        for name, ca, leaf in (
            ("good", old, good),
            ("bad", old, bad),
            ("new", old, new.issue_cert("new@example.org")),
        ):
            client = directory(tmp_path / name, ca, client=leaf)
            result = shake_hands(server, client_credentials(client, hostname="localhost"))
            assert isinstance(result.server, str) == (name in refused), (name, result)


@pytest.mark.parametrize("newer_first", [False, True])
def test_a_newer_list_of_a_ca_may_stand_beside_one_that_has_ended(
    server_dir: Path, client_dir: Path, tmp_path: Path, ca: trustme.CA, newer_first: bool
) -> None:
    now = dt.datetime.now(dt.UTC)
    first, second = (ca.issue_cert(f"{name}@example.org") for name in ("first", "second"))
    ended = crl_of(ca, [first], begin=now - 9 * DAY, end=now - DAY)
    newer = crl_of(ca, [second], begin=now - DAY, end=now + 90 * DAY)
    lists = newer + ended if newer_first else ended + newer
    server = server_credentials(directory(server_dir, None, crl=lists))
    assert not server.warnings(now)
    assert shake_hands(server, client_credentials(client_dir, hostname="localhost")).admitted
    for leaf in (first, second):
        revoked = directory(tmp_path / "revoked", ca, client=leaf)
        result = shake_hands(server, client_credentials(revoked, hostname="localhost"))
        assert " has revoked CN" in str(result.server) or " has revoked O" in str(result.server)
    # All of them have to have ended.
    also_ended = crl_of(ca, [second], begin=now - 9 * DAY, end=now - DAY / 2)
    server = server_credentials(directory(server_dir, None, crl=ended + also_ended))
    [warning] = server.warnings(now)
    assert "has expired" in warning
    result = shake_hands(server, client_credentials(client_dir, hostname="localhost"))
    assert str(result.server).endswith(" has revoked has expired")


def test_a_list_is_about_what_the_key_has_issued_that_has_signed_it(tmp_path: Path) -> None:
    """A CA has a new key and its old name, and of the old key there is a list, which has ended."""
    old, new = (
        trustme.CA(organization_name="us", organization_unit_name="the CA") for _ in range(2)
    )
    now = dt.datetime.now(dt.UTC)
    ended = crl_of(old, begin=now - 9 * DAY, end=now - DAY)
    server_dir = directory(tmp_path / "s", old, server=old.issue_cert("localhost"), crl=ended)
    (server_dir / "ca-cert.pem").write_bytes(old.cert_pem.bytes() + new.cert_pem.bytes())
    server = server_credentials(server_dir)
    for issuer, is_refused in ((old, True), (new, False)):
        client = directory(tmp_path / "c", old, client=issuer.issue_cert("joe@example.org"))
        result = shake_hands(server, client_credentials(client, hostname="localhost"))
        assert isinstance(result.server, str) == is_refused, result


def _by_intermediate(
    tmp_path: Path, ca: trustme.CA, crl: bytes, trusted: bytes, leaf: trustme.LeafCert
) -> Result:
    server = directory(tmp_path / "s", ca, server=ca.issue_cert("localhost"), crl=crl)
    (server / "ca-cert.pem").write_bytes(trusted)
    client = directory(tmp_path / "c", ca, client=leaf)
    return shake_hands(server_credentials(server), client_credentials(client, hostname="localhost"))


def test_revoked_intermediate_ca(tmp_path: Path, ca: trustme.CA) -> None:
    child = ca.create_child_ca()
    leaf = child.issue_cert("joe@example.org")
    of_ca, of_child = crl_of(ca), crl_of(child)
    every_ca = ca.cert_pem.bytes() + child.cert_pem.bytes()
    root = ca.cert_pem.bytes()

    # The list of each CA: every certificate of the chain is looked up.
    assert _by_intermediate(tmp_path, ca, of_ca + of_child, every_ca, leaf).admitted
    with_child = crl_of(ca, [_as_leaf(child)])
    for trusted in (every_ca, root):
        revoked = _by_intermediate(tmp_path, ca, with_child + of_child, trusted, leaf)
        assert " has revoked " in str(revoked.server)
    # Of the CA alone that issued the client's: that one is looked up.
    assert _by_intermediate(tmp_path, ca, of_child, root, leaf).admitted
    revoked = _by_intermediate(tmp_path, ca, crl_of(child, [leaf]), root, leaf)
    assert " has revoked " in str(revoked.server)
    # Of the root alone: it has not revoked the intermediate CA, which has no list.
    assert _by_intermediate(tmp_path, ca, of_ca, root, leaf).admitted


def test_a_list_holds_for_what_is_trusted_without_its_ca(tmp_path: Path, ca: trustme.CA) -> None:
    """A client's own certificate in ca-cert.pem, or an intermediate CA's alone: their issuer may still revoke
    them, though it is not in the chain.
    """
    leaf, child = ca.issue_cert("joe@example.org"), ca.create_child_ca()
    trusted = leaf.cert_chain_pems[0].bytes()
    assert _by_intermediate(tmp_path, ca, crl_of(ca), trusted, leaf).admitted
    result = _by_intermediate(tmp_path, ca, crl_of(ca, [leaf]), trusted, leaf)
    assert " has revoked " in str(result.server)
    below, trusted = child.issue_cert("ann@example.org"), child.cert_pem.bytes()
    assert _by_intermediate(tmp_path, ca, crl_of(ca), trusted, below).admitted
    result = _by_intermediate(tmp_path, ca, crl_of(ca, [_as_leaf(child)]), trusted, below)
    assert " has revoked " in str(result.server)


def test_names_are_compared_without_regard_to_case_and_spaces() -> None:
    def named(common_name: str, organisation: str = "o") -> object:
        attributes = ((NameOID.COMMON_NAME, common_name), (NameOID.ORGANIZATION_NAME, organisation))
        return comparable(x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes]))

    assert named("Our  CA") == named(" our ca ")
    assert named("Our CA") != named("OurCA")
    assert named("a", "b") != named("b", "a")


def test_what_cannot_be_read_is_not_admitted_where_there_are_lists() -> None:
    with pytest.raises(NotAdmitted, match="cannot be looked up"):
        check_not_revoked([b"\x30\x00"], [], dt.datetime.now(dt.UTC))


def _as_leaf(ca: trustme.CA) -> trustme.LeafCert:
    return trustme.LeafCert(ca.private_key_pem.bytes(), ca.cert_pem.bytes(), [])


def test_an_intermediate_ca_may_be_all_that_is_trusted(tmp_path: Path, ca: trustme.CA) -> None:
    child = ca.create_child_ca()
    leaf = child.issue_cert("joe@example.org")
    only_child = child.cert_pem.bytes()
    server = directory(tmp_path / "s", child, server=ca.issue_cert("localhost"))
    assert (server / "ca-cert.pem").read_bytes() == only_child
    client = directory(tmp_path / "c", ca, client=leaf)
    credentials = client_credentials(client, hostname="localhost")
    assert shake_hands(server_credentials(server), credentials).admitted
    stranger = directory(tmp_path / "d", ca, client=ca.issue_cert("ann@example.org"))
    credentials = client_credentials(stranger, hostname="localhost")
    assert shake_hands(server_credentials(server), credentials).server == (
        "CERTIFICATE_VERIFY_FAILED"
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions(server_dir: Path, version: ssl.TLSVersion) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = version
        result = shake_hands(server_credentials(server_dir, verify_client=False), client)
    assert result.server == "UNSUPPORTED_PROTOCOL"
    assert isinstance(result.client, str)


@pytest.mark.parametrize("ciphers", ["ECDHE+AES:!AESGCM:!AESCCM", "RSA+AESGCM", "DHE+AESGCM"])
def test_old_ciphers(server_dir: Path, anonymous_dir: Path, ciphers: str) -> None:
    client = ssl.create_default_context(cafile=str(anonymous_dir / "ca-cert.pem"))
    client.set_ciphers(ciphers)
    server = server_credentials(server_dir, verify_client=False)
    assert shake_hands(server, client, version=TLS12).server == "NO_SHARED_CIPHER"


@both_versions
def test_no_session_is_resumed(
    server_dir: Path, anonymous_dir: Path, version: ssl.TLSVersion
) -> None:
    client = ssl.create_default_context(cafile=str(anonymous_dir / "ca-cert.pem"))
    server = server_credentials(server_dir, verify_client=False)
    result = shake_hands(server, client, version=version)
    session = result.client_tls.session
    if version is TLS13:
        assert session is None or not session.has_ticket
        return
    # TLS 1.2 has sessions by number, too.
    assert session is not None
    assert not session.has_ticket
    again = shake_hands(server, client, version=version, resumed=session)
    assert again.admitted
    assert not again.client_tls.session_reused


def test_no_renegotiation(server_dir: Path) -> None:
    session = server_credentials(server_dir).session(b"")
    assert session is not None
    for context in (session.context, session.wrap(ssl.MemoryBIO(), ssl.MemoryBIO()).context):
        assert context.options & ssl.OP_NO_RENEGOTIATION
