"""Pre-shared keys: the file, and who gets in by one."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.tls.credentials import client_credentials, server_credentials
from gateway.tls.errors import CredentialsError
from gateway.tls.psk import ClaimedUser, Keys, load_keys, parse_keys
from gateway.tls.session import WRONG_KEY, Admitted, TlsSession
from tests.tls.handshakes import VERSIONS, needs_psk, shake_hands, write

KEY = "00112233445566778899aabbccddeeff"
OTHER = "ff" * 32
both_versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)


# ---- the file ----


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"joe:{KEY}\n", {"joe": KEY}),
        (f"joe:{KEY}", {"joe": KEY}),
        (f"joe:{KEY.upper()} \r\n\nann:{OTHER}\n", {"joe": KEY, "ann": OTHER}),
        (f"#6a6f65:{KEY}\n", {"joe": KEY}),  # gnutls_psk_set_server_credentials_file
        (f"#613a62:{KEY}\n", {"a:b": KEY}),
        (f"# a comment\n#old:{KEY}\njö e:{KEY}\n", {"jö e": KEY}),
    ],
)
def test_good_files(content: str, expected: dict[str, str]) -> None:
    keys = parse_keys(content.encode(), Path("f"))
    assert {user: key.hex() for user, key in keys.items()} == expected
    assert list(keys) == list(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no key in it; expected lines of user:hexkey"),
        (b"# joe\n", "has no key in it"),
        (b"joe\n", "line 1 has no colon"),
        (b"\njoe:\n", "line 2: expected the key in hexadecimal"),
        (b"joe:secret-password\n", "line 1: expected the key in hexadecimal"),
        (b"joe:" + KEY.encode() + b"a\n", "line 1: expected the key in hexadecimal"),
        (b"joe:" + KEY[2:].encode() + b"\n", "expected a key of 16 to 512 bytes, this one has 15"),
        (b"joe:" + b"ab" * 513 + b"\n", "this one has 513"),
        (b":" + KEY.encode() + b"\n", "line 1: expected a user of 1 to 128 bytes"),
        (b"x" * 129 + b":" + KEY.encode() + b"\n", "expected a user of 1 to 128 bytes"),
        (b"a\0b:" + KEY.encode() + b"\n", "none of them NUL"),
        (b"\xff:" + KEY.encode() + b"\n", "line 1: the user is not UTF-8"),
        (b"#ff:" + KEY.encode() + b"\n", "line 1: the user is not UTF-8"),
        (f"joe:{KEY}\n#6a6f65:{KEY}\n".encode(), "line 2: its user has a key in a line above"),
    ],
)
def test_bad_files(content: bytes, expected: str) -> None:
    with pytest.raises(CredentialsError, match=r"^keys\.psk: ") as caught:
        parse_keys(content, Path("keys.psk"))
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)
    assert KEY[:8] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_a_file_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys.psk", f"joe:{KEY}\n".encode(), mode)
    with pytest.raises(CredentialsError, match=rf"mode 0{mode:o}, expected 0600, as psktool"):
        load_keys(path)
    path.chmod(0o400)
    assert load_keys(path).only_user() == "joe"


def test_a_file_of_roots_that_our_group_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "keys.psk", f"joe:{KEY}\n".encode(), 0o640)
    roots = os.stat_result([0o100640, 1, 1, 1, 0, 0, 50, 0, 0, 0])
    monkeypatch.setattr(os, "fstat", lambda descriptor: roots)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load_keys(path).only_user() == "joe"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(CredentialsError, match="mode 0640"):
        load_keys(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="No such file or directory; expected lines of"):
        load_keys(tmp_path / "absent")
    with pytest.raises(CredentialsError, match="no regular file"):
        load_keys(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CredentialsError, match="no regular file"):
        load_keys(tmp_path / "fifo")
    with pytest.raises(CredentialsError, match="no regular file"):
        load_keys(Path("/dev/zero"))
    with pytest.raises(CredentialsError, match="null"):
        load_keys(Path("a\0b"))
    with pytest.raises(CredentialsError, match="larger than 1 MiB"):
        load_keys(write(tmp_path / "large", b"x" * ((1 << 20) + 1)))


def test_unknown_users_have_keys() -> None:
    keys = Keys({"joe": b"k" * 32})
    assert keys.key_of("joe") == b"k" * 32
    assert keys.key_of("ann") == keys.key_of("ann")
    assert len({keys.key_of("ann"), keys.key_of("bob"), keys.key_of(None), b"k" * 32}) == 4
    assert Keys({}).key_of("ann") != keys.key_of("ann")
    assert (keys.knows("joe"), keys.knows("ann")) == (True, False)
    assert "k" * 8 not in repr(vars(keys)) or "joe" not in repr(keys)
    assert Keys({"joe": b"k", "ann": b"k"}).only_user() is None


def test_an_old_python_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "keys.psk", f"joe:{KEY}\n".encode())
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    says = r"PSK needs CPython 3\.13 or later; this is 3\.11"
    with pytest.raises(CredentialsError, match=says):
        server_credentials(None, path)
    with pytest.raises(CredentialsError, match=says):
        client_credentials(psk=path)


# ---- who gets in ----


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.psk", f"ann:{OTHER}\njoe:{KEY}\n".encode())


def _of(tmp_path: Path, user: str, key: str) -> Path:
    return write(tmp_path / "their.psk", f"{user}:{key}\n".encode())


@needs_psk
@both_versions
@pytest.mark.parametrize("piece_bytes", [1, 1 << 16])
@pytest.mark.parametrize("with_certificates", [False, True])
def test_right_key(
    server_dir: Path,
    keys: Path,
    version: ssl.TLSVersion,
    piece_bytes: int,
    with_certificates: bool,
) -> None:
    server = server_credentials(server_dir if with_certificates else None, keys)
    for user in ("joe", "ann"):
        client = client_credentials(psk=keys, psk_user=user)
        result = shake_hands(server, client, version=version, piece_bytes=piece_bytes)
        assert result.admitted == Admitted(None, user)
        assert result.client == Admitted(None, None)
        cipher = result.client_tls.cipher()
        assert cipher is not None
        assert "CHACHA20" in cipher[0] or "AES_128_GCM" in cipher[0]


@needs_psk
@both_versions
@pytest.mark.parametrize("with_certificates", [False, True])
def test_wrong_key_and_unknown_user_look_alike(
    server_dir: Path, tmp_path: Path, keys: Path, version: ssl.TLSVersion, with_certificates: bool
) -> None:
    server = server_credentials(server_dir if with_certificates else None, keys)
    seen = []
    for user, key in (("joe", OTHER), ("bob", OTHER)):
        client = client_credentials(psk=_of(tmp_path, user, key))
        result = shake_hands(server, client, version=version)
        assert isinstance(result.server, str)
        assert isinstance(result.client, str)
        assert result.server in WRONG_KEY
        seen.append((result.server, result.client, len(result.wire), result.wire[-7:]))
    assert seen[0] == seen[1]


@needs_psk
def test_a_failure_names_the_user(keys: Path) -> None:
    """Where somebody has said that it is one, and as what it is shown to be."""
    [wrong, *_] = WRONG_KEY
    session = TlsSession(_context_of_nobody(), server_side=True, claim=(claim := ClaimedUser()))
    assert session.failure("the reason", openssl=wrong) == "the reason"
    claim.user = "joe\x1b[2J"
    assert session.failure("the reason", openssl=wrong) == (
        "user 'joe\\x1b[2J': unknown user or wrong key (the reason)"
    )
    assert session.failure("it broke") == "user 'joe\\x1b[2J': it broke"
    ours = client_credentials(psk=keys, psk_user="joe").session()
    assert ours.failure("it broke") == (
        "as user 'joe': it broke; perhaps the server does not know this user, or another key"
    )
    assert TlsSession(_context_of_nobody(), server_side=True).failure("it broke") == "it broke"


def _context_of_nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@needs_psk
@both_versions
def test_with_verify_client_either_admits(
    server_dir: Path,
    client_dir: Path,
    anonymous_dir: Path,
    tmp_path: Path,
    keys: Path,
    version: ssl.TLSVersion,
) -> None:
    server = server_credentials(server_dir, keys)
    client = client_credentials(client_dir, hostname="localhost")
    assert shake_hands(server, client, version=version).admitted.certificate is not None
    client = client_credentials(psk=keys, psk_user="joe")
    assert shake_hands(server, client, version=version).admitted.psk_user == "joe"
    client = client_credentials(anonymous_dir, hostname="localhost")
    result = shake_hands(server, client, version=version)
    assert result.server == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


@needs_psk
@both_versions
@pytest.mark.parametrize("own_certificate", [False, True])
def test_naming_a_user_is_not_enough(
    server_dir: Path,
    anonymous_dir: Path,
    client_dir: Path,
    keys: Path,
    version: ssl.TLSVersion,
    own_certificate: bool,
) -> None:
    """A client that would be content with the server's certificate, names a user, and has no key.

    In a context with certificates and keys, and CERT_OPTIONAL, OpenSSL 3 lets it in over TLS 1.3.
    """
    client = ssl.create_default_context(cafile=str(anonymous_dir / "ca-cert.pem"))
    if own_certificate:
        client.load_cert_chain(client_dir / "client-cert.pem", client_dir / "client-key.pem")
    client.set_ciphers("ECDHE+AESGCM:ECDHE-PSK-CHACHA20-POLY1305")
    if sys.version_info >= (3, 13):
        client.set_psk_client_callback(lambda hint: ("joe", b"guess"))
    result = shake_hands(server_credentials(server_dir, keys), client, version=version)
    assert isinstance(result.server, str)
    # Also where clients need no certificate: who names a user has to be that user.
    without = server_credentials(server_dir, keys, verify_client=False)
    assert isinstance(shake_hands(without, client, version=version).server, str)


@needs_psk
@both_versions
def test_a_client_without_a_key(anonymous_dir: Path, keys: Path, version: ssl.TLSVersion) -> None:
    client = client_credentials(anonymous_dir, hostname="localhost", verify_peer=False)
    result = shake_hands(server_credentials(None, keys), client, version=version)
    assert result.server in ("NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM")


@needs_psk
@both_versions
@pytest.mark.parametrize("verify_peer", [True, False])
def test_a_client_with_a_key_takes_no_certificate_for_it(
    server_dir: Path, keys: Path, version: ssl.TLSVersion, verify_peer: bool
) -> None:
    client = client_credentials(
        psk=keys, psk_user="joe", hostname="localhost", verify_peer=verify_peer
    )
    server = server_credentials(server_dir, verify_client=False)
    result = shake_hands(server, client, version=version)
    assert result.client in ("CERTIFICATE_VERIFY_FAILED", "SSLV3_ALERT_HANDSHAKE_FAILURE")


@needs_psk
def test_the_user_is_known_after_a_hello_retry_request(keys: Path) -> None:
    server = server_credentials(None, keys)
    session = server.session(b"")
    assert session is not None
    session.context.set_ecdh_curve("secp384r1")  # the client's first guess is X25519
    client = client_credentials(psk=keys, psk_user="joe").session()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap(to_client, to_server)
    ours = session.wrap(to_server, to_client)
    flights = 0
    for _ in range(4):
        for tls in (theirs, ours):
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                flights += tls is ours
    assert flights >= 2
    assert session.admitted(ours) == Admitted(None, "joe")


@needs_psk
def test_sessions_under_way_together_are_told_apart(keys: Path) -> None:
    server = server_credentials(None, keys)
    open_sessions = []
    for user in ("joe", "ann"):
        session = server.session(b"")
        assert session is not None
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = client_credentials(psk=keys, psk_user=user).session().wrap(to_client, to_server)
        open_sessions.append((user, session, theirs, session.wrap(to_server, to_client)))
    for _ in range(4):
        for _, _, theirs, ours in open_sessions:
            for tls in (theirs, ours):
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
    for user, session, _, ours in open_sessions:
        assert session.admitted(ours).psk_user == user


@needs_psk
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@both_versions
@pytest.mark.parametrize("key_bytes", [16, 512])
def test_longest_and_shortest(tmp_path: Path, version: ssl.TLSVersion, key_bytes: int) -> None:
    path = _of(tmp_path, "x" * 128, "ab" * key_bytes)
    result = shake_hands(
        server_credentials(None, path), client_credentials(psk=path), version=version
    )
    assert result.admitted.psk_user == "x" * 128


@needs_psk
def test_which_user_to_be(keys: Path, tmp_path: Path, client_dir: Path) -> None:
    with pytest.raises(
        CredentialsError, match="several users; expected psk-user, or USER@ in the URI"
    ):
        client_credentials(psk=keys)
    with pytest.raises(CredentialsError, match=r'no user "bob", which psk-user or the URI names'):
        client_credentials(psk=keys, psk_user="bob")
    with pytest.raises(CredentialsError, match="not both"):
        client_credentials(client_dir, keys, hostname="localhost")
    assert client_credentials(psk=_of(tmp_path, "joe", KEY))


# ---- other programs ----


@needs_psk
def test_psktools_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    for user in ("joe", "a b"):
        subprocess.run(["psktool", "-u", user, "-p", path], check=True, capture_output=True)
    assert load_keys(path).knows("joe")
    assert load_keys(path).knows("a b")
