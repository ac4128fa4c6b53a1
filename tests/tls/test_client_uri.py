"""What a client of a listener over TLS is told; tests/cli/test_serving.py has real ones believe it."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest

from gateway.tls.client_uri import client_uri
from gateway.tls.pki import make_pki
from gateway.uri import parse_nbd_uri

KEYS = "alice:" + "ab" * 32 + "\nbob:" + "cd" * 32 + "\n"


def pki(directory: Path, *hosts: str) -> Path:
    """A directory whose server's certificate is for some hosts, and always for localhost."""
    now = dt.datetime.now(dt.UTC)
    for name, content in make_pki(hosts, (), (), days=2, now=now).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize(
    ("listen", "client"),
    [
        ("nbds://127.0.0.1:1", "nbds://127.0.0.1:1/?tls-certificates=DIR"),
        ("nbd://[::1]:1", "nbds://[::1]:1/?tls-certificates=DIR"),
        ("nbd://127.0.0.2:1", "nbds://localhost:1/?tls-certificates=DIR"),
        ("nbd://0.0.0.0:1", "nbds://localhost:1/?tls-certificates=DIR"),
        ("nbd://[::]:1", "nbds://localhost:1/?tls-certificates=DIR"),
        ("nbd://server.example:1", "nbds://server.example:1/?tls-certificates=DIR"),
        ("nbd://10.9.8.7:1", "nbds://10.9.8.7:1/?tls-certificates=DIR&tls-hostname=localhost"),
        (
            "nbds+unix:///?socket=/s",
            "nbds+unix:///?socket=/s&tls-certificates=DIR&tls-hostname=localhost",
        ),
    ],
)
def test_the_certificate_is_for_the_host_that_is_named(
    tmp_path: Path, listen: str, client: str
) -> None:
    directory = pki(tmp_path, "server.example")
    told = client_uri(parse_nbd_uri(listen), directory, None, verify_client=True)
    assert str(told) == client.replace("DIR", str(directory))


def test_where_it_is_needed_a_key_is_given_for_a_certificate(tmp_path: Path) -> None:
    directory, keys = pki(tmp_path), tmp_path / "keys.psk"
    keys.write_text(KEYS)
    keys.chmod(0o600)
    uri = parse_nbd_uri("nbds://127.0.0.1:1")
    by_key = f"nbds://alice@127.0.0.1:1/?tls-psk-file={keys}"
    by_certificate = f"nbds://127.0.0.1:1/?tls-certificates={directory}"

    def told(verify: bool = True) -> str:
        return str(client_uri(uri, directory, keys, verify_client=verify))

    assert str(client_uri(uri, None, keys, verify_client=True)) == by_key
    assert told() == by_certificate
    (directory / "client-cert.pem").unlink()
    assert told() == by_key
    assert told(verify=False) == by_certificate


def test_what_cannot_be_read_any_more_is_left_out(tmp_path: Path) -> None:
    directory, keys = tmp_path / "pki", tmp_path / "keys.psk"
    directory.mkdir()
    pki(directory)
    uri = parse_nbd_uri("nbds://10.9.8.7:1")
    (directory / "server-cert.pem").unlink()
    told = client_uri(uri, directory, None, verify_client=True)
    assert str(told) == f"nbds://10.9.8.7:1/?tls-certificates={directory}"
    long = tmp_path / ("x" * 300)
    assert client_uri(uri, long, None, verify_client=True) == uri
    assert str(client_uri(uri, long, keys, verify_client=True)) == str(uri)
    shutil.rmtree(directory)
    assert client_uri(uri, directory, None, verify_client=True) == uri
    assert client_uri(uri, None, keys, verify_client=True) == uri
