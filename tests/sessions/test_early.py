"""Servers that answer a WRITE before they have had its data: sessions live, and nobody is told too soon."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Request, Server
from gateway.protocol.export import Export, Offer, offer, view_of
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import SIMPLE
from gateway.wire.limits import KIB, MIB
from gateway.wire.transmission import SIMPLE_REPLY, encode_request, encode_simple_reply
from tests.embedded.peers import Client
from tests.hub.wires import Wires
from tests.sessions.gateways import Gateway, gateway_before
from tests.sessions.survivors import Survivor

SIZE = 4 * MIB
OFFSET = 64 * KIB
DATA = bytes(range(256)) * KIB
HALF = len(DATA) // 2
HEAD = encode_request(Cmd.WRITE, 0, 900, OFFSET, len(DATA))
AT_ONCE = DATA[: 64 * KIB]
"""So much that one receive takes all of it."""
TINY = 4 * KIB
"""So much that it takes several sends."""


def whole(flags: int = 0) -> bytes:
    """A WRITE that is here at once, and is sent in several pieces."""
    return encode_request(Cmd.WRITE, flags, 900, OFFSET, len(AT_ONCE)) + AT_ONCE


# --- On socket pairs: what is told when, and what the link's death, or the client's, makes of it


class World:
    """One session with a simple link; `far` is the server's end of that."""

    def __init__(self, *, survives: bool, translated: str = "", sends_at_a_time: int = 0) -> None:
        flags = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA
        export = Export(SIZE, int(flags), None)
        promised: Offer = offer(view_of(export), structured=False)
        self.survivor: Survivor | None = None
        if survives:
            self.survivor = Survivor(promised, export, translated=translated)
            self.wires = self.survivor.wires
        else:
            self.wires = Wires(Traffic(plan(promised, export, translated=translated)))
        self.session = self.wires.session
        self.client = self.wires.client
        if sends_at_a_time:
            link = self.wires._near[1]
            assert isinstance(link, socket.socket)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sends_at_a_time)
        self.session.begin()

    @property
    def far(self) -> socket.socket:
        return self.wires.upstream

    def settle(self) -> None:
        """Go on until there is nothing to do."""
        while self.wires.step():
            pass

    def send(self, data: bytes) -> None:
        """The client sends, as fast as it is read."""
        while data:
            with suppress(BlockingIOError):
                data = data[self.client.send(data) :]
            self.settle()

    def says(self, error: int, cookie: int = 1) -> None:
        """The server answers."""
        self.far.send(encode_simple_reply(cookie, error))
        self.settle()

    def told(self) -> list[tuple[int, int]]:
        """What the client has been told: (cookie, error)."""
        try:
            said = self.client.recv(MIB)
        except BlockingIOError:
            return []
        return [(cookie, error) for _magic, error, cookie in SIMPLE_REPLY.iter_unpack(said)]

    def taken(self) -> bytes:
        """What the server can read now, or as soon as it has read the rest."""
        data = b""
        with suppress(BlockingIOError):
            while piece := self.far.recv(MIB):
                data += piece
                self.settle()
        return data

    def close(self) -> None:
        assert self.session.bug is None
        (self.survivor or self.wires).close()

    def comes_back(self, *, sends_at_a_time: int = 0) -> None:
        """The server is there again."""
        assert self.survivor is not None
        self.survivor.connect()
        if sends_at_a_time:
            [wire] = self.survivor._bundle_wires._wires.values()
            assert isinstance(wire.socket, socket.socket)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sends_at_a_time)
        self.settle()

    def serve(self, content: bytearray) -> None:
        """Carry out and answer what is asked, until nothing is."""
        received = b""
        while data := self.taken():
            received += data
            while len(received) >= 28:
                _magic, word, cookie, at, length = SIMPLE.request.unpack_from(received)
                behind = 28 + (length if word & 0xFFFF == Cmd.WRITE else 0)
                if len(received) < behind:
                    break
                reply = encode_simple_reply(cookie, 0)
                if word & 0xFFFF == Cmd.READ:
                    reply += content[at : at + length]
                elif word & 0xFFFF == Cmd.WRITE:
                    content[at : at + length] = received[28:behind]
                received = received[behind:]
                while reply:
                    with suppress(BlockingIOError):
                        reply = reply[self.far.send(reply) :]
                    self.settle()


@pytest.fixture
def worlds() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**settings: object) -> World:
        made.append(World(**settings))  # type: ignore[arg-type] # as the test has them
        return made[-1]

    yield make
    for each in made:
        each.close()


Worlds = Callable[..., World]
both = pytest.mark.parametrize("survives", [True, False], ids=["survives", "ends with its link"])
answers = pytest.mark.parametrize("error", [0, Errno.ENOSPC])


@both
@answers
def test_the_reply_comes_when_the_data_has_gone(worlds: Worlds, survives: bool, error: int) -> None:
    world = worlds(survives=survives)
    world.send(HEAD + DATA[:HALF])
    world.says(error)
    assert not world.told()
    taken = world.taken()
    world.send(DATA[HALF:])
    assert taken + world.taken() == encode_request(Cmd.WRITE, 0, 1, OFFSET, len(DATA)) + DATA
    assert world.told() == [(900, error)]
    world.send(encode_request(Cmd.FLUSH, 0, 901, 0, 0))
    world.says(0, cookie=2)
    assert world.told() == [(901, 0)]


