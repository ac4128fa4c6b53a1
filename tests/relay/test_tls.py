"""Clients over TLS, and upstreams over TLS: real handshakes on socket pairs, the real hub."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing
import trustme

from gateway.embedded import MemoryDisk, Server
from gateway.relay.client import serve_client
from gateway.tls.credentials import ServerCredentials, server_credentials
from gateway.wire import limits
from gateway.wire.constants import Cmd, Rep
from tests.embedded.peers import Client, socket_pair
from tests.relay.gateways import Gateway, gateway_before
from tests.tls.handshakes import directory

SIZE = 8 * limits.MIB
ALLOW = 'tls = "allow"\ncertificates = "not looked at"'
REQUIRE = 'tls = "require"\ncertificates = "not looked at"'


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a server and of a client called joe."""
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("joe@a.example", common_name="joe")
    return directory(tmp_path_factory.mktemp("pki"), ca, server=server, client=client)


@pytest.fixture(scope="module")
def credentials(pki: Path) -> ServerCredentials:
    return server_credentials(pki)


def client_context(pki: Path, *, known: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    if known:
        context.load_cert_chain(pki / "client-cert.pem", pki / "client-key.pem")
    return context


def connected(gateway: Gateway, credentials: ServerCredentials) -> Client:
    """A client before its STARTTLS."""
    ours, theirs = socket_pair()
    listen = gateway.service.config.listen[0]
    serve = partial(serve_client, gateway.service, listen, tls=credentials.session)
    gateway.nursery.start_soon(serve, theirs)
    return Client(ours)


async def start_tls(client: Client, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    """Go over to TLS; a client goes on there as before."""
    await client.greeting()
    client.negotiation.ask_starttls()
    await client.answered()
    secure = trio.SSLStream(client.stream, context, server_hostname="localhost")
    await secure.do_handshake()
    client.negotiation = client.negotiation.secured()
    client.stream = secure  # type: ignore[assignment] # all that it uses is there
    return secure


@asynccontextmanager
async def over_tls(
    gateway: Gateway, credentials: ServerCredentials, context: ssl.SSLContext
) -> AsyncIterator[Client]:
    client = connected(gateway, credentials)
    async with client.stream:
        await start_tls(client, context)
        yield client


async def go_structured(client: Client, name: str = "") -> None:
    client.negotiation.ask_structured_replies()
    await client.answered()
    client.negotiation.go(name, ())
    await client.answered()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_over_tls(
    pki: Path, credentials: ServerCredentials, version: ssl.TLSVersion
) -> None:
    context = client_context(pki)
    context.maximum_version = version
    disk = MemoryDisk(SIZE)
    data = bytes(range(256)) * 4096
    with structlog.testing.capture_logs() as lines:
        async with (
            gateway_before(Server({"": disk}), listen=REQUIRE) as gateway,
            over_tls(gateway, credentials, context) as client,
        ):
            await go_structured(client)
            for at in range(0, SIZE, len(data)):
                assert not await client.error(Cmd.WRITE, at, data=data)
            for at in range(0, SIZE, len(data)):
                assert await client.read(at, len(data)) == data
            await client.send(Cmd.DISC)
            assert not await client.rest()
    [begins] = [line for line in lines if line["event"] == "session begins"]
    assert begins["who"].startswith("cn:joe ")
    assert begins["tls"].startswith("TLSv1")


async def test_requests_behind_go_in_the_same_record(
    pki: Path, credentials: ServerCredentials
) -> None:
    """They are inside OpenSSL when the hub takes over, and no event of a socket will speak of them."""
    async with (
        gateway_before(Server({"": MemoryDisk(SIZE)}), listen=ALLOW) as gateway,
        over_tls(gateway, credentials, client_context(pki)) as client,
    ):
        client.negotiation.go("", ())
        requests = b"".join(
            client.framing.encode_request(Cmd.READ, 0, cookie, 0, 512) for cookie in range(40)
        )
        await client.stream.send_all(client.negotiation.data_to_send() + requests)
        await client.answered()
        for cookie in range(40):
            client._lengths[cookie] = 512
            assert await client.simple_reply() == (cookie, 0, bytes(512))


@pytest.mark.parametrize("behind", [b"IHAVEOPT" + bytes(8), b"\x16\x03\x01"])
async def test_what_is_injected_behind_starttls_is_not_obeyed(
    credentials: ServerCredentials, behind: bytes
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=ALLOW) as gateway:
            client = connected(gateway, credentials)
            async with client.stream:
                await client.greeting()
                client.negotiation.ask_starttls()
                await client.stream.send_all(client.negotiation.data_to_send() + behind)
                assert not await client.rest()
    assert "behind STARTTLS" in str(lines)


async def test_an_export_for_tls_alone(pki: Path, credentials: ServerCredentials) -> None:
    server = Server({"": MemoryDisk(SIZE), "open": MemoryDisk(SIZE)})
    async with gateway_before(server, listen=ALLOW, export='tls = "require"') as gateway:
        plain = connected(gateway, credentials)
        async with plain.stream:
            await plain.structured()
            plain.negotiation.list_exports()
            assert not (await plain.answered()).exports
            for ask in (plain.negotiation.ask_info, plain.negotiation.go):
                ask("open", ())
                assert (await plain.refused()).reply == Rep.ERR_TLS_REQD
            listed = server.connections
            for select in (False, True):
                plain.negotiation.ask_contexts("open", ["base:allocation"], select=select)
                assert (await plain.refused()).reply == Rep.ERR_UNKNOWN
            assert server.connections == listed  # nothing was dialled for it
        async with over_tls(gateway, credentials, client_context(pki)) as client:
            client.negotiation.list_exports()
            assert len((await client.answered()).exports) == 2
            client.negotiation.go("open", ())
            await client.answered()


async def test_export_name_of_an_export_for_tls_alone(credentials: ServerCredentials) -> None:
    async with gateway_before(
        Server({"": MemoryDisk(SIZE)}), listen=ALLOW, export='tls = "require"'
    ) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.greeting()
            client.negotiation.export_name("")
            await client.stream.send_all(client.negotiation.data_to_send())
            assert not await client.rest()


async def test_who_shows_no_certificate_is_not_let_in(
    pki: Path, credentials: ServerCredentials
) -> None:
    server = Server({"": MemoryDisk(SIZE)})
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, listen=REQUIRE) as gateway:
            client = connected(gateway, credentials)
            async with client.stream:
                await start_tls(client, client_context(pki, known=False))
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    await go_structured(client)  # in TLS 1.3 it learns so only now
    assert server.connections == 0
    assert "peer did not return a certificate" in str(lines)


@pytest.mark.parametrize("stalls", ["says nothing", "a byte a second", "garbage"])
async def test_handshakes_that_do_not_end(
    credentials: ServerCredentials, stalls: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_starttls()
            await client.answered()
            began = trio.current_time()
            if stalls == "garbage":
                await client.stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            async with trio.open_nursery() as nursery:
                if stalls == "a byte a second":
                    nursery.start_soon(_dribble, client.stream)
                with trio.fail_after(10), suppress(trio.BrokenResourceError):
                    await client.rest()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - began < 6  # handshake-seconds is 5


async def _dribble(stream: trio.SocketStream) -> None:
    hello = b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03" + bytes(200)
    for byte in hello:
        try:
            await stream.send_all(bytes([byte]))
        except trio.BrokenResourceError:
            return
        await trio.sleep(1)


@pytest.mark.parametrize("when", ["after DISC", "between requests", "in a request"])
async def test_a_client_that_leaves_without_close_notify(
    pki: Path, credentials: ServerCredentials, when: str
) -> None:
    """So do GnuTLS's peers; nothing is left behind, which `gateway_before` looks at."""
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
            client = connected(gateway, credentials)
            transport = client.stream
            await start_tls(client, client_context(pki))
            await go_structured(client)
            if when == "after DISC":
                await client.send(Cmd.DISC)
            if when == "in a request":
                head = client.framing.encode_request(Cmd.WRITE, 0, 1, 0, 4096)
                await client.stream.send_all(head + bytes(100))
            await transport.aclose()
    ends = [line for line in lines if line["event"] == "session ended"]
    assert [line["log_level"] for line in ends] == [
        "warning" if when == "in a request" else "info"
    ], ends


async def test_what_was_said_in_the_clear_is_forgotten(
    pki: Path, credentials: ServerCredentials
) -> None:
    server = Server({"": MemoryDisk(SIZE)})
    async with gateway_before(server, listen=ALLOW) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.structured()
            client.negotiation.ask_contexts("", ["base:allocation"], select=True)
            await client.answered()
            client.negotiation.ask_starttls()
            await client.answered()
            secure = trio.SSLStream(client.stream, client_context(pki), server_hostname="localhost")
            await secure.do_handshake()
            client.negotiation = client.negotiation.secured()
            client.stream = secure  # type: ignore[assignment]
            client.negotiation.go("", ())
            await client.answered()
            # Simple replies, and no contexts: nobody has asked for them here.
            assert await client.simple_reply_to(Cmd.READ, 0, 512) == (1, 0, bytes(512))
            assert (await client.simple_reply_to(Cmd.BLOCK_STATUS, 0, 512))[1]


async def test_a_slow_reader_gets_every_byte(pki: Path, credentials: ServerCredentials) -> None:
    """Ciphertext that the kernel does not take is sent later, and no byte of it twice."""
    disk = MemoryDisk(SIZE)
    data = b"".join(number.to_bytes(4) for number in range(SIZE // 4))
    await disk.write(0, data, fua=False)
    async with (
        gateway_before(Server({"": disk}), listen=REQUIRE) as gateway,
        over_tls(gateway, credentials, client_context(pki)) as client,
    ):
        await go_structured(client)
        pieces = [(at, min(777_777, SIZE - at)) for at in range(0, SIZE, 777_777)]
        cookies = [await client.send(Cmd.READ, at, length) for at, length in pieces]
        await trio.testing.wait_all_tasks_blocked(0.01)
        read = bytearray(SIZE)
        unfinished = set(cookies)
        while unfinished:
            cookie, chunk = await client.chunk()
            if chunk.kind:
                read[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
            if chunk.done:
                unfinished.remove(cookie)
        assert bytes(read) == data


async def test_a_client_that_closes_tls_behind_its_go(
    pki: Path, credentials: ServerCredentials
) -> None:
    """The end is inside OpenSSL when the hub takes over, and the connection itself stays open."""
    async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=ALLOW) as gateway:
        client = connected(gateway, credentials)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_starttls()
            await client.answered()
            tls = client_context(pki).wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                await client.stream.send_all(outgoing.read())
                incoming.write(await client.stream.receive_some())
            after = client.negotiation.secured()
            after.go("", ())
            tls.write(after.data_to_send())
            with suppress(ssl.SSLWantReadError):
                tls.unwrap()
            await client.stream.send_all(outgoing.read())
            with trio.fail_after(5):
                while await client.stream.receive_some():
                    pass
