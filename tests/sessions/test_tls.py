"""Clients over TLS, and upstreams over TLS: real handshakes on socket pairs, the real hub."""

from __future__ import annotations

import datetime as dt
import random
import socket
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
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.clients.client import serve_client
from gateway.embedded import MemoryDisk, Server
from gateway.net.drive import Conversation, PeerClosed
from gateway.protocol.server_role import Aborted, ServerDialect, ServerNegotiation, Tls
from gateway.status.shown import upstreams_shown
from gateway.tls.credentials import (
    ServerCredentials,
    client_credentials,
    server_credentials,
)
from gateway.tls.issuing import issue, new_authority
from gateway.tls.session import TlsSession
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation
from gateway.wire import limits
from gateway.wire.constants import Cmd, Opt, Rep
from gateway.wire.handshake import encode_greeting, encode_option, encode_option_reply
from gateway.wire.transmission import encode_request
from tests.embedded.peers import Client, socket_pair
from tests.sessions.asking import start_tls
from tests.sessions.gateways import Gateway, gateway_before
from tests.tls.handshakes import directory, write
from tests.tools.patience import HANG_SECONDS
from tests.upstream.servers import server_to
from tests.upstream.taps import Tap, cancelled_at

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


async def test_behind_a_load_balancer(pki: Path, credentials: ServerCredentials) -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
            ours, theirs = socket_pair()
            [listen] = gateway.service.config.listen
            listen = listen.model_copy(update={"proxy_protocol": ("unix",)})
            serve = partial(serve_client, gateway.service, listen, tls=credentials.session)
            gateway.nursery.start_soon(serve, theirs)
            await ours.send_all(b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 10809\r\n")
            client = Client(ours)
            secure = await start_tls(client, client_context(pki))
            async with secure:
                await go_structured(client)
                await client.send(Cmd.DISC)
                assert not await client.rest()
    [begins] = [line for line in lines if line["event"] == "session begins"]
    assert begins["who"].startswith("cn:joe ")
    # The load balancer's user is nothing that the client has proved.
    assert begins["who"].endswith(" [2001:db8::1]:56324")
    assert "unix:" not in begins["who"]
    assert begins["client"] == "[2001:db8::1]:56324"
    assert begins["via"].startswith("unix:pid=")


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


@pytest.mark.parametrize("abort", [True, False], ids=["abort", "hangs up"])
async def test_who_has_no_tls_is_one_line_of_the_log(
    credentials: ServerCredentials, abort: bool
) -> None:
    """It was told so, and whoever runs us looks for the reason there."""
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
            client = connected(gateway, credentials)
            async with client.stream:
                await client.greeting()
                for ask in (
                    client.negotiation.ask_structured_replies,
                    client.negotiation.list_exports,
                ):
                    ask()
                    await client.refused()
                if abort:
                    client.negotiation.abort()
                    await client.answered()
    refused = [line for line in lines if line["event"] == "client refused"]
    assert [(line["asked"], line["why"], line["log_level"]) for line in refused] == [
        ("LIST", "ERR_TLS_REQD: this server wants TLS first: send STARTTLS", "info")
    ]


@pytest.mark.parametrize("goes_on", [False, True], ids=["leaves", "goes on without"])
async def test_who_wants_tls_where_there_is_none(goes_on: bool) -> None:
    """That is a line, unless it has its export all the same."""
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)})) as gateway:
            ours, theirs = socket_pair()
            [listen] = gateway.service.config.listen
            gateway.nursery.start_soon(serve_client, gateway.service, listen, theirs)
            client = Client(ours)
            async with client.stream:
                await client.greeting()
                client.negotiation.ask_starttls()
                await client.refused()
                if goes_on:
                    await go_structured(client)
                    await client.send(Cmd.DISC)
                    assert not await client.rest()
    refused = [line for line in lines if line["event"] == "client refused"]
    assert [(line["asked"], line["why"]) for line in refused] == (
        [] if goes_on else [("STARTTLS", "ERR_UNSUP: STARTTLS is not supported")]
    )