@both
@pytest.mark.parametrize("translated", ["", "all are jobs"], ids=["fast", "jobs"])
def test_a_success_waits_until_the_kernel_has_the_data(
    worlds: Worlds, survives: bool, translated: str
) -> None:
    world = worlds(survives=survives, translated=translated, sends_at_a_time=TINY)
    world.send(whole())
    world.says(0)
    assert not world.told()
    assert world.taken().endswith(AT_ONCE)
    assert world.told() == [(900, 0)]


@pytest.mark.parametrize("dies", [False, True])
def test_a_success_waits_until_the_kernel_has_the_data_of_a_bundle(
    worlds: Worlds, dies: bool
) -> None:
    world = worlds(survives=True)
    world.far.close()
    world.settle()
    world.comes_back(sends_at_a_time=TINY)
    world.send(whole(CmdFlag.FUA))
    world.says(0)
    assert not world.told()
    content = bytearray(SIZE)
    if dies:
        world.far.close()
        world.settle()
        world.comes_back()
        world.serve(content)
        assert content[OFFSET : OFFSET + len(AT_ONCE)] == AT_ONCE
    else:
        assert world.taken().endswith(AT_ONCE)
    assert world.told() == [(900, 0)]


@answers
def test_a_link_that_dies_before_the_data_is_whole(worlds: Worlds, error: int) -> None:
    """A success was none, and the WRITE is asked again; a refusal is passed on."""
    world = worlds(survives=True)
    world.send(HEAD + DATA[:HALF])
    world.says(error)
    world.taken()
    world.far.close()
    world.settle()
    world.comes_back()
    assert not world.told()
    world.send(DATA[HALF:])
    content = bytearray(SIZE)
    world.serve(content)
    assert world.told() == [(900, error)]
    assert content[OFFSET : OFFSET + len(DATA)] == (bytes(len(DATA)) if error else DATA)
    world.send(encode_request(Cmd.FLUSH, 0, 901, 0, 0))
    world.serve(content)
    assert world.told() == [(901, 0)]


@pytest.mark.parametrize("flags", [0, CmdFlag.FUA])
@pytest.mark.parametrize("translated", ["", "all are jobs"], ids=["fast", "jobs"])
def test_a_link_that_dies_before_the_kernel_has_the_data(
    worlds: Worlds, flags: int, translated: str
) -> None:
    world = worlds(survives=True, translated=translated, sends_at_a_time=TINY)
    world.send(whole(flags))
    world.says(0)
    world.far.close()
    world.settle()
    assert not world.told()
    world.comes_back()
    content = bytearray(SIZE)
    world.serve(content)
    assert world.told() == [(900, 0)]
    assert content[OFFSET : OFFSET + len(AT_ONCE)] == AT_ONCE


def test_a_success_that_is_read_after_the_link_takes_no_more_is_none(worlds: Worlds) -> None:
    """What could not be sent is dropped, and looks like sent from then on."""
    world = worlds(survives=True, sends_at_a_time=TINY)
    world.send(whole())
    world.far.send(encode_simple_reply(1, 0))
    world.far.shutdown(socket.SHUT_RD)
    world.session._send_requests()
    assert world.session._link_mute
    world.settle()
    assert not world.told()
    world.far.close()
    world.settle()
    world.comes_back()
    content = bytearray(SIZE)
    world.serve(content)
    assert world.told() == [(900, 0)]
    assert content[OFFSET : OFFSET + len(AT_ONCE)] == AT_ONCE


@answers
def test_a_link_that_dies_where_nothing_survives(worlds: Worlds, error: int) -> None:
    world = worlds(survives=False)
    world.send(HEAD + DATA[:HALF])
    world.says(error)
    world.taken()
    world.far.close()
    world.settle()
    assert world.told() == [(900, error or Errno.EIO)]
    assert world.session.ended.is_set()


@both
@answers
def test_a_client_that_vanishes_before_its_data_is_whole(
    worlds: Worlds, survives: bool, error: int
) -> None:
    """The server sees the end of what it reads, closes, and the session ends."""
    world = worlds(survives=survives)
    world.send(HEAD + DATA[:HALF])
    world.says(error)
    world.client.close()
    world.settle()
    assert len(world.taken()) == 28 + HALF
    assert not world.far.recv(1)
    assert not world.session.ended.is_set()
    world.far.close()
    world.settle()
    assert world.session.ended.is_set()


@both
def test_a_second_reply_costs_the_link(worlds: Worlds, survives: bool) -> None:
    world = worlds(survives=survives)
    world.send(HEAD + DATA[:HALF])
    world.says(0)
    world.says(0)
    if not survives:
        assert "a second reply to a WRITE" in world.session.reason
        assert world.told() == [(900, Errno.EIO)]
        return
    world.comes_back()
    world.send(DATA[HALF:])
    content = bytearray(SIZE)
    world.serve(content)
    assert world.told() == [(900, 0)]
    assert content[OFFSET : OFFSET + len(DATA)] == DATA


