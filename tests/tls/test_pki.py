"""The authority for trying things out."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509

from gateway.tls.credentials import client_credentials, server_credentials
from gateway.tls.errors import CredentialsError
from gateway.tls.identity import identity_of
from gateway.tls.pki import (
    add_client,
    make_pki,
    renewed,
    replace_pki,
    revoked,
    write_client,
    write_pki,
)
from gateway.tls.psk import load_keys
from tests.tls.handshakes import DAY, NOW, shake_hands


def _today() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def test_one_directory_serves_both_sides(tmp_path: Path) -> None:
    where = tmp_path / "deep" / "pki"
    files = make_pki(["disk.example", "192.0.2.7"], ["joe", "ann"], ["joe"], days=9, now=_today())
    write_pki(where, files)
    server = server_credentials(where)
    for name in ("localhost", "127.0.0.1", "::1", "disk.example", "192.0.2.7"):
        client = client_credentials(where, hostname=name)
        admitted = shake_hands(server, client).admitted
        assert identity_of(admitted.certificate, None).common_names == ("joe",)
    result = shake_hands(server, client_credentials(where / "ann", hostname="localhost"))
    assert identity_of(result.admitted.certificate, None).common_names == ("ann",)
    other = shake_hands(server, client_credentials(where, hostname="other.example"))
    assert other.client == "CERTIFICATE_VERIFY_FAILED"
    assert load_keys(where / "keys.psk").only_user() == "joe"
    assert len(server.warnings(_today())) == 2  # the CA's and the server's: 9 days


def test_modes(tmp_path: Path) -> None:
    write_pki(tmp_path / "pki", make_pki([], ["joe", "ann"], ["joe"], days=9, now=NOW))
    for path in (tmp_path / "pki", *(tmp_path / "pki").rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_terms() -> None:
    files = make_pki([], [], [], days=9, now=NOW)
    assert set(files) == {
        "ca-cert.pem", "ca-key.pem",
        "server-cert.pem", "server-key.pem",
        "client-cert.pem", "client-key.pem", "ca-issued.txt",
    }  # fmt: skip
    for name in ("ca", "server", "client"):
        certificate = x509.load_pem_x509_certificate(files[f"{name}-cert.pem"])
        assert certificate.not_valid_after_utc == NOW + 9 * DAY
        assert certificate.not_valid_before_utc < NOW


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "client-key.pem").write_bytes(b"precious")
    with pytest.raises(CredentialsError, match=r"has client-key\.pem already"):
        write_pki(tmp_path, make_pki([], [], [], days=9, now=NOW))
    assert [path.name for path in tmp_path.iterdir()] == ["client-key.pem"]
    (tmp_path / "client-key.pem").unlink()
    (tmp_path / "client-key.pem").symlink_to("elsewhere")
    with pytest.raises(CredentialsError, match=r"has client-key\.pem already"):
        write_pki(tmp_path, make_pki([], [], [], days=9, now=NOW))
    assert not (tmp_path / "elsewhere").exists()


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    files = make_pki([], [], [], days=9, now=NOW)
    with pytest.raises(CredentialsError, match="is no directory"):
        write_pki(tmp_path / "f", files)
    with pytest.raises(CredentialsError, match="cannot be made"):
        write_pki(tmp_path / "f" / "g", files)


@pytest.mark.parametrize(
    ("host", "client", "user", "expected"),
    [
        ("not a host", "c", "u", "expected a host's name or IP address"),
        ("", "c", "u", "expected a host's name or IP address"),
        ("jö.example", "c", "u", "expected a host's name or IP address"),
        ("h", "../up", "u", "a client's name has letters, digits, spaces and any of"),
        ("h", " a", "u", "begins with no space or dot"),
        ("h", ".a", "u", "begins with no space or dot"),
        ("h", "", "u", "a client's name has"),
        ("h", "keys.psk", "u", "as a file would be"),
        ("h", "ca-crl.pem", "u", "as a file would be"),
        ("h", "c", "a:b", "a user of keys.psk has"),
        ("h", "c", "#a", "a user of keys.psk has"),
        ("h", "c", "", "a user of keys.psk has"),
        ("h", "c", "x" * 129, "a user of keys.psk has"),
    ],
)
def test_names_that_cannot_be(host: str, client: str, user: str, expected: str) -> None:
    with pytest.raises(CredentialsError, match=expected):
        make_pki([host], ["first", client], [user], days=9, now=NOW)


@pytest.mark.parametrize("name", ["a b", "Übung 1", "joe@example.org", "+x", "a_b-c.d"])
def test_names_that_can_be(name: str, tmp_path: Path) -> None:
    """As the error says of others; and who is added can be revoked."""
    write_pki(tmp_path / "pki", make_pki([], ["joe"], [], days=9, now=_today()))
    write_client(tmp_path / "pki", add_client(tmp_path / "pki", name, days=9, now=_today()))
    assert admitted(tmp_path / "pki", tmp_path / "pki" / name)
    replace_pki(tmp_path / "pki", revoked(tmp_path / "pki", name, now=_today()))
    assert not admitted(tmp_path / "pki", tmp_path / "pki" / name)


def admitted(server: Path, client: Path) -> bool:
    result = shake_hands(
        server_credentials(server), client_credentials(client, hostname="localhost")
    )
    return not isinstance(result.server, str)


def test_one_more_client_and_one_less(tmp_path: Path) -> None:
    where = tmp_path / "pki"
    write_pki(where, make_pki([], ["joe"], [], days=9, now=_today()))
    write_client(where, add_client(where, "ann", days=9, now=_today()))
    write_client(where, add_client(where, "bob", days=9, now=_today()))
    assert admitted(where, where)
    assert admitted(where, where / "ann")
    for gone in ("ann", "joe", "ann"):  # once more is the same
        replace_pki(where, revoked(where, gone, now=_today()))
    assert not admitted(where, where / "ann")
    assert not admitted(where, where)
    assert admitted(where, where / "bob")
    with pytest.raises(CredentialsError, match="has no certificate of a client called eve"):
        revoked(where, "eve", now=_today())
    with pytest.raises(
        CredentialsError,
        match=r"has bob/ca-cert\.pem, bob/client-cert\.pem, bob/client-key\.pem already",
    ):
        write_client(where, add_client(where, "bob", days=9, now=_today()))


def test_all_of_it_in_time(tmp_path: Path) -> None:
    where = tmp_path / "pki"
    write_pki(where, make_pki(["disk.example"], ["joe", "ann"], [], days=9, now=_today()))
    before = {path: path.read_bytes() for path in where.rglob("*.pem")}
    replace_pki(where, revoked(where, "ann", now=_today()))
    replace_pki(where, renewed(where, days=90, now=_today()))
    assert not server_credentials(where).warnings(_today() + 20 * DAY)
    assert not admitted(where, where / "ann")  # who was revoked stays so
    for path, old in before.items():
        stays = path.name.endswith("-key.pem") or path == where / "ann" / "client-cert.pem"
        assert (path.read_bytes() == old) == stays, path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = client_credentials(where, hostname="disk.example")
    assert shake_hands(server_credentials(where), client).admitted
    # Who has the old ones goes on with them.
    kept = tmp_path / "old"
    write_pki(kept, {str(path.relative_to(where)): content for path, content in before.items()})
    assert admitted(where, kept)
    assert admitted(kept, where)
    # Until they are revoked, with the new ones.
    replace_pki(where, revoked(where, "joe", now=_today()))
    assert not admitted(where, where)
    assert not admitted(where, kept)


def test_where_there_is_no_authority(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r"ca-key\.pem: cannot be read: No such file"):
        renewed(tmp_path, days=9, now=_today())
    write_pki(tmp_path, make_pki([], [], [], days=9, now=_today()))
    (tmp_path / "ca-key.pem").write_bytes(b"nonsense")
    with pytest.raises(CredentialsError, match=r"ca-key\.pem: cannot be understood"):
        add_client(tmp_path, "joe", days=9, now=_today())


def test_what_old_qemu_insists_on() -> None:
    files = make_pki([], [], [], days=9, now=NOW)
    for name in ("server", "client"):
        certificate = x509.load_pem_x509_certificate(files[f"{name}-cert.pem"])
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature
        assert usage.key_encipherment


def test_a_client_is_revoked_whose_files_are_gone(tmp_path: Path) -> None:
    """They belong where the client runs. All that were ever issued to it go on the list."""
    where, kept = tmp_path / "pki", tmp_path / "kept"
    kept.mkdir()
    write_pki(where, make_pki([], ["joe", "ann"], [], days=9, now=_today()))
    (where / "ann").rename(kept / "first")
    write_client(where, add_client(where, "ann", days=9, now=_today()))
    write_client(where, add_client(where, "bob", days=9, now=_today()))
    for name in ("ann", "bob"):
        (where / name).rename(kept / name)
    replace_pki(where, renewed(where, days=9, now=_today()))
    replace_pki(where, revoked(where, "ann", now=_today()))
    assert not admitted(where, kept / "first")
    assert not admitted(where, kept / "ann")
    assert admitted(where, kept / "bob")
    replace_pki(where, revoked(where, "bob", now=_today()))
    assert not admitted(where, kept / "bob")
    assert admitted(where, where)


def test_what_another_authority_has_issued_stays_as_it_is(tmp_path: Path) -> None:
    where, other = tmp_path / "pki", tmp_path / "pki" / "other"
    write_pki(where, make_pki([], [], [], days=9, now=_today()))
    write_pki(other, make_pki([], ["joe"], [], days=9, now=_today()))
    files = renewed(where, days=90, now=_today())
    assert not [name for name in files if name.startswith("other/")]
    assert "client-cert.pem" in files
    with pytest.raises(CredentialsError, match="no certificate of a client called joe"):
        revoked(where, "joe", now=_today())
    (where / "client-cert.pem").write_bytes((other / "client-cert.pem").read_bytes())
    with pytest.raises(CredentialsError, match="no certificate of a client called joe"):
        revoked(where, "joe", now=_today())
