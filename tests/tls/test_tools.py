"""The tools and TLS libraries that users have: their files load here, ours load there, and all shake hands."""

from __future__ import annotations

import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.tls.credentials import (
    ServerCredentials,
    client_credentials,
    server_credentials,
)
from gateway.tls.errors import NotAdmitted
from gateway.tls.identity import identity_of
from gateway.tls.pki import make_pki, write_pki
from gateway.tls.session import Admitted, TlsSession
from tests.tls.handshakes import needs_psk, write

pytestmark = pytest.mark.real

SECONDS = 20
GNUTLS_12 = "NORMAL:-VERS-ALL:+VERS-TLS1.2"
GNUTLS_13 = "NORMAL:-VERS-ALL:+VERS-TLS1.3"
WITH_KEYS = ":+ECDHE-PSK:+DHE-PSK:+PSK"  # as libnbd and qemu ask for them


def _drive(
    tls: ssl.SSLObject, sock: socket.socket, bios: tuple[ssl.MemoryBIO, ssl.MemoryBIO]
) -> None:
    incoming, outgoing = bios
    while True:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(received := sock.recv(1 << 16))
            if not received:
                incoming.write_eof()
        finally:
            with suppress(OSError):
                sock.sendall(outgoing.read())


class Server(threading.Thread):
    """Serves one connection: says "hello" to whom it admits."""

    def __init__(self, credentials: ServerCredentials) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(SECONDS)
        self.port = self.listener.getsockname()[1]
        self.outcome: Admitted | str = "nobody came"
        self.cipher = ""
        self._credentials = credentials

    def run(self) -> None:
        sock, _ = self.listener.accept()
        with sock:
            sock.settimeout(SECONDS)
            received = bytearray()
            while (session := self._credentials.session(received)) is None:
                received += sock.recv(10)
            bios = (ssl.MemoryBIO(), ssl.MemoryBIO())
            bios[0].write(received)
            tls = session.wrap(*bios)
            try:
                _drive(tls, sock, bios)
                self.outcome = session.admitted(tls)
            except ssl.SSLError as error:
                self.outcome = error.reason or str(error)
                return
            except NotAdmitted as error:
                self.outcome = str(error)
                return
            self.cipher = (tls.cipher() or ("",))[0]
            tls.write(b"hello\n")
            with suppress(ssl.SSLWantReadError):
                tls.unwrap()
            sock.sendall(bios[1].read())


@contextmanager
def serving(credentials: ServerCredentials) -> Iterator[Server]:
    server = Server(credentials)
    server.start()
    try:
        yield server
    finally:
        server.join(SECONDS)
        server.listener.close()


