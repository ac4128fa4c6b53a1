"""Sessions on real sockets: peers that cut, stall, lie, half-close and never read."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Request, Server
from gateway.embedded.personality import WITHOUT_STRUCTURED_REPLIES
from gateway.hub.ending import LOST_SECONDS
from gateway.hub.hold_ups import LOOK_FOR_HOLD_UPS_SECONDS
from gateway.hub.lane import BUFFER_BYTES, MAP_BYTES, Scan
from gateway.hub.pump import VARIABLE
from gateway.links.fencing import LOOK_FOR_ENDS_SECONDS
from gateway.net.dial import DialError
from gateway.net.options import RelaySocket
from gateway.protocol.client_role import ClientNegotiation, Refused
from gateway.protocol.export import Export, offer, view_of
from gateway.scan import chunks, replies, requests, turn
from gateway.scan.plan import plan
from gateway.scan.requests import MAX_ANSWERS
from gateway.scan.traffic import MAX_IN_FLIGHT, Traffic
from gateway.wire import limits
from gateway.wire.constants import (
    BASE_ALLOCATION,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Cmd,
    Errno,
    Info,
    Opt,
    Rep,
)
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import STRUCTURED, Goodbye
from gateway.wire.handshake import CLIENT_FLAGS, OPTION, BlockSizes, MetaContext, encode_option
from gateway.wire.transmission import (
    DISC,
    SIMPLE_REPLY,
    encode_request,
    encode_simple_reply,
    is_error,
)
from tests.embedded.peers import Client, socket_pair
from tests.hub.wires import Wires
from tests.sessions.gateways import ENDS_WITH_ITS_LINK, Gateway, gateway_before
from tests.tools.defaults import SURVIVAL
from tests.tools.patience import HANG_SECONDS

PLAIN = PERSONALITIES["plain"]
SIMPLE = replace(PLAIN, unsupported=PLAIN.unsupported | WITHOUT_STRUCTURED_REPLIES)
SIZE = 8 * limits.MIB
DATA = bytes(range(256)) * 16
NO_FAULTS = Faults()


def server(personality: Personality = PLAIN, faults: Faults = NO_FAULTS) -> Server:
    return Server({"": MemoryDisk(SIZE)}, personality, faults=faults)


async def answer(client: Client, cookie: int, length: int) -> tuple[int, bytes]:
    """The error and the data of the next reply, in whichever framing it comes."""
    head = await client.receive(16)
    if int.from_bytes(head[:4]) == SIMPLE_REPLY_MAGIC:
        assert int.from_bytes(head[8:]) == cookie
        error = int.from_bytes(head[4:8])
        return error, b"" if error else await client.receive(length)
    data, error, done = bytearray(length), 0, False
    while not done:
        assert int.from_bytes(head[8:16]) == cookie
        kind, done = int.from_bytes(head[6:8]), bool(head[5] & 1)
        payload = await client.receive(int.from_bytes(await client.receive(4)))
        if is_error(kind):
            error = int.from_bytes(payload[:4])
        elif kind == Chunk.OFFSET_DATA:
            at = int.from_bytes(payload[:8]) % 4096
            data[at : at + len(payload) - 8] = payload[8:]
        if not done:
            head = await client.receive(16)
    return error, bytes(data)


# --- The upstream drops the connection before, after and inside every message


async def conversation(client: Client, *, structured: bool) -> bool:
    """Write and read back; say whether both succeeded. Success has to be the truth."""
    await client.greeting()
    if structured:
        client.negotiation.ask_structured_replies()
        await client.answered()
        client.negotiation.ask_contexts("", ["base:allocation"], select=True)
        await client.event()  # the upstream may have none
    client.negotiation.go("", [])
    if isinstance(await client.event(), Refused):
        return False
    error, _ = await answer(client, await client.send(Cmd.WRITE, 4096, data=DATA), 0)
    if error:
        return False
    error, data = await answer(client, await client.send(Cmd.READ, 4096, 4096), 4096)
    assert error or data == DATA, "success with data that the disk does not have"
    await client.stream.send_all(DISC)
    return not error


def cuts() -> Iterator[int]:
    """Every byte of what is said beside the payload, and some of the payload."""
    yield from range(520)
    yield from range(520, 4600, 101)


@pytest.mark.parametrize(
    ("personality", "structured"),
    [(PLAIN, True), (PLAIN, False), (SIMPLE, True)],
    ids=["structured", "simple", "wrapped"],
)
async def test_no_cut_of_the_upstream_hangs_or_deceives_a_client(
    personality: Personality, structured: bool, autojump_clock: trio.testing.MockClock
) -> None:
    outcomes = set()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for cut in (*cuts(), None):
        cutting = server(personality, Faults(cut_after_bytes=cut))
        async with gateway_before(cutting, mode=ENDS_WITH_ITS_LINK) as gateway:
            client = gateway.client()
            async with client.stream:
                try:
                    outcomes.add(await conversation(client, structured=structured))
                except (EOFError, trio.BrokenResourceError):
                    outcomes.add(False)
    assert outcomes == {True, False}  # the conversation without a cut succeeds
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


# --- The upstream lies


def unknown_cookie(request: Request, reply: list[bytes]) -> list[bytes]:
    return [encode_simple_reply(request.cookie + 1000)]


def no_magic(request: Request, reply: list[bytes]) -> list[bytes]:
    return [b"\xff" * 32]


@pytest.mark.parametrize("lie", [unknown_cookie, no_magic])
async def test_a_lying_upstream_costs_its_own_client_alone(
    lie: type[unknown_cookie],  # type: ignore[valid-type]
) -> None:
    connections = itertools.count()

    def faults(_number: int) -> Faults:
        return Faults(on_reply=lie) if next(connections) == 0 else NO_FAULTS

    upstream = Server({"": MemoryDisk(SIZE)}, faults=faults)
    async with gateway_before(upstream, mode=ENDS_WITH_ITS_LINK) as gateway:
        victim, other = gateway.client(), gateway.client()
        async with victim.stream, other.stream:
            await victim.go("", structured=False)
            await other.go("", structured=False)
            first = await victim.send(Cmd.READ, 0, 512)
            assert await answer(victim, first, 512) == (Errno.EIO, b"")
            assert await victim.stream.receive_some() == b""
            assert await answer(other, await other.send(Cmd.READ, 0, 512), 512) == (0, bytes(512))


# --- How clients end


async def test_disc_is_obeyed_after_what_is_under_way() -> None:
    async with gateway_before(server()) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            cookies = [await client.send(Cmd.READ, 0, 65536) for _ in range(20)]
            await client.stream.send_all(DISC)
            for cookie in cookies:
                assert await answer(client, cookie, 65536) == (0, bytes(65536))
            assert await client.stream.receive_some() == b""


async def test_a_client_that_half_closes_gets_its_replies() -> None:
    async with gateway_before(server()) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            cookie = await client.send(Cmd.READ, 0, 4 * limits.MIB)
            await client.stream.send_eof()
            assert await answer(client, cookie, 4 * limits.MIB) == (0, bytes(4 * limits.MIB))


async def test_a_write_that_its_client_never_finishes_is_not_padded() -> None:
    upstream = server()
    async with gateway_before(upstream, drain_seconds=1000) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            request = encode_request(Cmd.WRITE, 0, 1, 0, limits.MIB)
            await client.stream.send_all(request + b"\xff" * 4096)
        reader = gateway.client()
        async with reader.stream:
            await reader.go("", structured=False)
            assert await answer(reader, await reader.send(Cmd.READ, 0, 8192), 8192) == (
                0,
                bytes(8192),
            )


async def test_a_client_that_never_reads_holds_a_bounded_number_of_bytes() -> None:
    async with gateway_before(server()) as gateway:
        sink, other = gateway.client(), gateway.client()
        async with sink.stream, other.stream:
            await sink.go("", structured=False)
            await other.go("", structured=False)
            requests = b"".join(encode_request(Cmd.READ, 0, n, 0, limits.MIB) for n in range(2000))
            await sink.stream.send_all(requests)
            for _ in range(50):
                assert await answer(other, await other.send(Cmd.READ, 0, 512), 512) == (
                    0,
                    bytes(512),
                )
            stuck = [s for s in gateway.service.hub.sessions if s.traffic.in_flight]
            assert len(stuck) == 1
            assert held_bytes(gateway) <= 4 * BUFFER_BYTES


def held_bytes(gateway: Gateway) -> int:
    """What the sessions have received and not sent."""
    return sum(
        sum(len(piece) for piece in lane.out) + lane.unscanned
        for session in gateway.service.hub.sessions
        for lane in (session._requests_lane, session._replies_lane)
    )


# --- A client that holds up others


BLOCK = 4096
BLOCKS = replace(PLAIN, block_sizes=BlockSizes(BLOCK, BLOCK, limits.MIB))
HALF_A_WRITE = encode_request(Cmd.WRITE, 0, 1, 0, BLOCK) + b"a" * (BLOCK // 2)
MANY_READS = b"".join(encode_request(Cmd.READ, 0, n, 0, limits.MIB) for n in range(20))
HOLDING_UP = {
    "half a WRITE sent": HALF_A_WRITE,
    "replies not read, with a claim": MANY_READS + encode_request(Cmd.WRITE, 0, 99, 1, 1) + b"a",
    "replies not read, with a WRITE": (
        MANY_READS + encode_request(Cmd.WRITE, 0, 99, 0, BLOCK) + b"a" * BLOCK
    ),
}


@asynccontextmanager
async def two_clients(gateway: Gateway) -> AsyncIterator[tuple[Client, Client]]:
    """Both have opened the same export."""
    one, other = gateway.client(), gateway.client()
    async with one.stream, other.stream:
        await one.go("", structured=False)
        await other.go("", structured=False)
        yield one, other


@pytest.mark.parametrize("sent", HOLDING_UP.values(), ids=HOLDING_UP)
async def test_a_client_that_holds_up_others_is_cut_off(
    sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as said:
        async with (
            gateway_before(server(BLOCKS), seconds=1000) as gateway,
            two_clients(gateway) as (stalling, other),
        ):
            await stalling.stream.send_all(sent)
            await trio.testing.wait_all_tasks_blocked(0.01)
            begun = trio.current_time()
            cookie = await other.send(Cmd.WRITE, 8, data=b"b" * 8)
            assert await answer(other, cookie, 0) == (0, b"")
            waited = trio.current_time() - begun
            # What a server has been sent may still be done when its connection has ended.
            late = (
                0
                if sent == HALF_A_WRITE
                else SURVIVAL.late_write_seconds + 2 * LOOK_FOR_ENDS_SECONDS
            )
            assert LOST_SECONDS <= waited <= LOST_SECONDS + 2 * LOOK_FOR_HOLD_UPS_SECONDS + late
            with suppress(trio.BrokenResourceError):  # half a WRITE was never read: it is reset
                while await stalling.stream.receive_some():
                    pass
    whys = [line.get("why") for line in said if line["event"] == "session ended"]
    assert f"the client has held up others for {LOST_SECONDS} s" in whys


@pytest.mark.parametrize("sent", HOLDING_UP.values(), ids=HOLDING_UP)
async def test_a_client_that_holds_up_nobody_has_all_the_time(
    sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        gateway_before(server(BLOCKS), seconds=1000) as gateway,
        two_clients(gateway) as (slow, other),
    ):
        await slow.stream.send_all(sent)
        await trio.sleep(10 * LOST_SECONDS)
        cookie = await other.send(Cmd.WRITE, BLOCK + 8, data=b"b" * 8)  # another block
        assert await answer(other, cookie, 0) == (0, b"")
        assert len(gateway.service.hub.sessions) == 2


async def test_who_goes_on_in_time_is_not_cut_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        gateway_before(server(BLOCKS), seconds=1000) as gateway,
        two_clients(gateway) as (slow, other),
    ):
        for _ in range(3):  # longer than LOST_SECONDS, and each time anew
            await slow.stream.send_all(HALF_A_WRITE)
            await trio.testing.wait_all_tasks_blocked(0.01)
            cookie = await other.send(Cmd.WRITE, 8, data=b"b" * 8)
            await trio.sleep(LOST_SECONDS * 2 / 3)
            await slow.stream.send_all(b"a" * (BLOCK // 2))
            assert await answer(slow, 1, 0) == (0, b"")
            assert await answer(other, cookie, 0) == (0, b"")


async def test_a_link_that_dies_frees_who_waits_for_it_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Even where its client does not read, and so the session goes on for a while."""
    connections = itertools.count()
    dying = Faults(never_reply=frozenset({Cmd.WRITE}), close_on_command=Cmd.FLUSH)

    def faults(_number: int) -> Faults:
        return NO_FAULTS if next(connections) else dying

    upstream = Server({"": MemoryDisk(SIZE)}, BLOCKS, faults=faults)
    async with (
        gateway_before(upstream, seconds=1000, mode=ENDS_WITH_ITS_LINK) as gateway,
        two_clients(gateway) as (deaf, other),
    ):
        await deaf.send(Cmd.WRITE, 0, data=b"a" * BLOCK)
        await trio.testing.wait_all_tasks_blocked(0.01)
        [busy] = [s for s in gateway.service.hub.sessions if s.traffic.in_flight]
        with suppress(BlockingIOError):
            while busy.client.send(bytes(65536)):
                pass
        cookie = await other.send(Cmd.WRITE, 8, data=b"b" * 8)
        await trio.testing.wait_all_tasks_blocked(0.01)
        begun = trio.current_time()
        await deaf.send(Cmd.FLUSH)
        assert await answer(other, cookie, 0) == (0, b"")
        assert trio.current_time() - begun < 1
        assert busy in gateway.service.hub.sessions  # it has something to tell its client