async def test_who_goes_over_to_tls_after_all_was_not_refused(
    pki: Path, credentials: ServerCredentials
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
            client = connected(gateway, credentials)
            await client.greeting()
            client.negotiation.ask_structured_replies()
            await client.refused()
            client.negotiation.ask_starttls()
            await client.answered()
            secure = trio.SSLStream(client.stream, client_context(pki), server_hostname="localhost")
            client.negotiation = client.negotiation.secured()
            client.stream = secure  # type: ignore[assignment] # all that it uses is there
            async with secure:
                await go_structured(client)
                await client.send(Cmd.DISC)
                assert not await client.rest()
    assert "client refused" not in [line["event"] for line in lines]


async def test_an_export_for_tls_alone(pki: Path, credentials: ServerCredentials) -> None:
    """All who ask in the clear are told the same words. But "The server MUST NOT send NBD_REP_ERR_TLS_REQD in
    response to any option other than NBD_OPT_INFO, NBD_OPT_GO and NBD_OPT_EXPORT_NAME".
    """
    words = "export 'open' wants TLS: send STARTTLS"
    server = Server({"": MemoryDisk(SIZE), "open": MemoryDisk(SIZE)})
    async with gateway_before(server, listen=ALLOW, export='tls = "require"') as gateway:
        plain = connected(gateway, credentials)
        async with plain.stream:
            await plain.structured()
            plain.negotiation.list_exports()
            assert not (await plain.answered()).exports
            for ask in (plain.negotiation.ask_info, plain.negotiation.go):
                ask("open", ())
                refused = await plain.refused()
                assert (refused.reply, refused.text) == (Rep.ERR_TLS_REQD, words)
            listed = server.connections
            for select in (False, True):
                plain.negotiation.ask_contexts("open", ["base:allocation"], select=select)
                refused = await plain.refused()
                assert (refused.reply, refused.text) == (Rep.ERR_UNKNOWN, words)
            assert server.connections == listed  # nothing was dialled for it
        async with over_tls(gateway, credentials, client_context(pki)) as client:
            client.negotiation.list_exports()
            assert len((await client.answered()).exports) == 2
            client.negotiation.go("open", ())
            await client.answered()


HIDDEN_FOR_TLS = """
[[export]]
name = "open"
upstream = "main"
[[export]]
name = "hidden"
upstream = "main"
tls = "require"
[[rule]]
exports = "hidden"
deny = true
hide = true
[[rule]]
"""


async def test_what_is_hidden_stays_so_though_it_is_for_tls_alone(
    credentials: ServerCredentials,
) -> None:
    server = Server({"": MemoryDisk(SIZE), "hidden": MemoryDisk(SIZE)})
    async with gateway_before(server, listen=ALLOW, upstream=HIDDEN_FOR_TLS) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.structured()
            for name in ("hidden", "absent"):
                unknown = (Rep.ERR_UNKNOWN, f"there is no export {name!r}")
                for ask in (client.negotiation.ask_info, client.negotiation.go):
                    ask(name, ())
                    refused = await client.refused()
                    assert (refused.reply, refused.text) == unknown
                for select in (False, True):
                    client.negotiation.ask_contexts(name, ["base:allocation"], select=select)
                    refused = await client.refused()
                    assert (refused.reply, refused.text) == unknown
    assert server.connections == 0


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


@pytest.mark.parametrize("mode", ['"per-client"', '"shared"'])
async def test_who_knows_no_go_gets_one_reply_in_a_record(
    mode: str, pki: Path, credentials: ServerCredentials
) -> None:
    """qemu's client of 2.6 to 2.8 takes one each time its socket is readable: the next is not in there."""
    count, length = 20, 512
    requests = [encode_request(Cmd.READ, 0, number, 0, length) for number in range(count)]
    requests += [encode_request(Cmd.FLUSH, 0, count, 0, 0), encode_request(99, 0, 99, 0, 0)]
    replies = [16, length] * count + [16, 16]
    server = Server({"": MemoryDisk(SIZE)})
    for by_name in (True, False):
        async with (
            gateway_before(server, listen=REQUIRE, upstream=f"connections = {mode}") as gateway,
            over_tls(gateway, credentials, client_context(pki)) as client,
        ):
            if by_name:
                client.negotiation.export_name("")
            else:
                client.negotiation.go("", ())
            await client.answered()
            await client.stream.send_all(b"".join(requests))
            records: list[int] = []
            while sum(records) < sum(replies):
                records.append(len(await client.stream.receive_some(1 << 14)))  # of one record
            if by_name:
                assert sorted(records) == sorted(replies)
            else:
                assert len(records) < count


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
    [line] = lines
    assert (line["event"], line["log_level"]) == ("client hung up on", "warning")
    assert "peer did not return a certificate" in line["why"]


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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("notify", [True, False])
async def test_a_client_that_leaves_while_the_upstream_is_asked_is_let_go(
    pki: Path, credentials: ServerCredentials, notify: bool, version: ssl.TLSVersion
) -> None:
    called = trio.Event()
    ends: list[trio.SocketStream] = []

    def silent() -> trio.SocketStream:
        ours, theirs = socket_pair()
        ends.append(theirs)
        called.set()
        return ours

    context = client_context(pki)
    context.maximum_version = version
    async with gateway_before(silent, listen=REQUIRE, negotiate_seconds=1000) as gateway:
        client = connected(gateway, credentials)
        transport = client.stream
        secure = await start_tls(client, context)
        client.negotiation.go("", ())
        await client.stream.send_all(client.negotiation.data_to_send())
        await called.wait()
        await (secure if notify else transport).aclose()
        assert await ends[0].receive_some() == b""  # nor does it keep a connection to the upstream
    await ends[0].aclose()


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
            client.stream = secure  # type: ignore[assignment] # as in `start_tls`
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


async def test_both_ways_at_once_through_small_buffers(
    pki: Path, credentials: ServerCredentials
) -> None:
    """64 MiB each way in odd sizes: sends are partial all the time, and no byte is lost or sent twice."""
    size, most = 64 * limits.MIB, 1_234_567
    disk = MemoryDisk(2 * size)
    pattern = random.Random(5).randbytes(4 * limits.MIB)
    for at in range(0, size, len(pattern)):
        await disk.write(at, pattern[at >> 20 :] + pattern[: at >> 20], fua=False)
    expected = bytes(await disk.read(0, size))
    async with (
        gateway_before(Server({"": disk}), listen=REQUIRE) as gateway,
        over_tls(gateway, credentials, client_context(pki)) as client,
    ):
        client.negotiation.go("", ())
        await client.answered()
        pieces = [(at, min(most, size - at)) for at in range(0, size, most)]

        async def ask() -> None:
            for cookie, (at, length) in enumerate(pieces):
                await client.send(Cmd.READ, at, length, cookie=cookie)
                data = expected[at : at + length]
                await client.send(Cmd.WRITE, size + at, data=data, cookie=1000 + cookie)

        client.stream.transport_stream.setsockopt(  # type: ignore[attr-defined] # over TLS
            socket.SOL_SOCKET, socket.SO_SNDBUF, 5000
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for _ in range(2 * len(pieces)):
                cookie, error, data = await client.simple_reply()
                assert not error
                if cookie < 1000:
                    at, length = pieces[cookie]
                    assert data == expected[at : at + length]
    assert await disk.read(size, size) == expected


@pytest.mark.parametrize("last", ["close_notify", "garbage"])
async def test_the_end_of_tls_in_the_record_behind_go(
    pki: Path, credentials: ServerCredentials, last: str
) -> None:
    """The connection itself stays open: nothing but what OpenSSL has shows that it is over."""
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=ALLOW) as gateway:
            client = connected(gateway, credentials)
            context = client_context(pki)
            await client.greeting()
            client.negotiation.ask_starttls()
            await client.answered()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await client.stream.send_all(outgoing.read())
                    incoming.write(await client.stream.receive_some())
            secured = client.negotiation.secured()
            secured.go("", ())
            tls.write(secured.data_to_send())
            if last == "close_notify":
                with suppress(ssl.SSLError):
                    tls.unwrap()
                await client.stream.send_all(outgoing.read())
            else:
                await client.stream.send_all(outgoing.read() + b"garbage" * 10)
            with suppress(trio.BrokenResourceError):
                await client.rest()
            await client.stream.aclose()
    assert "session ended" in str(lines)


async def test_who_closes_tls_alone_is_answered_still(
    pki: Path, credentials: ServerCredentials
) -> None:
    """close_notify says that no more requests come, not that no replies are wanted (RFC 8446, 6.1)."""
    async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=ALLOW) as gateway:
        client = connected(gateway, credentials)
        transport = client.stream
        secure = await start_tls(client, client_context(pki))
        client.negotiation.go("", ())
        await client.answered()
        await client.send(Cmd.READ, 0, 2 * limits.MIB)
        assert secure._ssl_object is not None
        with suppress(ssl.SSLError):
            secure._ssl_object.unwrap()
        await transport.send_all(secure._outgoing.read())
        ciphertext = b""
        while piece := await transport.receive_some():
            ciphertext += piece
        assert len(ciphertext) > 2 * limits.MIB
        await transport.aclose()