def run(command: str, *, ok: bool | None = True) -> str:
    done = subprocess.run(
        shlex.split(command), input=b"", capture_output=True, timeout=SECONDS, check=False
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert ok is None or (done.returncode == 0) is ok, text
    return text


# ---- files ----


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A directory as the manuals of nbdkit and qemu say to make it: with certtool, names in CN alone."""
    where = tmp_path / "certtool"
    where.mkdir(mode=0o700)
    write(where / "ca.info", b'cn = "Test CA"\nca\ncert_signing_key\ncrl_signing_key\n')
    for role, name in (("server", "localhost"), ("client", "joe")):
        info = f'organization = "nbd"\ncn = "{name}"\ntls_www_{role}\nencryption_key\nsigning_key\n'
        write(where / f"{role}.info", info.encode())
    for name in ("ca", "server", "client"):
        run(f"certtool --generate-privkey --ecdsa --outfile {where}/{name}-key.pem")
    run(
        f"certtool --generate-self-signed --load-privkey {where}/ca-key.pem"
        f" --template {where}/ca.info --outfile {where}/ca-cert.pem"
    )
    for role in ("server", "client"):
        run(
            f"certtool --generate-certificate --load-ca-certificate {where}/ca-cert.pem"
            f" --load-ca-privkey {where}/ca-key.pem --load-privkey {where}/{role}-key.pem"
            f" --template {where}/{role}.info --outfile {where}/{role}-cert.pem"
        )
    return where


def _revoke(where: Path, role: str) -> None:
    write(where / "crl.info", b"crl_next_update = 10\ncrl_number = 1\n")
    run(
        f"certtool --generate-crl --load-ca-privkey {where}/ca-key.pem"
        f" --load-ca-certificate {where}/ca-cert.pem --load-certificate {where}/{role}-cert.pem"
        f" --template {where}/crl.info --outfile {where}/ca-crl.pem"
    )


@pytest.mark.parametrize("priority", [GNUTLS_12, GNUTLS_13])
def test_certtools_files_and_gnutls(pki: Path, priority: str) -> None:
    own = f"--x509certfile {pki}/client-cert.pem --x509keyfile {pki}/client-key.pem"
    command = f"gnutls-cli --x509cafile {pki}/ca-cert.pem --priority {priority} localhost -p"
    with serving(server_credentials(pki)) as server:
        assert "hello" in run(f"{command} {server.port} {own}")
    assert isinstance(server.outcome, Admitted)
    assert identity_of(*_parts(server.outcome)).common_names == ("joe",)
    assert "AES_256_GCM" in server.cipher.replace("-", "_").replace("AES256", "AES_256")

    with serving(server_credentials(pki)) as server:
        run(f"{command} {server.port}", ok=False)
    assert server.outcome == "PEER_DID_NOT_RETURN_A_CERTIFICATE"

    _revoke(pki, "client")
    with serving(server_credentials(pki)) as server:
        assert "hello" not in run(f"{command} {server.port} {own}", ok=None)
    assert " has revoked " in str(server.outcome)


def _parts(admitted: Admitted) -> tuple[bytes | None, str | None]:
    return admitted.certificate, admitted.psk_user


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl(pki: Path, version: str) -> None:
    command = (
        f"openssl s_client -verify_return_error -verify_hostname localhost -CAfile {pki}/ca-cert.pem"
        f" {version} -connect localhost"
    )
    with serving(server_credentials(pki)) as server:
        out = run(f"{command}:{server.port} -cert {pki}/client-cert.pem -key {pki}/client-key.pem")
    assert isinstance(server.outcome, Admitted)
    assert "Verification: OK" in out
    assert "Compression: NONE" in out
    assert "TLS session ticket" not in out


@needs_psk
@pytest.mark.parametrize("certificates", [False, True])
@pytest.mark.parametrize("priority", [GNUTLS_12 + WITH_KEYS, GNUTLS_13 + WITH_KEYS])
def test_gnutls_with_a_key(pki: Path, priority: str, certificates: bool) -> None:
    run(f"psktool -u joe -p {pki}/keys.psk")
    right = (pki / "keys.psk").read_text().strip().partition(":")[2]
    credentials = server_credentials(pki if certificates else None, pki / "keys.psk")
    command = f"gnutls-cli --priority {priority} --pskusername"
    with serving(credentials) as server:
        # After a TLS 1.2 handshake gnutls-cli 3.7.9 crashes, with OpenSSL's own server as well: to print who is
        # there it asks the client's session for what only a server's has (gnutls_psk_server_get_username).
        out = run(f"{command} joe --pskkey {right} localhost -p {server.port}", ok=None)
    assert server.outcome == Admitted(None, "joe")
    assert "hello" in out or GNUTLS_12 in priority
    seen = []
    for user, key in (("joe", "00" * 32), ("ann", right)):
        with serving(credentials) as server:
            out = run(f"{command} {user} --pskkey {key} localhost -p {server.port}", ok=False)
        seen.append((server.outcome, out.replace(str(server.port), "PORT")))
    assert isinstance(seen[0][0], str)
    assert seen[0] == seen[1]


# ---- servers of GnuTLS, and clients of ours ----


@contextmanager
def gnutls_serv(arguments: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        shlex.split(f"gnutls-serv --quiet --echo -p {port} {arguments}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # It says that it is ready into a buffer of its own, which nobody sees before its end.
        for _ in range(SECONDS * 100):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, "gnutls-serv has ended"
            time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.wait()


def _connect(session: TlsSession, port: int) -> Admitted | str:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as sock:
        bios = (ssl.MemoryBIO(), ssl.MemoryBIO())
        tls = session.wrap(*bios)
        try:
            _drive(tls, sock, bios)
        except ssl.SSLError as error:
            return error.reason or str(error)
        return session.admitted(tls)


@pytest.mark.parametrize("priority", [GNUTLS_12, GNUTLS_13])
def test_a_gnutls_server(pki: Path, priority: str) -> None:
    arguments = (
        f"--priority {priority} --require-client-cert --x509cafile {pki}/ca-cert.pem"
        f" --x509certfile {pki}/server-cert.pem --x509keyfile {pki}/server-key.pem"
    )
    with gnutls_serv(arguments) as port:
        admitted = _connect(client_credentials(pki, hostname="localhost").session(), port)
        assert isinstance(admitted, Admitted)
        assert identity_of(*_parts(admitted)).common_names == ("localhost",)
        other = _connect(client_credentials(pki, hostname="other.example").session(), port)
        assert other == "CERTIFICATE_VERIFY_FAILED"


@needs_psk
@pytest.mark.parametrize("priority", [GNUTLS_12 + WITH_KEYS, GNUTLS_13 + WITH_KEYS])
def test_a_gnutls_server_with_keys(pki: Path, priority: str) -> None:
    run(f"psktool -u joe -p {pki}/keys.psk")
    with gnutls_serv(f"--priority {priority} --pskpasswd {pki}/keys.psk") as port:
        right = client_credentials(psk=pki / "keys.psk")
        assert _connect(right.session(), port) == Admitted(None, None)
        write(pki / "wrong.psk", b"joe:" + b"00" * 32 + b"\n")
        wrong = client_credentials(psk=pki / "wrong.psk")
        assert isinstance(_connect(wrong.session(), port), str)


# ---- our files in programs of NBD ----


def test_what_pki_init_makes_and_says(tmp_path: Path) -> None:
    where = tmp_path / "p"
    write_pki(where, make_pki([], [], ["joe"], days=9, now=datetime.now(UTC)))
    server = (
        f"nbdkit -U - --tls=require --tls-certificates={where} --tls-verify-peer memory 1M --run"
    )
    uri = f"nbds+unix:///?socket=$unixsocket&tls-certificates={where}&tls-hostname=localhost"
    assert "1048576" in run(f"{server} 'nbdinfo --size \"{uri}\"'")
    server = f"nbdkit -U - --tls=require --tls-psk={where}/keys.psk memory 1M --run"
    uri = f"nbds+unix://joe@/?socket=$unixsocket&tls-psk-file={where}/keys.psk"
    assert "1048576" in run(f"{server} 'nbdinfo --size \"{uri}\"'")
