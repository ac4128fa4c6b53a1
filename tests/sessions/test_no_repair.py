"""A quirk that does not apply changes not one byte that the server gets, and nothing that the client is told.

What clients may ask is drawn, servers without oddities are ours; each conversation is had twice, with quirks
recognised and with none allowed. The server's option phase is left out: INFO is asked there to find out. Of the
client's replies only their cuts into chunks are left out, which are a matter of timing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.embedded.personality import (
    EXPORT_NAME_ONLY,
    WITHOUT_EXTENDED_HEADERS,
    WITHOUT_STRUCTURED_REPLIES,
    lacking,
)
from gateway.wire.constants import (
    BASE_ALLOCATION,
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Cmd,
    CmdFlag,
    Opt,
)
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import KIB, MIB
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import gateway_before

SIZE = 8 * MIB
PLAIN = PERSONALITIES["plain"]
SOUND = {
    "all there is": PLAIN,
    "structured": replace(PLAIN, unsupported=WITHOUT_EXTENDED_HEADERS),
    "simple": replace(PLAIN, unsupported=WITHOUT_STRUCTURED_REPLIES),
    "without MULTI_CONN and CACHE": replace(
        PLAIN, flags=lacking(Flag.CAN_MULTI_CONN, Flag.SEND_CACHE)
    ),
    "EXPORT_NAME without TRIM": replace(
        PLAIN, unsupported=EXPORT_NAME_ONLY, flags=lacking(Flag.SEND_TRIM)
    ),
}

COMMANDS = [Cmd.READ, Cmd.WRITE, Cmd.FLUSH, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS]
ASKED = st.tuples(
    st.sampled_from(COMMANDS),
    st.sampled_from([0, CmdFlag.FUA, CmdFlag.DF, CmdFlag.NO_HOLE, CmdFlag.REQ_ONE]),
    st.integers(0, SIZE // 512).map(lambda block: block * 512),
    st.sampled_from([0, 512, 4096, 64 * KIB, MIB, 3 * MIB + 512]),
)
Asked = tuple[Cmd, int, int, int]


@dataclass
class Heard:
    """Everything that two ends got of each other."""

    by_server: bytearray = field(default_factory=bytearray)
    by_client: list[object] = field(default_factory=list)

    @property
    def commands(self) -> bytes:
        """What the server got behind its option phase."""
        data = bytes(self.by_server)
        magics = (REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC)
        starts = [at for magic in magics if (at := data.find(magic.to_bytes(4))) >= 0]
        return data[min(starts) :] if starts else b""


async def heard_between(
    gateway: trio.SocketStream, server: trio.SocketStream, by_server: bytearray
) -> None:
    async def copied(source: trio.SocketStream, to: trio.SocketStream, into: bytearray) -> None:
        async for data in source:
            into += data
            await to.send_all(data)
        await to.send_eof()

    async with gateway, server, trio.open_nursery() as nursery:
        nursery.start_soon(copied, gateway, server, by_server)
        nursery.start_soon(copied, server, gateway, bytearray())


async def told(client: Client, asked: Asked, fill: int) -> object:
    """What a reply says, however it is cut into chunks."""
    command, flags, offset, length = asked
    data = bytes([fill]) * length if command == Cmd.WRITE else b""
    cookie = await client.send(command, offset, length, flags=flags, data=data)
    magic = await client.receive(4)
    client.unread(magic)
    if int.from_bytes(magic) == SIMPLE_REPLY_MAGIC:
        return await client.simple_reply()
    chunks = await client.reply(cookie)
    if command == Cmd.READ and not chunks[-1].kind & 0x8000:
        content = bytearray(length)
        for chunk in chunks:
            if chunk.kind == Chunk.OFFSET_DATA:
                content[chunk.offset - offset : chunk.offset - offset + len(chunk.data)] = (
                    chunk.data
                )
        return bytes(content)
    return [(chunk.kind, chunk.payload) for chunk in chunks]


async def conversation(
    personality: Personality, asked: list[Asked], client_speaks: str, quirks: str
) -> Heard:
    heard = Heard()
    server = Server({"": MemoryDisk(SIZE)}, personality)
    has_contexts = Opt.SET_META_CONTEXT not in personality.unsupported
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            ours, ours_far = socket_pair()
            theirs_far, theirs = socket_pair()
            nursery.start_soon(heard_between, ours_far, theirs_far, heard.by_server)
            nursery.start_soon(server.serve, theirs)
            return ours

        async with gateway_before(connect, upstream=quirks) as gateway:
            client = gateway.client()
            async with client.stream:
                await client.go(
                    structured=client_speaks == "structured",
                    extended=client_speaks == "extended",
                    contexts=[BASE_ALLOCATION]
                    if has_contexts and client_speaks != "simple"
                    else [],
                )
                for number, each in enumerate(asked, start=1):
                    heard.by_client.append(await told(client, each, number))
                await client.send(Cmd.DISC)
                await client.rest()
    return heard


@pytest.mark.parametrize("client_speaks", ["simple", "structured", "extended"])
@pytest.mark.parametrize("personality", SOUND.values(), ids=SOUND)
@settings(max_examples=10, deadline=None)
@given(asked=st.lists(ASKED, max_size=12))
def test_sound_servers_are_left_alone(
    personality: Personality, client_speaks: str, asked: list[Asked]
) -> None:
    without = trio.run(conversation, personality, asked, client_speaks, "quirks = []")
    with_all = trio.run(conversation, personality, asked, client_speaks, "")
    assert with_all.commands == without.commands
    assert with_all.by_client == without.by_client