# --- A client whose requests are all answered here


def answered_here(minimum: int) -> Traffic:
    export = Export(SIZE, int(Flag.HAS_FLAGS | Flag.SEND_TRIM), BlockSizes(minimum, 4096, SIZE))
    return Traffic(plan(offer(view_of(export), structured=False), export))


class CountingScan:
    """Counts how often a scanner is called."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.calls = 0

    def feed(
        self,
        buffer: bytearray,
        view: memoryview,
        start: int,
        end: int,
        out: list[memoryview | bytes],
    ) -> int:
        self.calls += 1
        return self._scan.feed(buffer, view, start, end, out)


ANSWERED_HERE = {
    "TRIM inside a block": (BLOCK, Cmd.TRIM, 1, 100, 0),  # a job, that has nothing to do
    "READ of nothing": (1, Cmd.READ, 0, 0, 0),
    "past the end": (1, Cmd.TRIM, SIZE, 1, Errno.EINVAL),
}


@pytest.mark.parametrize(
    ("minimum", "command", "offset", "length", "error"), ANSWERED_HERE.values(), ids=ANSWERED_HERE
)
def test_a_buffer_of_what_is_answered_here_does_not_keep_the_hub(
    minimum: int,
    command: Cmd,
    offset: int,
    length: int,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever sends it is called again at once, and others in between: a turn ends with its second message."""
    monkeypatch.setattr(turn, "TURN_SECONDS", 0.0)
    count = 10 * MAX_ANSWERS
    wires = Wires(answered_here(minimum))
    lane = wires.session._requests_lane
    lane._scan = scan = CountingScan(lane._scan)
    requests = (encode_request(command, 0, cookie, offset, length) for cookie in range(count))
    wires.session.begin(b"".join(requests))
    told, most, calls = b"", 2 * SIMPLE_REPLY.size, 0
    while len(told) < count * SIMPLE_REPLY.size:
        assert scan.calls - calls == 1
        calls = scan.calls
        said = wires.client.recv(2 * most)
        assert len(said) == most
        told += said
        wires.step()
    assert told == b"".join(encode_simple_reply(cookie, error) for cookie in range(count))
    wires.close()


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends with its second message, whatever that is; in Python, for the pump has its own number."""
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setattr(turn, "TURN_SECONDS", 0.0)
    for module in (replies, chunks, requests):
        monkeypatch.setattr(module, "FEW", 0)


def trims(count: int) -> bytes:
    return b"".join(encode_request(Cmd.TRIM, 0, cookie, 0, 4096) for cookie in range(count))


def received(sock: socket.socket, count: int, step: Callable[[], object]) -> bytes:
    """So many bytes, after as many steps as it takes; less if there is nothing more to be done."""
    data, went = b"", True
    while len(data) < count and went:
        went = bool(step())
        with suppress(BlockingIOError):
            data += sock.recv(count - len(data))
            went = True
    return data


def test_replies_are_taken_up_though_nothing_can_be_sent_to_the_link(short_turns: None) -> None:
    """The server reads nothing while nobody takes its replies, and answers all at once."""
    count = 64
    wires = Wires(answered_there())
    asked = trims(count)
    wires.session.begin(asked)
    heard = received(wires.upstream, len(asked), wires.step)
    head, left = encode_request(Cmd.WRITE, 0, 1000, 0, SIZE), bytes(SIZE)
    wires.client.send(head)
    while left:
        with suppress(BlockingIOError):
            left = left[wires.client.send(left) :]
        if not wires.step():
            break
    assert left  # nobody takes it
    cookies = [heard[at + 8 : at + 16] for at in range(0, len(heard), len(head))]
    wires.upstream.send(b"".join(encode_simple_reply(int.from_bytes(each), 0) for each in cookies))
    told = received(wires.client, count * SIMPLE_REPLY.size, wires.step)
    assert told == b"".join(encode_simple_reply(cookie, 0) for cookie in range(count))
    wires.close()


@pytest.mark.parametrize("how", ["DISC", "DISC and gone", "the end"])
def test_what_was_sent_before_the_end_is_done(how: str, short_turns: None) -> None:
    count = 64
    wires = Wires(answered_there())
    asked = trims(count)
    wires.client.send(asked + DISC * how.startswith("DISC"))
    if how == "DISC and gone":
        wires.client.close()
    else:
        wires.client.shutdown(socket.SHUT_WR)
    wires.session.begin()
    assert len(received(wires.upstream, len(asked), wires.step)) == len(asked)
    wires.close()


class PlainSocket(socket.socket):
    """Another one of the same connection, that notes how much may be received at a time."""

    def __init__(self, of: RelaySocket) -> None:
        super().__init__(fileno=os.dup(of.fileno()))
        self.setblocking(False)
        self.room: list[int] = []

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self.room.append(len(buffer))
        return super().recv_into(buffer, nbytes, flags)


class OtherSocket:
    """The same, and no plain one: as one over TLS is."""

    def __init__(self, of: RelaySocket) -> None:
        self._plain = PlainSocket(of)
        self.room = self._plain.room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


@pytest.mark.parametrize(
    ("command", "kind", "most"),
    [
        (Cmd.BLOCK_STATUS, PlainSocket, MAP_BYTES),
        (Cmd.BLOCK_STATUS, OtherSocket, BUFFER_BYTES),  # a record of TLS has to find room
        (Cmd.READ, PlainSocket, BUFFER_BYTES),
    ],
)
def test_of_a_map_little_is_received_at_a_time(
    command: Cmd,
    kind: type[PlainSocket] | type[OtherSocket],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A receive goes on for as long as a server has more to send, be it eight bytes at a time."""
    contexts = (MetaContext(1, BASE_ALLOCATION),)
    export = Export(SIZE, int(Flag.HAS_FLAGS), None, structured=True, contexts=contexts)
    offered = offer(view_of(export), structured=True, selected=contexts)
    wires = Wires(Traffic(plan(offered, export)))
    lane = wires.session._replies_lane
    monkeypatch.setenv(VARIABLE, "0")  # what the pump receives nobody sees
    assert lane.source is not None
    watched = kind(lane.source)
    lane.source = cast(RelaySocket, watched)
    wires.session.begin(encode_request(command, 0, 7, 0, SIZE))
    asked = received(wires.upstream, STRUCTURED.request.size, wires.step)
    ours = int.from_bytes(asked[8:16])
    if command is Cmd.READ:
        reply = STRUCTURED.data_head(ours, 0, 0, SIZE, done=True) + bytes(4096)
    else:
        extents = [(512, 0), (512, 1)] * (2 * MAP_BYTES // 16)
        reply = STRUCTURED.status(ours, 0, 1, extents, done=True)
    wires.upstream.send(reply)
    while wires.step():
        pass
    assert watched.room[0] == most
    if command is Cmd.BLOCK_STATUS:
        assert max(watched.room) == most
        assert len(wires.client.recv(1 << 20)) == len(reply)  # and all of it is told
    watched.close()
    wires.close()


class NotingSink:
    """A sink that keeps what is sent as it is, in place of its bytes."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, data: bytes | memoryview) -> int:
        self.sent.append(data)
        return len(data)


@pytest.mark.parametrize("answered", [True, False])
def test_a_server_that_goes_is_told_of_the_end(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a good end only if nothing that was sent may come late."""
    traffic = answered_there()
    wires = Wires(traffic)
    wires.session.begin(encode_request(Cmd.WRITE, 0, 7, 0, 512) + bytes(512))
    received(wires.upstream, STRUCTURED.request.size + 512, wires.step)
    traffic.going.heed(lambda: None)
    traffic.going.refuse(*traffic.in_flight)
    if answered:
        traffic.in_flight.clear()
    sink = NotingSink()
    monkeypatch.setattr(wires.session._requests_lane, "sink", sink)
    wires.session.leave_link(traffic)
    assert [isinstance(each, Goodbye) for each in sink.sent] == [answered]
    assert sink.sent == [STRUCTURED.disc()]
    wires.close()


def answered_there() -> Traffic:
    export = Export(SIZE, int(Flag.HAS_FLAGS | Flag.SEND_TRIM), None)
    return Traffic(plan(offer(view_of(export), structured=False), export))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("error", [0, Errno.EIO])
def test_a_buffer_of_replies_does_not_keep_the_hub(
    error: int, structured: bool, short_turns: None
) -> None:
    """Also in the middle of what has come; and the last is not forgotten."""
    export = Export(SIZE, int(Flag.HAS_FLAGS | Flag.SEND_TRIM), None, structured=structured)
    count = MAX_IN_FLIGHT - 1
    wires = Wires(Traffic(plan(offer(view_of(export), structured=False), export)))
    asked = [encode_request(Cmd.TRIM, 0, cookie, 0, 4096) for cookie in range(count)]
    wires.session.begin(b"".join(asked))
    heard = b""
    while len(heard) < len(b"".join(asked)):
        with suppress(BlockingIOError):
            heard += wires.upstream.recv(1 << 20)
        wires.step()
    cookies = [heard[at + 8 : at + 16] for at in range(0, len(heard), len(asked[0]))]
    told = [encode_simple_reply(int.from_bytes(cookie), error) for cookie in cookies]
    wires.upstream.send(b"".join(told))
    said: list[bytes] = []
    while wires.step():
        with suppress(BlockingIOError):
            said.append(wires.client.recv(1 << 20))
    assert b"".join(said) == b"".join(encode_simple_reply(cookie, error) for cookie in range(count))
    assert {len(each) for each in said[:-1]} == {2 * SIMPLE_REPLY.size}
    wires.close()


# --- Limits in negotiation


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="client flags that are none"),
        pytest.param(CLIENT_FLAGS.pack(3) + b"x" * 16, id="no option"),
        pytest.param(
            CLIENT_FLAGS.pack(3) + OPTION.pack(0x49484156454F5054, 7, 2**32 - 1), id="4 GiB"
        ),
        pytest.param(CLIENT_FLAGS.pack(0) + encode_option(Opt.LIST), id="not fixed newstyle"),
    ],
)
async def test_nonsense_is_hung_up_on_at_once(said: bytes) -> None:
    async with gateway_before(server(), handshake_seconds=1000) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.stream.send_all(said)
            while await client.stream.receive_some():
                pass


