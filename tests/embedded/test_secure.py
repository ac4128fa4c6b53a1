"""An embedded server over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.tls.credentials import server_credentials
from gateway.wire.constants import Cmd, Rep
from gateway.wire.limits import MIB
from tests.embedded.peers import connected
from tests.sessions.asking import start_tls
from tests.tls.handshakes import directory

SIZE = 8 * MIB


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("joe@a.example")
    return directory(tmp_path_factory.mktemp("pki"), ca, server=server, client=client)


def secure(pki: Path, said: list[str] | None = None, personality: str = "plain") -> Server:
    disks = {"": MemoryDisk(SIZE)}
    log = None if said is None else said.append
    tls = server_credentials(pki).session
    return Server(disks, PERSONALITIES[personality], tls=tls, log=log)


def client_context(pki: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    context.load_cert_chain(pki / "client-cert.pem", pki / "client-key.pem")
    return context


@pytest.mark.parametrize("personality", ["plain", "qemu-3.0", "nbd-server-3.24", "qemu-2.8"])
async def test_what_is_written_is_read(pki: Path, personality: str) -> None:
    """One request after the other is answered by all of them."""
    data = bytes(range(256)) * 4096  # of several records
    async with connected(secure(pki, personality=personality)) as client:
        await start_tls(client, client_context(pki))
        if personality == "qemu-2.8":
            client.negotiation.export_name("")
            await client.answered()
        else:
            client.negotiation.go("", ())
            await client.answered()
        for at in range(0, SIZE, len(data)):
            await client.send(Cmd.WRITE, at, data=data)
            assert (await client.simple_reply())[1] == 0
        for at in range(0, SIZE, len(data)):
            _, error, read = await client.simple_reply_to(Cmd.READ, at, len(data))
            assert (error, read) == (0, data)
        await client.send(Cmd.DISC)


async def test_nothing_is_told_before_it(pki: Path) -> None:
    async with connected(secure(pki)) as client:
        await client.greeting()
        client.negotiation.go("", ())
        assert (await client.refused()).reply == Rep.ERR_TLS_REQD


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.0\r\n\r\n", b""], ids=["garbage", "nothing"])
async def test_a_handshake_that_fails_ends_that_connection_alone(pki: Path, sent: bytes) -> None:
    said: list[str] = []
    server = secure(pki, said)
    async with connected(server) as client:
        await client.greeting()
        client.negotiation.ask_starttls()
        await client.answered()
        await client.stream.send_all(sent)
        await client.stream.send_eof()
        await client.rest()
    assert said[0].startswith("connection 0: TLS: ")
    async with connected(server) as client:
        await start_tls(client, client_context(pki))
