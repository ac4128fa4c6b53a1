"""Two TLS sides joined in memory, and the files that they load."""

from __future__ import annotations

import datetime as dt
import ssl
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from gateway.tls.credentials import ClientCredentials, ServerCredentials
from gateway.tls.errors import NotAdmitted
from gateway.tls.session import Admitted, TlsSession

NOW = dt.datetime(2026, 1, 15, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)

needs_psk = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="PSK needs CPython 3.13 or later (SSLContext.set_psk_*)"
)

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@dataclass
class Result:
    """How a handshake ended on both sides; an error is OpenSSL's reason, or ours."""

    server: str | Admitted
    client: str | Admitted
    server_tls: ssl.SSLObject | None
    client_tls: ssl.SSLObject
    wire: bytes = field(default=b"", repr=False)
    """What the server sent."""

    @property
    def admitted(self) -> Admitted:
        assert isinstance(self.server, Admitted), self
        assert isinstance(self.client, Admitted), self
        return self.server


class Side:
    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        self.error: str | None = None
        self.done = False

    def step(self) -> None:
        if self.tls is None or self.error is not None:
            return
        try:
            if self.done:
                self.tls.read(
                    1
                )  # TLS 1.3: what the server thinks of our certificate comes afterwards
            else:
                self.tls.do_handshake()
                self.done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error.reason or str(error)

    def outcome(self, session: TlsSession | None) -> str | Admitted:
        if self.error is not None:
            return self.error
        if not self.done or session is None or self.tls is None:
            return "not done"
        try:
            return session.admitted(self.tls)
        except NotAdmitted as error:
            return str(error)


def shake_hands(
    server: ServerCredentials,
    client: ClientCredentials | ssl.SSLContext,
    *,
    version: ssl.TLSVersion | None = None,
    piece_bytes: int = 1 << 16,
    resumed: ssl.SSLSession | None = None,
) -> Result:
    """Let a client of ours, or any other, and our server shake hands, in pieces of the given size."""
    if isinstance(client, ssl.SSLContext):
        client_session = TlsSession(client, server_side=False, hostname="localhost")
    else:
        client_session = client.session()
    if version is not None:
        client_session.context.minimum_version = client_session.context.maximum_version = version
    here, there = Side(), Side()
    there.tls = client_session.wrap(there.incoming, there.outgoing)
    if resumed is not None:
        there.tls.session = resumed
    session: TlsSession | None = None
    received = bytearray()
    wire = bytearray()
    for _ in range(8):
        there.step()
        data = there.outgoing.read()
        while data:
            piece, data = data[:piece_bytes], data[piece_bytes:]
            if here.tls is None:
                received += piece
                session = server.session(received)
                if session is None:
                    continue
                piece = bytes(received)
                here.tls = session.wrap(here.incoming, here.outgoing)
            here.incoming.write(piece)
            here.step()
        here.step()
        wire += (sent := here.outgoing.read())
        there.incoming.write(sent)
    there.step()
    return Result(
        here.outcome(session), there.outcome(client_session), here.tls, there.tls, bytes(wire)
    )


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def directory(
    path: Path,
    ca: trustme.CA | None,
    *,
    server: trustme.LeafCert | None = None,
    client: trustme.LeafCert | None = None,
    crl: bytes | None = None,
) -> Path:
    """Write a directory of certificates as nbdkit, qemu and libnbd know it."""
    path.mkdir(exist_ok=True)
    if ca is not None:
        write(path / "ca-cert.pem", ca.cert_pem.bytes())
    for role, leaf in (("server", server), ("client", client)):
        if leaf is not None:
            chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
            write(path / f"{role}-cert.pem", chain)
            write(path / f"{role}-key.pem", leaf.private_key_pem.bytes())
    if crl is not None:
        write(path / "ca-crl.pem", crl)
    return path


def crl_of(
    ca: trustme.CA,
    revoked: Iterable[trustme.LeafCert] = (),
    *,
    begin: dt.datetime | None = None,
    end: dt.datetime | None = None,
) -> bytes:
    """Sign a list of revoked certificates."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject)
        .last_update(begin or now - DAY)
        .next_update(end or now + 100 * DAY)
    )
    for leaf in revoked:
        certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now - DAY).build())
    key = load_pem_private_key(ca.private_key_pem.bytes(), None)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type] # trustme's are EC