def session_of(pki: Path) -> TlsSession:
    return client_credentials(pki, hostname="localhost").session()


@asynccontextmanager
async def secure_server(
    pki: Path, credentials: ServerCredentials, tls: str, listen: str = ""
) -> AsyncIterator[tuple[Gateway, Server]]:
    """A gateway before another, which has TLS."""
    server = Server({"": MemoryDisk(SIZE)})
    async with trio.open_nursery() as nursery:
        async with gateway_before(server, listen=tls) as inner:

            def connect() -> trio.SocketStream:
                ours, theirs = socket_pair()
                settings = inner.service.config.listen[0]
                serve = partial(serve_client, inner.service, settings, tls=credentials.session)
                inner.nursery.start_soon(serve, theirs)
                return ours

            async with gateway_before(connect, listen=listen) as outer:
                outer.service.servers["main"].tls = [partial(session_of, pki)]
                yield outer, server
        nursery.cancel_scope.cancel()


async def test_a_server_over_tls(pki: Path, credentials: ServerCredentials) -> None:
    async with secure_server(pki, credentials, REQUIRE) as (gateway, _):
        client = gateway.client()
        async with client.stream:
            await client.go()
            data = random.Random(1).randbytes(3_000_000)
            assert not await client.error(Cmd.WRITE, 77, data=data)
            assert await client.read(77, len(data)) == data


