"""A server over TLS that looks for the next request in its socket, where GnuTLS has left nothing of it:
qemu-nbd 2.6 to 2.8 (the quirk `qemu-tls-records`).
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from gateway.embedded import MemoryDisk, Server
from gateway.embedded.personality import EXPORT_NAME_ONLY, PLAIN
from gateway.tls.credentials import (
    ServerCredentials,
    client_credentials,
    server_credentials,
)
from gateway.wire.constants import Cmd, Opt, Rep
from gateway.wire.handshake import (
    CLIENT_FLAGS,
    NEWSTYLE_GREETING,
    OPTION,
    encode_greeting,
    encode_option_reply,
)
from gateway.wire.limits import MIB
from gateway.wire.transmission import REQUEST
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before
from tests.tls.handshakes import directory

SIZE = 8 * MIB
QEMU_2_8 = replace(PLAIN, name="qemu-2.8", unsupported=EXPORT_NAME_ONLY, block_sizes=None)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("joe@a.example", common_name="joe")
    return directory(tmp_path_factory.mktemp("pki"), ca, server=server, client=client)


class OldTls:
    """TLS before an embedded server, as those versions have it: from the socket comes one request at a time,
    and what else was in its record is looked at when there is something in the socket again.
    """

    def __init__(self, server: Server, credentials: ServerCredentials) -> None:
        self._server = server
        self._credentials = credentials
        self._transmits = False
        self._left = b""  # of a record, behind the request that was taken
        self._missing = 0  # of a WRITE's data

    async def serve(self, stream: trio.SocketStream) -> None:
        ours, theirs = socket_pair()
        async with stream, ours, trio.open_nursery() as nursery:
            nursery.start_soon(self._server.serve, theirs)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                await stream.send_all(encode_greeting(3))
                flags = await exactly(stream, CLIENT_FLAGS.size)
                await exactly(stream, OPTION.size)
                await stream.send_all(encode_option_reply(Opt.STARTTLS, Rep.ACK))
                await exactly(ours, NEWSTYLE_GREETING.size)
                await ours.send_all(flags)
                tls, incoming, outgoing = await self._shake_hands(stream)
                nursery.start_soon(self._send_replies, ours, tls, outgoing, stream)
                await self._take(stream, tls, incoming, ours)
            nursery.cancel_scope.cancel()

    async def _shake_hands(
        self, stream: trio.SocketStream
    ) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        received = b""
        while (session := self._credentials.session(received)) is None:
            received += await some(stream)
        incoming.write(received)
        tls = session.wrap(incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await stream.send_all(outgoing.read())
                incoming.write(await some(stream))
        await stream.send_all(outgoing.read())
        return tls, incoming, outgoing

    async def _take(
        self,
        stream: trio.SocketStream,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        ours: trio.SocketStream,
    ) -> None:
        while True:
            try:
                record = tls.read(1 << 14)  # which gives no more than one
            except ssl.SSLWantReadError:
                incoming.write(await some(stream))
                continue
            await ours.send_all(self._first_of(self._left + record))

    def _first_of(self, data: bytes) -> bytes:
        """Take the first request of these bytes; what is behind it is left."""
        if not self._transmits:
            _magic, option, _length = OPTION.unpack_from(data)
            self._transmits = option == Opt.EXPORT_NAME
            return data
        if not self._missing:
            if len(data) < REQUEST.size:
                self._left = data
                return b""
            _magic, word, _cookie, _offset, length = REQUEST.unpack_from(data)
            self._missing = REQUEST.size + (length if word & 0xFFFF == Cmd.WRITE else 0)
        taken = data[: self._missing]
        self._missing -= len(taken)
        self._left = data[len(taken) :]
        return taken

    async def _send_replies(
        self,
        ours: trio.SocketStream,
        tls: ssl.SSLObject,
        outgoing: ssl.MemoryBIO,
        stream: trio.SocketStream,
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            while True:
                tls.write(await some(ours))
                await stream.send_all(outgoing.read())


async def some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise EOFError
    return bytes(data)


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


@asynccontextmanager
async def before(pki: Path, disk: MemoryDisk, quirks: str = "") -> AsyncIterator[Gateway]:
    """A gateway before one, which can be reached over TLS alone."""
    credentials = server_credentials(pki)
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            old = OldTls(Server({"": disk}, QEMU_2_8), credentials)
            nursery.start_soon(old.serve, theirs)
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