# --- Through a gateway, however its connections are made


SIMPLE_ONLY = PERSONALITIES["nbd-server-3.24"]
PLAIN = PERSONALITIES["plain"]
MODES = {
    "own": "",
    "ends with its link": "reconnect-seconds = 0",
    "shared": 'connections = "shared"',
    "4": "connections = 4",
    "shared:4": 'connections = "shared:4"',
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
personalities = pytest.mark.parametrize("personality", [PLAIN, SIMPLE_ONLY], ids=lambda p: p.name)
CLIENTS = {"simple": (False, False), "structured": (True, False), "extended": (True, True)}
clients = pytest.mark.parametrize(("structured", "extended"), CLIENTS.values(), ids=CLIENTS)


async def opened(gateway: Gateway, *, structured: bool, extended: bool = False) -> Client:
    client = gateway.client()
    await client.go(structured=structured, extended=extended)
    return client


async def error_of(client: Client, cookie: int) -> int:
    if not client.negotiation.structured:
        found, error, _data = await client.simple_reply()
        assert found == cookie
        return error
    magic = await client.receive(4)
    client.unread(magic)
    if int.from_bytes(magic) == 0x67446698:
        return (await client.simple_reply())[1]
    *_, last = await client.reply(cookie)
    return last.error if last.kind & 0x8000 else 0


async def half(client: Client, data: bytes) -> int:
    """Send the header of a WRITE and half of its data; give its cookie."""
    flags = CmdFlag.PAYLOAD_LEN if client.negotiation.extended else 0
    head = client.framing.encode_request(Cmd.WRITE, flags, 900, OFFSET, len(data))
    await client.stream.send_all(head + data[: len(data) // 2])
    return 900


@modes
@personalities
@clients
@answers
async def test_a_session_goes_on_and_others_never_notice(
    mode: str,
    personality: Personality,
    structured: bool,
    extended: bool,
    error: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    faults = Faults(answer_early=lambda request: error if request.length == len(DATA) else None)
    server = Server({"": MemoryDisk(SIZE)}, personality, faults=faults)
    async with gateway_before(server, upstream=mode) as gateway:
        one = await opened(gateway, structured=structured, extended=extended)
        other = await opened(gateway, structured=False)
        async with one.stream, other.stream:
            for _ in range(2):
                cookie = await half(one, DATA)
                await trio.testing.wait_all_tasks_blocked()
                await other.send(Cmd.WRITE, 0, data=DATA[:512])
                assert (await other.simple_reply())[1] == 0
                await one.stream.send_all(DATA[HALF:])
                assert await error_of(one, cookie) == error
            cookie = await one.send(Cmd.FLUSH)
            assert await error_of(one, cookie) == 0
            _cookie, failed, data = await other.simple_reply_to(Cmd.READ, OFFSET, len(DATA))
            assert (failed, data) == (0, bytes(len(DATA)) if error else DATA)


@modes
@personalities
async def test_a_server_that_answers_twice_loses_connections_and_no_client(
    mode: str, personality: Personality, autojump_clock: trio.testing.MockClock
) -> None:
    def twice(request: Request, reply: list[bytes]) -> list[bytes]:
        large = request.command == Cmd.WRITE and request.length == len(DATA)
        return reply * 2 if large else reply

    def early(request: Request) -> int | None:
        return 0 if request.length == len(DATA) else None

    server = Server(
        {"": MemoryDisk(SIZE)}, personality, faults=Faults(answer_early=early, on_reply=twice)
    )
    async with gateway_before(server, upstream=mode, seconds=3000) as gateway:
        one = await opened(gateway, structured=False)
        other = await opened(gateway, structured=False)
        async with one.stream, other.stream:
            cookie = await half(one, DATA)
            await trio.testing.wait_all_tasks_blocked()
            if mode != "reconnect-seconds = 0":
                await one.stream.send_all(DATA[HALF:])
                await error_of(one, cookie)
                await one.send(Cmd.FLUSH)
                await one.simple_reply()  # says what became of it
                assert (await one.simple_reply_to(Cmd.READ, 0, 512))[1] == 0
            else:  # the link was the session's
                assert await error_of(one, cookie) == Errno.EIO
                assert not await one.stream.receive_some()
            await other.send(Cmd.FLUSH)
            await other.simple_reply()
            assert (await other.simple_reply_to(Cmd.READ, 0, 512))[1] == 0


async def test_our_own_refusal_waits_for_the_data() -> None:
    server = Server({"": MemoryDisk(SIZE)})
    async with gateway_before(server, export="read-only = true") as gateway:
        client = await opened(gateway, structured=True)
        async with client.stream:
            cookie = await half(client, DATA)
            read = await client.send(Cmd.READ, 0, 512)  # that is data of the WRITE, for all we know
            said = encode_request(Cmd.READ, 0, read, 0, 512)
            await client.stream.send_all(DATA[HALF + len(said) :])
            assert await error_of(client, cookie) == Errno.EPERM
            assert len(await client.read(0, 512)) == 512