@pytest.mark.parametrize(
    ("listen", "event"),
    [("", "client refused"), ('style = "oldstyle"\nexport = ""', "client hung up on")],
    ids=["newstyle", "oldstyle"],
)
async def test_a_server_whose_certificate_is_wrong_is_warned_of(
    listen: str, event: str, pki: Path, credentials: ServerCredentials, tmp_path: Path
) -> None:
    """Until a person mends it, no client gets through."""
    of_others = directory(tmp_path, trustme.CA())
    with structlog.testing.capture_logs() as lines:
        async with secure_server(of_others, credentials, REQUIRE, listen) as (gateway, server):
            client = gateway.client()
            async with client.stream:
                if not listen:
                    await client.greeting()
                    client.negotiation.go("", ())
                    await client.refused()
                else:
                    assert not await client.rest()
            [shown] = await upstreams_shown(gateway.service, {})
    assert server.connections == 0
    assert shown["state"] == "down"
    assert "its certificate is not accepted" in shown["why"]
    [line] = [line for line in lines if "its certificate is not accepted" in line["why"]]
    assert (line["event"], line["log_level"]) == (event, "warning")


@pytest.fixture(scope="module")
def swapped(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server whose certificate is for clients alone, and the other way round."""
    now, days = dt.datetime.now(dt.UTC), 10
    ca = new_authority(days, now)
    for_clients = issue(ca, "s", ["localhost"], ExtendedKeyUsageOID.CLIENT_AUTH, days, now)
    for_servers = issue(ca, "joe", [], ExtendedKeyUsageOID.SERVER_AUTH, days, now)
    folder = tmp_path_factory.mktemp("swapped")
    files = ca.files("ca") | for_clients.files("server") | for_servers.files("client")
    for name, content in files.items():
        write(folder / name, content)
    return folder


@asynccontextmanager
async def server_for_clients(swapped: Path, name: str) -> AsyncIterator[tuple[Gateway, Server]]:
    """A gateway before a server that is to have this name, and whose certificate is for clients alone."""
    theirs = server_credentials(swapped, verify_client=False)
    async with secure_server(swapped, theirs, REQUIRE) as (gateway, server):
        forgiving = client_credentials(swapped, hostname=name, any_purpose=True)
        gateway.service.servers["main"].tls = [forgiving.session]
        yield gateway, server


async def test_a_server_whose_certificate_is_for_clients_alone_is_taken_with_a_warning(
    swapped: Path,
) -> None:
    """As libnbd and qemu take it; the gateway comes once more, and says so once."""
    with structlog.testing.capture_logs() as lines:
        async with server_for_clients(swapped, "localhost") as (gateway, server):
            for _ in range(3):
                client = gateway.client()
                async with client.stream:
                    await client.go()
                    assert len(await client.read(0, 512)) == 512
    assert server.connections == 3
    [line] = [line for line in lines if line["event"] == "upstream's certificate is for clients"]
    assert "unsuitable certificate purpose (its extendedKeyUsage or keyUsage" in line["why"]
    assert "says that it is not for servers)" in line["why"]


async def test_a_server_that_is_somebody_else_as_well_is_refused(swapped: Path) -> None:
    """For its purpose alone it would be taken; its name is another."""
    with structlog.testing.capture_logs() as lines:
        async with server_for_clients(swapped, "other.example") as (gateway, server):
            for _ in range(2):
                client = gateway.client()
                async with client.stream:
                    await client.greeting()
                    client.negotiation.go("", ())
                    await client.refused()
    assert server.connections == 0
    refused = [line["why"] for line in lines if line["event"] == "client refused"]
    assert len(refused) == 2
    assert "not accepted" in refused[0]
    assert not [line for line in lines if line["event"] == "upstream's certificate is for clients"]


async def test_a_client_whose_certificate_is_for_servers_alone_is_refused_in_so_many_words(
    swapped: Path,
) -> None:
    context = client_context(swapped)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server = Server({"": MemoryDisk(SIZE)})
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, listen=REQUIRE) as gateway:
            client = connected(gateway, server_credentials(swapped))
            async with client.stream:
                await start_tls(client, context)
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    await go_structured(client)  # in TLS 1.3 it learns so only now
    assert server.connections == 0
    [line] = [line for line in lines if line["event"] == "client hung up on"]
    assert "says that it is not for clients)" in line["why"]


def check_secret(sent: bytes) -> None:
    """Behind STARTTLS there is nothing but whole TLS records: type, version, length."""
    before = b"\0\0\0\3" + encode_option(Opt.STARTTLS)
    if len(sent) <= 4:
        assert sent in (b"", before[:4])
        return
    if sent == before[:4] + encode_option(Opt.ABORT):
        return
    assert sent.startswith(before)
    at = len(before)
    while at < len(sent):
        assert 20 <= sent[at] <= 23
        assert sent[at + 1] == 3
        at += 5 + int.from_bytes(sent[at + 3 : at + 5])
    assert at == len(sent)


async def test_a_server_over_tls_that_is_left_anywhere_hears_nothing_in_the_clear(
    pki: Path, credentials: ServerCredentials, autojump_clock: trio.testing.MockClock
) -> None:
    heard: set[bytes] = set()

    async def cancelled(gateway: Gateway, number: int) -> bool:
        listen, tap = gateway.service.config.listen[0], Tap()
        serve = partial(serve_client, gateway.service, listen, tls=credentials.session)

        async def connect() -> trio.SocketStream:
            return tap.connect(gateway.nursery, serve)

        async def opens() -> None:
            server = server_to("main", connect, negotiate_seconds=5)
            server.tls = [partial(session_of, pki)]
            negotiation = Negotiation(server)
            try:
                await negotiation.describe(Terms("", structured=True))
            finally:
                await negotiation.aclose()

        came_to_it = await cancelled_at(number, opens)
        with trio.fail_after(HANG_SECONDS):
            while tap.sent and not tap.end:
                await trio.sleep(0.01)
        assert tap.end in ("", "FIN"), f"at step {number}"
        heard.add(tap.sent)
        check_secret(tap.sent)
        return came_to_it

    async with gateway_before(
        Server({"": MemoryDisk(SIZE)}), listen=REQUIRE, seconds=3000
    ) as gateway:
        number = 1
        while await cancelled(gateway, number):
            number += 1
    assert len({len(sent) for sent in heard}) > 4


async def test_a_server_that_has_no_tls_hears_nothing_else(
    pki: Path, credentials: ServerCredentials
) -> None:
    async with secure_server(pki, credentials, "") as (gateway, server):
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            for ask in (client.negotiation.ask_info, client.negotiation.go):
                ask("", ())
                refused = await client.refused()
                assert refused.reply == Rep.ERR_SHUTDOWN
                assert "has no TLS" in refused.text
            client.negotiation.export_name("")
            await client.stream.send_all(client.negotiation.data_to_send())
            assert not await client.rest()
        assert server.connections == 0


async def scripted(answer: bytes, heard: bytearray, stream: trio.SocketStream) -> None:
    """A server that answers the first option with bytes of the test's, and hears the rest."""
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(encode_greeting(3))
            while len(heard) < 20:
                heard += await stream.receive_some()
            await stream.send_all(answer)
            while data := await stream.receive_some():
                heard += data


ACK = encode_option_reply(Opt.STARTTLS, Rep.ACK)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (ACK + encode_option_reply(Opt.STRUCTURED_REPLY, Rep.ACK), "in the clear behind STARTTLS"),
        (ACK[:-4] + b"\0\0\0\1x", "at STARTTLS"),
        (encode_option_reply(Opt.STARTTLS, Rep.ERR_POLICY), "has no TLS"),
        (encode_option_reply(Opt.STARTTLS, Rep.ERR_TLS_REQD), "has no TLS"),
        (ACK, "the handshake takes longer than 5 s"),
    ],
    ids=["injected", "with data", "refused", "nonsense", "silence"],
)
async def test_servers_that_do_not_go_over_to_tls(
    pki: Path, autojump_clock: trio.testing.MockClock, answer: bytes, why: str
) -> None:
    heard: list[bytearray] = []
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            heard.append(bytearray())
            nursery.start_soon(scripted, answer, heard[-1], theirs)
            return ours

        async with gateway_before(connect) as gateway:
            gateway.service.servers["main"].tls = [partial(session_of, pki)]
            client = gateway.client()
            async with client.stream:
                await client.greeting()
                client.negotiation.go("disk", ())
                refused = await client.refused()
                assert refused.reply == Rep.ERR_SHUTDOWN
                assert why in refused.text
    [said] = heard  # it is not tried again in another way
    assert said.startswith(b"\0\0\0\3" + encode_option(Opt.STARTTLS))
    assert b"disk" not in said
    assert encode_option(Opt.STRUCTURED_REPLY) not in said


