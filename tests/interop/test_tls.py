"""TLS with the programs of the field: their clients before us, and us before their servers."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.tls.issuing import Issued, issue, new_authority
from tests.tls.handshakes import crl_of, directory, needs_psk, write

from .clients import nbdcopy, nbdinfo, nbdsh
from .conftest import Image
from .gateways import MODE
from .processes import Process, attempt, listening, run, wait_until
from .servers import Servers, Upstream, free_port, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a blind relay has no TLS to offer")

SIZE = 64 << 20
SLACK_BYTES = 6 << 20
"""What an allocator may keep of some hundred sessions: each had 24 KiB of its own, and more."""
KEY = "alice:" + "0123456789abcdef" * 4 + "\n"


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pki(workdir: Path, ca: trustme.CA) -> Path:
    """What servers and clients know, in one directory."""
    folder = directory(
        workdir / "pki",
        ca,
        server=ca.issue_cert("localhost", "127.0.0.1"),
        client=ca.issue_cert("joe@example.org", common_name="joe"),
    )
    keys = folder / "keys.psk"
    keys.write_text(KEY)
    keys.chmod(0o600)
    return folder


class OverTls:
    """A gateway with TLS on a port of this machine."""

    def __init__(self, upstream: str, *arguments: str | Path, scheme: str = "nbds") -> None:
        self.port = free_port()
        self.process = Process(
            *(sys.executable, "-m", "gateway", "serve", upstream),
            *("--listen", f"{scheme}://127.0.0.1:{self.port}", *arguments),
        )
        self.process.ready_when(
            lambda: listening(f"nbd://127.0.0.1:{self.port}"), "the gateway listens"
        )

    def uri(self, pki: Path, export: str = "") -> str:
        return f"nbds://127.0.0.1:{self.port}/{export}?tls-certificates={pki}"

    def psk_uri(self, pki: Path) -> str:
        return f"nbds://alice@127.0.0.1:{self.port}/?tls-psk-file={pki / 'keys.psk'}"

    def said(self) -> str:
        """End it, and give its log."""
        assert self.process.stop() == 0
        return self.process.output

    @property
    def plain_uri(self) -> str:
        return f"nbd://127.0.0.1:{self.port}"


@pytest.fixture
def qemu(servers: Servers, image: Image) -> Upstream:
    return servers.start("qemu-raw", image.path)


# --- Clients over TLS, a server without


def test_libnbd(qemu: Upstream, pki: Path, image: Image, workdir: Path) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki)
    told = nbdinfo(gateway.uri(pki))
    assert told["TLS"] is True
    assert told["exports"][0]["export-size"] == image.size
    copy = workdir / "copy.img"
    nbdcopy(gateway.uri(pki), copy)
    assert run("cmp", image.path, copy) == ""
    assert "who='cn:joe" in gateway.said()


@needs_psk
def test_libnbd_with_a_key(qemu: Upstream, pki: Path, image: Image) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki, "--tls-psk", pki / "keys.psk")
    assert nbdinfo(gateway.psk_uri(pki))["exports"][0]["export-size"] == image.size
    assert nbdinfo(gateway.uri(pki))["exports"][0]["export-size"] == image.size
    (pki / "keys.psk").write_text(KEY.replace("alice", "mallory"))
    assert attempt("nbdinfo", gateway.psk_uri(pki).replace("alice", "mallory")).status
    (pki / "keys.psk").write_text(KEY.replace("0", "1"))
    assert attempt("nbdinfo", gateway.psk_uri(pki)).status
    said = gateway.said()
    assert "who='psk:alice" in said
    assert "who='psk:mallory" not in said
    for user in ("mallory", "alice"):
        assert f"TLS: user '{user}': unknown user or wrong key" in said


def test_qemu(qemu: Upstream, pki: Path) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki)
    said = run(
        *("qemu-img", "info", "--object", f"tls-creds-x509,id=t,dir={pki},endpoint=client"),
        *("--image-opts", f"driver=nbd,host=127.0.0.1,port={gateway.port},tls-creds=t"),
    )
    assert f"({SIZE} bytes)" in said


@needs_psk
def test_qemu_with_a_key(qemu: Upstream, pki: Path) -> None:
    gateway = OverTls(qemu.uri, "--tls-psk", pki / "keys.psk")
    said = run(
        *("qemu-img", "info", "--object"),
        f"tls-creds-psk,id=t,dir={pki},endpoint=client,username=alice",
        *("--image-opts", f"driver=nbd,host=127.0.0.1,port={gateway.port},tls-creds=t"),
    )
    assert f"({SIZE} bytes)" in said


def test_what_qemu_writes(servers: Servers, image: Image, pki: Path) -> None:
    gateway = OverTls(servers.start("nbdkit", image.path).uri, "--tls-certificates", pki)
    words = ["write -P 9 5000 2000000", "flush", "read -P 9 5000 2000000", "write -z 1M 64k"]
    said = run(
        *("qemu-io", "--object", f"tls-creds-x509,id=t,dir={pki},endpoint=client"),
        *(word for command in [*words, "read -P 0 1M 64k"] for word in ("-c", command)),
        *("--image-opts", f"driver=nbd,host=127.0.0.1,port={gateway.port},tls-creds=t"),
    )
    assert "failed" not in said


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_versions(qemu: Upstream, pki: Path, version: str) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki, "--no-tls-verify-client")
    context = anybody()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with starting_tls(gateway.port) as sock:
        if version in ("TLSv1_2", "TLSv1_3"):
            with context.wrap_socket(sock) as secure:
                assert secure.version() == version.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError, match="alert protocol version"):
                context.wrap_socket(sock)
            assert "unsupported protocol" in gateway.said()


def test_nbd_client(servers: Servers, image: Image, pki: Path) -> None:
    upstream = servers.start("storage-daemon", image.path)
    gateway = OverTls(upstream.named(""), "--tls-certificates", pki)
    said = run(
        *("nbd-client", "-l", "127.0.0.1", "-p", str(gateway.port), "-tlshostname", "localhost"),
        *("-cacertfile", pki / "ca-cert.pem"),
        *("-certfile", pki / "client-cert.pem", "-keyfile", pki / "client-key.pem"),
    )
    assert "disk" in said


def test_who_has_no_certificate(qemu: Upstream, pki: Path, workdir: Path) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki)
    anonymous = workdir / "anonymous"
    anonymous.mkdir()
    shutil.copy(pki / "ca-cert.pem", anonymous)
    assert attempt("nbdinfo", gateway.uri(anonymous)).status
    assert attempt("nbdinfo", gateway.plain_uri).status
    lenient = OverTls(qemu.uri, "--tls-certificates", pki, "--no-tls-verify-client")
    assert nbdinfo(lenient.uri(anonymous))["TLS"] is True


def test_whom_we_do_not_trust(qemu: Upstream, pki: Path, workdir: Path, ca: trustme.CA) -> None:
    other = trustme.CA()
    stranger = directory(workdir / "stranger", ca, client=other.issue_cert("eve@example.org"))
    ages = timedelta(days=400)
    now = datetime.now(UTC)
    past, future = now - ages, now + ages
    expired = directory(
        *(workdir / "expired", ca),
        client=ca.issue_cert("old@example.org", not_before=past - ages, not_after=past),
    )
    unborn = directory(
        *(workdir / "unborn", ca),
        client=ca.issue_cert("new@example.org", not_before=future, not_after=future + ages),
    )
    revoked_leaf = ca.issue_cert("bob@example.org")
    revoked = directory(workdir / "revoked", ca, client=revoked_leaf)
    (pki / "ca-crl.pem").write_bytes(crl_of(ca, [revoked_leaf]))
    gateway = OverTls(qemu.uri, "--tls-certificates", pki)
    assert nbdinfo(gateway.uri(pki))["TLS"] is True
    for who in (stranger, revoked, expired, unborn):
        assert attempt("nbdinfo", gateway.uri(who)).status
    said = gateway.said()
    assert "certificate has expired" in said
    assert "certificate is not yet valid" in said
    assert " has revoked " in said
    assert "unable to get local issuer certificate" in said or "self" in said


# --- Servers over TLS, clients without


def secure_servers(pki: Path) -> dict[str, Sequence[str | Path]]:
    x509 = f"tls-creds-x509,id=t,dir={pki},endpoint=server,verify-peer=on"
    psk = f"tls-creds-psk,id=t,dir={pki},endpoint=server"
    return {
        "nbdkit": ("--tls=require", f"--tls-certificates={pki}", "--tls-verify-peer"),
        "nbdkit with keys": ("--tls=require", f"--tls-psk={pki / 'keys.psk'}"),
        "qemu-nbd": ("--object", x509, "--tls-creds", "t"),
        "qemu-nbd with keys": ("--object", psk, "--tls-creds", "t"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "nbdkit",
        pytest.param("nbdkit with keys", marks=needs_psk),
        "qemu-nbd",
        pytest.param("qemu-nbd with keys", marks=needs_psk),
    ],
)
def test_servers_over_tls(
    servers: Servers, image: Image, pki: Path, workdir: Path, kind: str
) -> None:
    disk = workdir / "disk.img"
    shutil.copy(image.path, disk)
    secure = secure_servers(pki)[kind]
    if kind.startswith("nbdkit"):
        upstream = servers.nbdkit(*secure, "file", disk)
    else:
        upstream = servers.qemu_nbd(*secure, "-f", "raw", disk)
    path = upstream.uri.partition("socket=")[2]
    how = (
        f"tls-psk-file={pki / 'keys.psk'}"
        if "keys" in kind
        else f"tls-certificates={pki}&tls-hostname=localhost"
    )
    user = "alice@" if "keys" in kind else ""
    gateway = OverTls(f"nbds+unix://{user}/?socket={quote(path)}&{how}", scheme="nbd")
    copy = workdir / "copy.img"
    nbdcopy(gateway.plain_uri, copy)
    assert run("cmp", image.path, copy) == ""
    nbdsh(f"h.connect_uri({gateway.plain_uri!r})\nh.pwrite(b'x' * 100000, 5)\nh.flush()")
    assert disk.read_bytes()[5:100005] == b"x" * 100000


def test_several_servers_over_tls(
    servers: Servers, image: Image, pki: Path, workdir: Path, ca: trustme.CA
) -> None:
    """Each shows a certificate of its own name; when one is gone, the next is held against that."""
    first, second = (
        servers.nbdkit("--tls=require", f"--tls-certificates={theirs}", "file", "-r", image.path)
        for name in ("a.example", "b.example")
        for theirs in (directory(workdir / name, ca, server=ca.issue_cert(name)),)
    )
    uris = [
        f"nbds+unix:///?socket={quote(upstream.uri.partition('socket=')[2])}&tls-hostname={name}"
        for upstream, name in ((first, "a.example"), (second, "b.example"))
    ]
    listen, config = workdir / "listen", workdir / "gateway.toml"
    config.write_text(
        f'[[listen]]\nuri = "{unix_uri(listen)}"\n'
        f'[upstream.two]\nuris = {uris}\ncertificates = "{pki}"\nconnect-seconds = 5\n'
    )
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
    gateway.ready_when(lambda: listening(unix_uri(listen)), "the gateway listens")
    for server in (first, second):
        assert nbdinfo(unix_uri(listen))["exports"][0]["export-size"] == image.size
        assert "Hostname mismatch" not in gateway.output
        server.process.stop()
    assert attempt("nbdinfo", unix_uri(listen)).status
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.output


def test_nbd_server_over_tls(servers: Servers, image: Image, pki: Path, workdir: Path) -> None:
    disk = workdir / "disk.img"
    shutil.copy(image.path, disk)
    generic = (
        f"certfile = {pki / 'server-cert.pem'}\nkeyfile = {pki / 'server-key.pem'}\n"
        f"cacertfile = {pki / 'ca-cert.pem'}\nforce_tls = true\n"
    )
    uri = servers.nbd_server(disk, generic=generic).uri
    gateway = OverTls(f"nbds{uri.removeprefix('nbd')}?tls-certificates={pki}", scheme="nbd")
    copy = workdir / "copy.img"
    nbdcopy(f"{gateway.plain_uri}/disk", copy)
    assert run("cmp", image.path, copy) == ""


@needs_psk
@pytest.mark.parametrize("kind", ["nbdkit with keys", "qemu-nbd with keys"])
def test_servers_that_do_not_know_our_key(
    servers: Servers, image: Image, pki: Path, kind: str
) -> None:
    secure = secure_servers(pki)[kind]
    upstream = (
        servers.nbdkit(*secure, "file", image.path)
        if kind.startswith("nbdkit")
        else servers.qemu_nbd(*secure, "-f", "raw", "-r", image.path)
    )
    ours = pki / "ours.psk"
    ours.write_text(KEY.replace("0", "1"))
    ours.chmod(0o600)
    path = quote(upstream.uri.partition("socket=")[2])
    gateway = OverTls(f"nbds+unix://alice@/?socket={path}&tls-psk-file={ours}", scheme="nbd")
    assert attempt("nbdinfo", gateway.plain_uri).status
    said = gateway.said()
    assert "as user 'alice': " in said
    assert "perhaps the server does not know this user, or another key" in said


@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_servers_that_want_tls(servers: Servers, image: Image, pki: Path, kind: str) -> None:
    """Their URI has been given as one of servers in the clear."""
    secure = secure_servers(pki)[kind]
    upstream = (
        servers.nbdkit(*secure, "file", image.path)
        if kind == "nbdkit"
        else servers.qemu_nbd(*secure, "-f", "raw", "-r", image.path)
    )
    gateway = OverTls(upstream.uri, scheme="nbd")
    assert attempt("nbdinfo", gateway.plain_uri).status
    told = attempt("qemu-img", "info", gateway.plain_uri).err
    assert "the gateway's own server wants TLS" in told
    assert "nbds:" not in told
    assert ": use nbds: in the URI of this server" in gateway.said()
    probed = run(sys.executable, "-m", "gateway", "probe", upstream.uri)
    assert "it says nothing more without TLS: use nbds: in its URI" in probed


@pytest.mark.parametrize("scheme", ["nbds", "nbd"])
def test_a_client_that_begins_with_tls(qemu: Upstream, pki: Path, scheme: str) -> None:
    """As one of HTTPS does, or the other end of a tunnel."""
    certificates = ("--tls-certificates", pki) if scheme == "nbds" else ()
    gateway = OverTls(qemu.uri, *certificates, scheme=scheme)
    context = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    with socket.create_connection(("127.0.0.1", gateway.port)) as plain, pytest.raises(OSError):  # noqa: PT011 # SSLError, or a reset
        context.wrap_socket(plain, server_hostname="localhost")
    assert "this is TLS without NBD" in gateway.said()


@pytest.mark.parametrize("kind", ["nbdkit", "nbdkit-oldstyle"])
def test_there_is_no_way_back_to_the_clear(
    servers: Servers, image: Image, pki: Path, kind: str
) -> None:
    upstream = servers.start(kind, image.path)
    path = upstream.uri.partition("socket=")[2]
    secure = f"nbds+unix:///?socket={quote(path)}&tls-certificates={pki}&tls-hostname=localhost"
    gateway = OverTls(secure, scheme="nbd")
    assert attempt("nbdinfo", gateway.plain_uri).status
    assert "has no TLS" in gateway.said()


def test_a_server_of_another_name(servers: Servers, image: Image, pki: Path) -> None:
    upstream = servers.nbdkit("--tls=require", f"--tls-certificates={pki}", "file", image.path)
    path = upstream.uri.partition("socket=")[2]
    secure = f"nbds+unix:///?socket={quote(path)}&tls-certificates={pki}&tls-hostname=a.example"
    gateway = OverTls(secure, scheme="nbd")
    assert attempt("nbdinfo", gateway.plain_uri).status
    assert "Hostname mismatch" in gateway.said()
    anyone = OverTls(secure + "&tls-verify-peer=false", scheme="nbd")
    assert nbdinfo(anyone.plain_uri)["exports"][0]["export-size"] == image.size


SERVERS_NOT_TO_TRUST = {
    "expired": "certificate has expired",
    "not yet valid": "certificate is not yet valid",
    "revoked": " has revoked ",
    "of another CA": "self-signed certificate|unable to get local issuer",
}


@pytest.mark.parametrize("which", SERVERS_NOT_TO_TRUST)
def test_servers_not_to_trust(
    servers: Servers, image: Image, pki: Path, workdir: Path, ca: trustme.CA, which: str
) -> None:
    now, year = datetime.now(UTC), timedelta(days=365)
    begin = {"expired": now - 2 * year, "not yet valid": now + year}.get(which, now - year)
    end = now - year if which == "expired" else now + 2 * year
    issuer = trustme.CA() if which == "of another CA" else ca
    leaf = issuer.issue_cert("localhost", not_before=begin, not_after=end)
    theirs = directory(workdir / "theirs", ca, server=leaf)
    if which == "revoked":
        (pki / "ca-crl.pem").write_bytes(crl_of(ca, [leaf]))
    upstream = servers.nbdkit("--tls=require", f"--tls-certificates={theirs}", "file", image.path)
    path = upstream.uri.partition("socket=")[2]
    secure = f"nbds+unix:///?socket={quote(path)}&tls-certificates={pki}&tls-hostname=localhost"
    gateway = OverTls(secure, scheme="nbd")
    told = attempt("nbdinfo", gateway.plain_uri)
    assert told.status
    assert re.search(SERVERS_NOT_TO_TRUST[which], gateway.said())


def bare_authority(days: int, now: datetime) -> Issued:
    """A CA as `openssl req -x509` makes it: no keyUsage."""
    made = new_authority(days, now)
    old = made.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.subject)
        .public_key(made.key.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return Issued(builder.sign(made.key, SHA256()), made.key)


def server_for(
    purpose: x509.ObjectIdentifier, authority: Issued, servers: Servers, image: Image, workdir: Path
) -> str:
    """The URI of a server whose certificate is for a purpose, and who trusts its CA; libnbd does."""
    days, now = 10, datetime.now(UTC)
    theirs = issue(authority, "s", ["localhost"], purpose, days, now)
    folder = workdir / "theirs"
    for name, content in (authority.files("ca") | theirs.files("server")).items():
        write(folder / name, content)
    upstream = servers.nbdkit("--tls=require", f"--tls-certificates={folder}", "file", image.path)
    path = upstream.uri.partition("socket=")[2]
    ours = directory(workdir / "ours", None)
    write(ours / "ca-cert.pem", (folder / "ca-cert.pem").read_bytes())
    secure = f"nbds+unix:///?socket={quote(path)}&tls-certificates={ours}&tls-hostname=localhost"
    assert nbdinfo(secure)["exports"][0]["export-size"] == image.size
    return secure


@pytest.mark.parametrize("authority", [new_authority, bare_authority])
def test_a_server_with_a_certificate_for_clients_alone(
    servers: Servers,
    image: Image,
    workdir: Path,
    authority: Callable[[int, datetime], Issued],
) -> None:
    """GnuTLS takes it, so do we, and the log says what it is; but not under another name."""
    by = authority(10, datetime.now(UTC))
    secure = server_for(ExtendedKeyUsageOID.CLIENT_AUTH, by, servers, image, workdir)
    gateway = OverTls(secure, scheme="nbd")
    assert nbdinfo(gateway.plain_uri)["exports"][0]["export-size"] == image.size
    assert "says that it is not for servers" in gateway.said()
    other = secure.replace("hostname=localhost", "hostname=other.example")
    assert attempt("nbdinfo", OverTls(other, scheme="nbd").plain_uri).status


@pytest.mark.parametrize("purpose", ["CODE_SIGNING", "ANY_EXTENDED_KEY_USAGE"])
def test_a_server_with_a_certificate_for_neither(
    servers: Servers, image: Image, workdir: Path, purpose: str
) -> None:
    """What docs/tls.md says of those that GnuTLS takes, and we do not."""
    by = new_authority(10, datetime.now(UTC))
    wanted = getattr(ExtendedKeyUsageOID, purpose)
    gateway = OverTls(server_for(wanted, by, servers, image, workdir), scheme="nbd")
    assert attempt("nbdinfo", gateway.plain_uri).status
    assert "has no clientAuth" in gateway.said()


# --- Exchange, and what is left behind


def anybody() -> ssl.SSLContext:
    """A client without a certificate, to which any server is good."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def starting_tls(port: int) -> socket.socket:
    """A connection to a server that has acknowledged STARTTLS."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.recv(18)
    sock.sendall(b"\0\0\0\3" + b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0]))
    assert len(sock.recv(20)) == 20
    return sock


def certificate_of(port: int) -> bytes:
    """The certificate that a server shows."""
    with starting_tls(port) as sock, anybody().wrap_socket(sock) as secure:
        return secure.getpeercert(binary_form=True) or b""


def test_certificates_are_exchanged_under_load(
    servers: Servers, pki: Path, ca: trustme.CA, workdir: Path
) -> None:
    upstream = servers.nbdkit("pattern", "512M")
    gateway = OverTls(upstream.uri, "--tls-certificates", pki, "--no-tls-verify-client")
    before = certificate_of(gateway.port)
    copies = [Process("nbdcopy", gateway.uri(pki), "null:") for _ in range(4)]
    fresh = ca.issue_cert("localhost", "127.0.0.1")
    (pki / "server-key.pem").write_bytes(fresh.private_key_pem.bytes())
    gateway.process.signal(signal.SIGHUP)  # half: the key does not fit
    wait_until(lambda: "credentials stay as they were" in gateway.process.output, "it is told")
    assert certificate_of(gateway.port) == before
    (pki / "server-cert.pem").write_bytes(b"".join(p.bytes() for p in fresh.cert_chain_pems))
    gateway.process.signal(signal.SIGHUP)
    wait_until(lambda: "credentials exchanged" in gateway.process.output, "they are exchanged")
    assert certificate_of(gateway.port) == fresh_certificate(pki)
    assert [copy.wait() for copy in copies] == [0] * 4


def fresh_certificate(pki: Path) -> bytes:
    first = (pki / "server-cert.pem").read_text().partition("-----END")[0]
    return ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n")


def test_rude_clients_leave_nothing_behind(qemu: Upstream, pki: Path) -> None:
    gateway = OverTls(qemu.uri, "--tls-certificates", pki, "--no-tls-verify-client")
    assert nbdinfo(gateway.uri(pki))["TLS"] is True
    idle = gateway.process.descriptors()
    rude(gateway.port, 100)
    wait_until(lambda: gateway.process.descriptors() <= idle, "descriptors are closed")
    memory = gateway.process.resident_bytes()
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(rude, gateway.port, 250) for _ in range(4)]:
            done.result()
    wait_until(lambda: gateway.process.descriptors() <= idle, "descriptors are closed")
    assert gateway.process.resident_bytes() - memory < SLACK_BYTES
    assert nbdinfo(gateway.uri(pki))["TLS"] is True
    said = gateway.said()
    assert "Traceback" not in said
    assert "internal error" not in said


def rude(port: int, count: int) -> None:
    """Go at every stage of a connection, before, in and behind the handshake, and in a request: by a FIN, or
    by a reset.
    """
    context = anybody()
    go = b"IHAVEOPT" + bytes([0, 0, 0, 7, 0, 0, 0, 6]) + bytes(6)
    for number in range(count):
        with starting_tls(port) as sock:
            if number % 8 >= 4:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stage = number % 4
            if stage == 0:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")
                continue
            secure = context.wrap_socket(sock)
            if stage >= 2:
                secure.sendall(go)
                secure.recv(1024)
            if stage == 3:
                secure.sendall(b"\x25\x60\x95\x13" + bytes([0, 0, 0, 1]) + bytes(19) + b"\x80")
            socket.socket(fileno=secure.detach()).close()  # without a word