async def test_a_silent_client_is_hung_up_on_after_its_time() -> None:
    async with gateway_before(server(), handshake_seconds=0.2) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            # Reset, if what it has said came when its time was over.
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await client.event()


# --- Who is to blame, in the log


async def test_a_client_that_vanishes_inside_a_write_is_to_blame() -> None:
    """And not the upstream, which closes the connection because it never got the rest."""
    with structlog.testing.capture_logs() as said:
        async with gateway_before(server()) as gateway:
            client = gateway.client()
            await client.go("")
            head = encode_request(Cmd.WRITE, 0, 1, 0, limits.MIB)
            await client.stream.send_all(head + bytes(1000))
            await client.stream.aclose()
    [line] = [line for line in said if line["event"] == "session ended"]
    assert line["why"] == "the client closed its connection inside a request"


@pytest.mark.parametrize(
    ("ask", "asked"),
    [
        (lambda core: core.go("x", []), "GO 'x'"),
        (lambda core: core.ask_info("x", []), "INFO 'x'"),
        (lambda core: core.list_exports(), "LIST"),
        (lambda core: core.ask_contexts("", [], select=False), "LIST_META_CONTEXT ''"),
        (lambda core: core.ask_contexts("", ["q"], select=True), "SET_META_CONTEXT ''"),
    ],
)
async def test_the_log_calls_options_as_the_protocol_does(
    ask: Callable[[ClientNegotiation], None], asked: str
) -> None:
    def nobody() -> trio.SocketStream:
        raise DialError("nobody is there")

    with structlog.testing.capture_logs() as said:
        async with gateway_before(nobody) as gateway:
            client = gateway.client()
            async with client.stream:
                await client.structured()
                ask(client.negotiation)
                await client.refused()
    [line] = [line for line in said if line["event"] == "client refused"]
    assert line["asked"] == asked


