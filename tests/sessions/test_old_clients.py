"""Listeners for old clients: the oldstyle greeting, and newstyle ones that offer less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import structlog
import trio

from gateway.embedded import Faults, MemoryDisk, Server
from gateway.net.dial import DialError
from gateway.wire import limits
from gateway.wire.constants import (
    IHAVEOPT,
    NBDMAGIC,
    OLDSTYLE_MAGIC,
    Cmd,
    CmdFlag,
    Errno,
    HandshakeFlag,
    Opt,
    TransmissionFlag,
)
from gateway.wire.handshake import CLIENT_FLAGS, encode_option
from gateway.wire.transmission import DISC
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before

SIZE = 8 * limits.MIB
OLDSTYLE = 'style = "oldstyle"'
DATA = bytes(range(256)) * 16


def server(*, read_only: bool = False, cut_after_bytes: int | None = None) -> Server:
    disks = {"": MemoryDisk(SIZE, read_only=read_only), "b": MemoryDisk(2 * SIZE)}
    return Server(disks, faults=Faults(cut_after_bytes=cut_after_bytes))


# --- Oldstyle


async def oldstyle_greeting(client: Client) -> tuple[int, int]:
    """The size and the flags of all the bytes that an oldstyle client is told."""
    greeting = await client.receive(152)
    assert greeting[:16] == NBDMAGIC.to_bytes(8) + OLDSTYLE_MAGIC.to_bytes(8)
    assert greeting[24:26] == bytes(2)  # handshake flags
    assert greeting[28:] == bytes(124)
    return int.from_bytes(greeting[16:24]), int.from_bytes(greeting[26:28])


async def test_an_oldstyle_client_is_greeted_with_its_export_and_served() -> None:
    # The time of the negotiation is not for those who have nothing to say.
    async with gateway_before(server(), listen=OLDSTYLE, handshake_seconds=1e-9) as gateway:
        client = gateway.client()
        async with client.stream:
            size, flags = await oldstyle_greeting(client)
            assert size == SIZE
            assert flags & TransmissionFlag.HAS_FLAGS
            assert not flags & TransmissionFlag.SEND_DF  # it has no structured replies
            await client.send(Cmd.WRITE, 4096, data=DATA)
            assert await client.simple_reply() == (1, 0, b"")
            await client.send(Cmd.FLUSH, flags=CmdFlag.FUA)  # as qemu up to 2.5 does
            assert await client.simple_reply() == (2, 0, b"")
            await client.send(Cmd.READ, 4096, len(DATA))
            assert await client.simple_reply() == (3, 0, DATA)
            await client.send(Cmd.READ, SIZE, 512)
            assert await client.simple_reply() == (4, Errno.EINVAL, b"")
            await client.stream.send_all(DISC)
            assert await client.rest() == b""


async def test_requests_that_come_before_the_greeting_are_served_after_it() -> None:
    async with gateway_before(server(), listen=OLDSTYLE) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.send(Cmd.READ, 0, 512)
            await oldstyle_greeting(client)
            assert await client.simple_reply() == (1, 0, bytes(512))


async def test_an_oldstyle_client_gets_the_export_that_its_listener_names() -> None:
    async with gateway_before(server(), listen=f'{OLDSTYLE}\nexport = "b"') as gateway:
        client = gateway.client()
        async with client.stream:
            assert (await oldstyle_greeting(client))[0] == 2 * SIZE


async def test_an_oldstyle_client_is_told_what_is_read_only() -> None:
    async with gateway_before(server(read_only=True), listen=OLDSTYLE) as gateway:
        client = gateway.client()
        async with client.stream:
            _size, flags = await oldstyle_greeting(client)
            assert flags & TransmissionFlag.READ_ONLY
            assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES)


def nobody() -> trio.SocketStream:
    raise DialError("nobody is there")


@pytest.mark.parametrize(
    ("upstream", "export", "why"),
    [
        pytest.param(nobody, "", "nobody is there", id="cannot be reached"),
        pytest.param(server(cut_after_bytes=5), "", "closed", id="closes"),
        pytest.param(server(), "c", "ERR_UNKNOWN", id="does not have it"),
    ],
)
async def test_what_cannot_be_opened_is_closed_and_logged(
    upstream: Server | Callable[[], trio.SocketStream], export: str, why: str
) -> None:
    listen = f'{OLDSTYLE}\nexport = "{export}"'
    with structlog.testing.capture_logs() as said:
        async with gateway_before(upstream, listen=listen) as gateway:
            client = gateway.client()
            async with client.stream:
                assert await client.rest() == b""
    [line] = [line for line in said if line["event"] == "client hung up on"]
    assert f"export '{export}' cannot be opened" in line["why"]
    assert why in line["why"]


async def test_an_oldstyle_client_that_leaves_while_the_upstream_is_asked_is_let_go() -> None:
    called = trio.Event()
    ends: list[trio.SocketStream] = []

    def silent() -> trio.SocketStream:
        ours, theirs = socket_pair()
        ends.append(theirs)
        called.set()
        return ours

    async with gateway_before(silent, listen=OLDSTYLE, negotiate_seconds=1000) as gateway:
        client = gateway.client()
        await called.wait()
        await client.stream.aclose()
        assert await ends[0].receive_some() == b""  # nor does it keep a connection to the upstream
    await ends[0].aclose()


async def test_an_oldstyle_client_that_has_gone_when_it_is_to_be_greeted_costs_nothing() -> None:
    called, greets = trio.Event(), trio.Event()
    async with trio.open_nursery() as upstreams:

        async def serve(stream: trio.SocketStream) -> None:
            await greets.wait()
            await server().serve(stream)  # until the gateway leaves

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            upstreams.start_soon(serve, theirs)
            called.set()
            return ours

        async with gateway_before(connect, listen=OLDSTYLE) as gateway:
            client = gateway.client()
            await client.send(Cmd.READ, 0, 512)  # which hides from the gateway that it has gone
            await called.wait()
            await client.stream.aclose()
            greets.set()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_no_oldstyle_client_is_greeted_while_shutting_down(when: str) -> None:
    gateways: list[Gateway] = []
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            nursery.start_soon(server().serve, theirs)
            assert when == "meanwhile", "asked for nothing"
            gateways[0].service.drain()
            return ours

        async with gateway_before(connect, listen=OLDSTYLE) as gateway:
            gateways.append(gateway)
            if when == "before":
                gateway.service.drain()
            client = gateway.client()
            async with client.stream:
                assert await client.rest() == b""


async def test_an_oldstyle_session_ends_with_the_gateway() -> None:
    async with gateway_before(server(), listen=OLDSTYLE) as gateway:
        client = gateway.client()
        async with client.stream:
            await oldstyle_greeting(client)
            gateway.service.drain()
            assert await client.rest() == b""


# --- Handshake flags

OFFERS = {
    '["FIXED_NEWSTYLE", "NO_ZEROES"]': HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES,
    '["FIXED_NEWSTYLE"]': HandshakeFlag.FIXED_NEWSTYLE,
    '["NO_ZEROES"]': HandshakeFlag.NO_ZEROES,
    "[]": HandshakeFlag(0),
}


async def greeted(client: Client) -> int:
    """The handshake flags of the greeting."""
    greeting = await client.receive(18)
    assert greeting[:16] == NBDMAGIC.to_bytes(8) + IHAVEOPT.to_bytes(8)
    return int.from_bytes(greeting[16:])


@pytest.mark.parametrize(("written", "offered"), OFFERS.items())
@pytest.mark.parametrize("said", range(4))
async def test_a_greeting_offers_what_it_should_and_means_it(
    written: str, offered: HandshakeFlag, said: int
) -> None:
    """All that proto.md says of the two flags, for clients that say any of them."""
    async with gateway_before(server(), listen=f"handshake-flags = {written}") as gateway:
        client = gateway.client()
        async with client.stream:
            assert await greeted(client) == offered
            await client.stream.send_all(
                CLIENT_FLAGS.pack(said) + encode_option(Opt.EXPORT_NAME, b"b")
            )
            if said & ~int(offered):  # "MUST NOT be set unless offered"
                assert await client.rest() == b""
                return
            reply = await client.receive(10)
            assert int.from_bytes(reply[:8]) == 2 * SIZE
            zeroes = 0 if said & HandshakeFlag.NO_ZEROES else 124
            assert await client.receive(zeroes) == bytes(zeroes)
            await client.send(Cmd.READ, 0, 512)
            assert await client.simple_reply() == (1, 0, bytes(512))


@pytest.mark.parametrize("option", [Opt.LIST, Opt.GO, Opt.STRUCTURED_REPLY, Opt.ABORT])
async def test_without_fixed_newstyle_only_export_name_is_served(option: Opt) -> None:
    async with gateway_before(server(), listen='handshake-flags = ["NO_ZEROES"]') as gateway:
        client = gateway.client()
        async with client.stream:
            await greeted(client)
            await client.stream.send_all(
                CLIENT_FLAGS.pack(HandshakeFlag.NO_ZEROES) + encode_option(option)
            )
            assert await client.rest() == b""


async def test_nbd_client_of_2014_sees_a_writable_device() -> None:
    """nbd-client 3.1 to 3.8 takes the flags of the greeting for some of the export's (Q-L1)."""
    async with gateway_before(server(), listen='handshake-flags = ["FIXED_NEWSTYLE"]') as gateway:
        client = gateway.client()
        async with client.stream:
            flags = await greeted(client)
            await client.stream.send_all(
                CLIENT_FLAGS.pack(HandshakeFlag.FIXED_NEWSTYLE) + encode_option(Opt.EXPORT_NAME)
            )
            flags |= int.from_bytes((await client.receive(10 + 124))[8:10])
            assert not flags & TransmissionFlag.READ_ONLY


async def test_an_oldstyle_client_that_begins_with_tls() -> None:
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server(), listen=OLDSTYLE) as gateway:
            gateway.service.log = structlog.get_logger()
            client = gateway.client()
            async with client.stream:
                await oldstyle_greeting(client)
                await client.stream.send_all(b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(100))
                assert not await client.rest()
    [ended] = [line for line in lines if line["event"] == "session ended"]
    assert "this is TLS without NBD" in ended["why"]
