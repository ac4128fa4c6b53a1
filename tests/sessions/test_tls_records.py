"""A server over TLS that looks for the next request in its socket, where GnuTLS has left nothing of it:
qemu-nbd 2.6 to 2.8 (the quirk `qemu-tls-records`), as `legacy:qemu-2.8` does it.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.tls.credentials import client_credentials, server_credentials
from gateway.wire.constants import Cmd
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before
from tests.tls.handshakes import directory

SIZE = 8 * MIB
QEMU_2_8 = PERSONALITIES["qemu-2.8"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("joe@a.example", common_name="joe")
    return directory(tmp_path_factory.mktemp("pki"), ca, server=server, client=client)


@asynccontextmanager
async def before(
    pki: Path, disk: MemoryDisk, quirks: str = "", personality: Personality = QEMU_2_8
) -> AsyncIterator[Gateway]:
    """A gateway before one, which can be reached over TLS alone."""
    server = Server({"": disk}, personality, tls=server_credentials(pki).session)
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            nursery.start_soon(server.serve, theirs)
            return ours

        async with gateway_before(connect, upstream=quirks, seconds=300) as gateway:
            session = partial(client_credentials, pki, hostname="localhost")
            gateway.service.servers["main"].tls = [lambda: session().session()]
            yield gateway
        nursery.cancel_scope.cancel()


async def ask_many(client: Client) -> None:
    """Requests that come in one piece, with data and without."""
    data = [bytes([number + 1]) * 512 for number in range(20)]
    sent = [
        struct.pack(">IIQQI", 0x25609513, Cmd.WRITE, number, 512 * number, 512) + data[number]
        for number in range(20)
    ]
    sent += [
        struct.pack(">IIQQI", 0x25609513, Cmd.FLUSH, 20, 0, 0),
        *(struct.pack(">IIQQI", 0x25609513, Cmd.READ, 30 + n, 512 * n, 512) for n in range(20)),
    ]
    await client.stream.send_all(b"".join(sent[:21]))
    answered = {}
    for _ in range(21):
        _magic, error, cookie = struct.unpack(">IIQ", await client.receive(16))
        answered[cookie] = error
    assert answered == dict.fromkeys(range(21), 0)
    await client.stream.send_all(b"".join(sent[21:]))
    for _ in range(20):
        _magic, error, cookie = struct.unpack(">IIQ", await client.receive(16))
        assert not error
        assert await client.receive(512) == data[cookie - 30]


async def test_each_request_goes_in_a_record_of_its_own(
    pki: Path, autojump_clock: trio.testing.MockClock
) -> None:
    disk = MemoryDisk(SIZE)
    async with before(pki, disk) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(structured=False)
            await ask_many(client)
            long = bytes(range(256)) * 4096  # of several records
            await client.send(Cmd.WRITE, 4096, data=long)
            assert (await client.simple_reply())[1] == 0
    assert bytes(await disk.read(4096, len(long))) == long


async def test_without_the_quirk_requests_are_left_lying(
    pki: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with before(pki, MemoryDisk(SIZE), "quirks = []") as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(structured=False)
            with pytest.raises(trio.TooSlowError), trio.fail_after(20):
                await ask_many(client)


async def test_another_server_without_info_answers_them_all(
    pki: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """So it is the personality that leaves them, and nothing else of TLS."""
    other = replace(QEMU_2_8, one_request_a_record=False)
    async with before(pki, MemoryDisk(SIZE), "quirks = []", other) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(structured=False)
            await ask_many(client)