# --- A client that was told many names


async def listed(gateway: Gateway) -> Client:
    """A client that has asked for the list of exports."""
    client = gateway.client()
    await client.structured()
    client.negotiation.list_exports()
    await client.answered()
    return client


async def test_a_client_may_ask_about_every_name_it_was_told() -> None:
    """What `qemu-nbd -L` asks: of each name two descriptions, and its contexts twice."""
    names = [f"disk{number}" for number in range(100)]
    disk = MemoryDisk(SIZE)
    async with gateway_before(Server(dict.fromkeys(names, disk))) as gateway:
        client = await listed(gateway)
        async with client.stream:
            for name in names:
                for wanted in ((), (Info.BLOCK_SIZE,)):
                    client.negotiation.ask_info(name, wanted)
                    await client.answered()
                for select in (False, True):
                    client.negotiation.ask_contexts(name, ["base:allocation"], select=select)
                    await client.answered()


async def test_a_client_has_a_second_more_for_every_name_and_not_for_every_list(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exports = {name: MemoryDisk(SIZE) for name in ("a", "b", "c")}
    async with gateway_before(Server(exports), handshake_seconds=0.25) as gateway:
        begun = trio.current_time()
        client = await listed(gateway)
        async with client.stream:
            with suppress(EOFError, trio.BrokenResourceError):
                while True:
                    await trio.sleep(0.5)
                    client.negotiation.list_exports()
                    await client.answered()
        assert 3.25 <= trio.current_time() - begun < 4


async def test_a_silent_upstream_is_reported_in_time() -> None:
    ends = []

    def silent() -> trio.SocketStream:
        ours, theirs = socket_pair()
        ends.append(theirs)
        return ours

    async with gateway_before(silent, negotiate_seconds=0.2) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go("", [])
            refused = await client.refused()
            assert refused.reply == Rep.ERR_SHUTDOWN
            assert "has connected and not greeted for 0.2 s" in refused.text
    for end in ends:
        await end.aclose()


# --- Shutting down


async def test_draining_answers_what_is_under_way_and_refuses_the_rest() -> None:
    release = trio.Event()
    upstream = server(faults=Faults(delay=lambda request: release))
    async with gateway_before(upstream) as gateway:
        busy, late = gateway.client(), gateway.client()
        async with busy.stream, late.stream:
            await busy.go("", structured=False)
            await late.greeting()
            cookie = await busy.send(Cmd.READ, 0, 512)
            await trio.testing.wait_all_tasks_blocked(0.05)
            gateway.service.drain()
            late.negotiation.go("", [])
            assert (await late.refused()).reply == Rep.ERR_SHUTDOWN
            release.set()
            assert await answer(busy, cookie, 512) == (0, bytes(512))
            assert await busy.stream.receive_some() == b""


async def test_draining_waits_no_longer_than_it_may() -> None:
    release = trio.Event()
    upstream = server(faults=Faults(delay=lambda request: release))
    async with gateway_before(upstream, drain_seconds=0.2) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            await client.send(Cmd.READ, 0, 512)
            await trio.testing.wait_all_tasks_blocked(0.05)
            gateway.service.drain()
            assert await client.stream.receive_some() == b""
        release.set()


async def test_requests_behind_more_than_we_answer_at_a_time_are_taken_up() -> None:
    count = 2 * MAX_ANSWERS + 44
    async with gateway_before(server()) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            await client.stream.send_all(
                b"".join(encode_request(Cmd.READ, 0, cookie, 0, 0) for cookie in range(count))
            )
            for cookie in range(count):
                assert await answer(client, cookie, 0) == (0, b"")


async def test_disc_behind_more_than_may_be_under_way_is_obeyed() -> None:
    held: list[bytes] = []

    def all_at_once(request: Request, reply: list[bytes]) -> list[bytes]:
        held.append(b"".join(reply))
        return [b"".join(held)] if len(held) == MAX_IN_FLIGHT else []

    upstream = server(faults=Faults(on_reply=all_at_once))
    async with gateway_before(upstream, drain_seconds=2 * HANG_SECONDS) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            reads = [encode_request(Cmd.READ, 0, i, 0, 512) for i in range(MAX_IN_FLIGHT)]
            await client.stream.send_all(b"".join(reads) + DISC)
            for _ in reads:
                await client.receive(16 + 512)
            with trio.fail_after(HANG_SECONDS):  # and not after a drain's time
                assert await client.stream.receive_some() == b""


async def test_no_limit_stands_between_disc_and_the_last_reply() -> None:
    release = trio.Event()
    upstream = server(faults=Faults(delay=lambda request: release))
    async with gateway_before(upstream, drain_seconds=0) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            cookie = await client.send(Cmd.READ, 0, 512)
            await client.stream.send_all(DISC)
            await trio.testing.wait_all_tasks_blocked(0.05)
            release.set()
            assert await answer(client, cookie, 512) == (0, bytes(512))


# --- While the upstream is being asked


@asynccontextmanager
async def gateway_before_a_late_upstream(
    greets: trio.Event,
) -> AsyncIterator[tuple[Gateway, trio.Event]]:
    """A gateway whose upstream takes connections at once, and greets when told to; and the event that says that
    it was connected to.
    """
    connected = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                await greets.wait()
                await server().serve(stream)

        def connect() -> trio.SocketStream:
            ours, theirs = socket_pair()
            nursery.start_soon(serve, theirs)
            connected.set()
            return ours

        async with gateway_before(connect, negotiate_seconds=1000) as gateway:
            yield gateway, connected
        nursery.cancel_scope.cancel()


async def test_a_client_that_leaves_while_the_upstream_is_asked_is_let_go() -> None:
    async with gateway_before_a_late_upstream(trio.Event()) as (gateway, connected):
        client = gateway.client()
        await client.greeting()
        client.negotiation.go("", [])
        await client.stream.send_all(client.negotiation.data_to_send())
        await connected.wait()
        await client.stream.aclose()
        # The gateway waits for its clients' tasks, and the upstream never says anything.


async def test_a_client_that_has_said_all_it_has_to_say_is_not_gone() -> None:
    """Behind its last option it may end its side, and wait for what it is told."""
    greets = trio.Event()
    async with gateway_before_a_late_upstream(greets) as (gateway, connected):
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_info("", [])
            await client.stream.send_all(client.negotiation.data_to_send())
            await connected.wait()
            await client.stream.send_all(encode_option(Opt.ABORT))
            await client.stream.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.01)
            greets.set()
            assert (await client.answered()).export is not None


async def test_an_export_that_opens_while_draining_is_refused() -> None:
    greets = trio.Event()
    async with gateway_before_a_late_upstream(greets) as (gateway, connected):
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            client.negotiation.go("", [])
            await client.stream.send_all(client.negotiation.data_to_send())
            await connected.wait()
            gateway.service.drain()
            greets.set()
            assert (await client.refused()).reply == Rep.ERR_SHUTDOWN


async def test_a_session_that_begins_after_the_hub_was_told_to_finish_ends() -> None:
    async with gateway_before(server()) as gateway:
        gateway.service.hub.finish("shutting down", 5)
        client = gateway.client()
        async with client.stream:
            await client.go("", structured=False)
            assert await client.stream.receive_some() == b""
