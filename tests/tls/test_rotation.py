"""Credentials that are exchanged: the new ones are taken, broken ones are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme

from gateway.tls.credentials import ServerCredentials, client_credentials, server_credentials
from gateway.tls.errors import CredentialsError
from gateway.tls.rotation import Rotating, differences
from tests.tls.handshakes import crl_of, directory, shake_hands, write
from tests.tools.forbidden import forbid


def _rotating(path: Path) -> Rotating[bytes]:
    return Rotating(path.read_bytes, (path, path.with_name("optional")))


def test_nothing_has_changed(tmp_path: Path) -> None:
    rotating = _rotating(write(tmp_path / "f", b"1"))
    assert [rotating.changed() for _ in range(3)] == [False] * 3
    assert rotating.reload() == ()
    assert rotating.current == b"1"


def test_a_change_counts_when_it_has_settled(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1")
    rotating = _rotating(path)
    path.write_bytes(b"22")
    assert not rotating.changed()
    path.write_bytes(b"333")
    assert not rotating.changed()
    assert rotating.changed()
    assert rotating.current == b"1"
    assert rotating.reload() == (f"{path} has changed",)
    assert rotating.current == b"333"
    assert not rotating.changed()


def test_what_is_new_and_what_is_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1")
    optional = tmp_path / "optional"
    rotating = _rotating(path)
    write(optional, b"")
    assert rotating.reload() == (f"{optional} is new",)
    optional.unlink()
    with pytest.raises(CredentialsError, match="optional: is gone"):
        rotating.reload()
    write(optional, b"")
    assert rotating.reload() == (f"{optional} has changed",)
    assert differences({}, {path: None}) == ()


def test_a_broken_file_is_told_of_once(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1")
    rotating = _rotating(path)
    path.unlink()
    assert [rotating.changed(), rotating.changed()] == [False, True]
    with pytest.raises(CredentialsError, match="is gone"):
        rotating.reload()
    assert rotating.current == b"1"
    assert [rotating.changed() for _ in range(3)] == [False] * 3
    path.write_bytes(b"2")
    assert [rotating.changed(), rotating.changed()] == [False, True]
    assert rotating.reload() == (f"{path} has changed",)
    assert rotating.current == b"2"


def test_what_may_not_be_looked_at_any_more_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d" / "f", b"1")
    rotating = _rotating(path)
    with monkeypatch.context() as patch:
        forbid(patch, path.parent)
        assert [rotating.changed(), rotating.changed()] == [False, True]
        with pytest.raises(CredentialsError, match="f: cannot be looked at: Permission denied"):
            rotating.reload()
    assert [rotating.changed(), rotating.changed()] == [False, True]
    assert rotating.reload() == ()


def test_a_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    rotating = _rotating(path)
    other = write(tmp_path / "g", b"2")
    os.utime(other, ns=times)
    other.rename(path)
    assert [rotating.changed(), rotating.changed()] == [False, True]


def test_a_mode_that_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path / "f", b"1", 0o644)
    rotating = _rotating(path)
    path.chmod(0o600)
    assert [rotating.changed(), rotating.changed()] == [False, True]


def test_a_directory_that_is_exchanged_by_its_link(tmp_path: Path) -> None:
    """As Kubernetes does: f -> ..data/f, ..data -> ..2026_1, and ..data is renamed over."""
    for day in ("1", "2"):
        write(tmp_path / f"..2026_{day}" / "f", day.encode())
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "f").symlink_to("..data/f")
    rotating = _rotating(tmp_path / "f")
    (tmp_path / "..new").symlink_to("..2026_2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert [rotating.changed(), rotating.changed()] == [False, True]
    assert rotating.reload() == (f"{tmp_path / 'f'} has changed",)
    assert rotating.current == b"2"


def test_the_first_load_has_to_be_good(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _rotating(tmp_path / "absent")


def _shown(server: ServerCredentials, client_dir: Path) -> bytes | None:
    result = shake_hands(server, client_credentials(client_dir, hostname="localhost"))
    assert result.admitted
    return result.client_tls.getpeercert(binary_form=True)


def test_credentials(server_dir: Path, client_dir: Path, ca: trustme.CA) -> None:
    rotating = Rotating(
        lambda: server_credentials(server_dir),
        tuple(server_dir / name for name in ("ca-crl.pem", "server-cert.pem", "server-key.pem")),
    )
    before = _shown(rotating.current, client_dir)
    good = ca.issue_cert("localhost")
    write(server_dir / "server-cert.pem", good.cert_chain_pems[0].bytes())
    with pytest.raises(CredentialsError, match="cannot be used as the key of"):
        rotating.reload()
    assert _shown(rotating.current, client_dir) == before
    directory(server_dir, None, server=good, crl=crl_of(ca))
    assert len(rotating.reload()) == 3
    assert _shown(rotating.current, client_dir) not in (None, before)
    write(server_dir / "ca-crl.pem", b"broken")
    with pytest.raises(CredentialsError, match=r"ca-crl\.pem"):
        rotating.reload()
    assert _shown(rotating.current, client_dir) not in (None, before)