async def of_tls_alone(stream: trio.SocketStream) -> None:
    """A server that answers nothing before TLS."""
    async with stream:
        core = ServerNegotiation(ServerDialect(tls=Tls.REQUIRE))
        with suppress(PeerClosed):
            assert await Conversation(stream, core).next_event() == Aborted()


async def test_what_mends_it_is_told_to_us_and_not_to_the_client() -> None:
    """A client has no URI of that server, and an operator has no use for "send STARTTLS"."""
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            nursery.start_soon(of_tls_alone, theirs)
            return ours

        with structlog.testing.capture_logs() as lines:
            async with gateway_before(connect) as gateway:
                client = gateway.client()
                async with client.stream:
                    await client.greeting()
                    client.negotiation.go("disk", ())
                    refused = await client.refused()
    assert refused.reply == Rep.ERR_POLICY
    assert (
        refused.text == "the gateway's own server wants TLS, which the gateway does not use there"
    )
    [line] = [line for line in lines if line["event"] == "client refused"]
    assert line["why"].endswith(": use nbds: in the URI of this server")
    assert line["log_level"] == "warning"


async def test_shutting_down_in_a_handshake(pki: Path, credentials: ServerCredentials) -> None:
    """Whoever comes out of it is told so."""
    async with gateway_before(Server({"": MemoryDisk(SIZE)}), listen=REQUIRE) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_starttls()
            await client.answered()
            gateway.service.drain()
            secure = trio.SSLStream(client.stream, client_context(pki), server_hostname="localhost")
            await secure.do_handshake()
            client.negotiation = client.negotiation.secured()
            client.stream = secure  # type: ignore[assignment] # as in `start_tls`
            client.negotiation.ask_info("", ())
            assert (await client.refused()).reply == Rep.ERR_SHUTDOWN
