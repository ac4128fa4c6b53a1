"""Sessions whose requests are held back: what is held goes on, once, and holds up nobody else."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Request, Server
from gateway.hub.hub import Hub
from gateway.hub.session import Session, Watched
from gateway.net.options import RelaySocket
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.throttle import Bucket, Charges, Doors, Unit
from gateway.wire.constants import Cmd
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import KIB, MIB
from gateway.wire.transmission import DISC, SIMPLE_REPLY, encode_request, encode_simple_reply
from tests.embedded.peers import Client
from tests.hub.wires import CountingPool, Wires
from tests.sessions.gateways import ENDS_WITH_ITS_LINK, Gateway, gateway_before

SIZE = 8 * MIB
BLOCK = 4 * KIB
PLAIN = PERSONALITIES["plain"]


def bucket(per_second: float, burst: float) -> Bucket:
    return Bucket(per_second, burst, trio.current_time)


class Recorder:
    """A server that knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        faults = Faults(on_reply=self._record)
        self.server = Server({"": MemoryDisk(SIZE)}, PLAIN, faults=faults)

    def _record(self, request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command != Cmd.FLUSH:  # which comes when a session ends that has written
            self.asked.append((request.command, request.offset))
        return reply


@asynccontextmanager
async def sessions(
    gateway: Gateway, charges: Sequence[Charges]
) -> AsyncIterator[tuple[list[Client], list[Session]]]:
    """A client for each of the charges, and its session."""
    async with trio.open_nursery() as nursery:
        clients: list[Client] = []
        found: list[Session] = []
        for each in charges:
            client = gateway.client()
            await client.go("", structured=False)
            await trio.testing.wait_all_tasks_blocked()
            [session] = gateway.service.hub.sessions - set(found)
            session.throttle(each)
            clients.append(client)
            found.append(session)
        yield clients, found
        for client in clients:
            with suppress(trio.BrokenResourceError):
                await client.stream.aclose()
        nursery.cancel_scope.cancel()


def fast_forward() -> Hub:
    return Hub(trio.current_time)


def write(cookie: int, length: int = BLOCK) -> bytes:
    head = encode_request(Cmd.WRITE, 0, cookie, cookie * length, length)
    return head + bytes([cookie % 255 + 1]) * length


async def replies(client: Client, cookies: Sequence[int], length: int = 0) -> list[bytes]:
    """The data of replies that have to come, each once, in any order."""
    found = {}
    for _ in cookies:
        _magic, error, cookie = SIMPLE_REPLY.unpack(await client.receive(SIMPLE_REPLY.size))
        assert not error
        assert cookie not in found
        found[cookie] = await client.receive(length)
    assert sorted(found) == sorted(cookies)
    return [found[cookie] for cookie in cookies]


# --- Through a gateway, in a time that passes as soon as everybody waits


@pytest.mark.parametrize("length", [512, BLOCK, 64 * KIB])
async def test_a_throttled_session_goes_on_at_its_rate(
    autojump_clock: trio.testing.MockClock, length: int
) -> None:
    """Nothing is lost, nothing comes twice."""
    count = 100
    recorder = Recorder()
    rate = 10 * length
    async with (
        gateway_before(recorder.server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [[(bucket(rate, 1), Unit.BYTES)]]) as ([client], _),
    ):
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            said = b"".join(write(cookie, length) for cookie in range(count)) + DISC
            nursery.start_soon(client.stream.send_all, said)
            await replies(client, range(count))
        assert trio.current_time() - begun == pytest.approx((count - 1) / 10, rel=0.01)
        assert await client.stream.receive_some() == b""  # it was served as far as DISC
    offsets = [offset for _command, offset in recorder.asked]
    assert offsets == [cookie * length for cookie in range(count)]


async def test_a_session_that_waits_for_each_reply(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    async with (
        gateway_before(recorder.server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [[(bucket(10, 0.01), Unit.OPERATIONS)]]) as ([client], _),
    ):
        begun = trio.current_time()
        for cookie in range(51):
            await client.stream.send_all(write(cookie))
            await replies(client, [cookie])
        assert trio.current_time() - begun == pytest.approx(5, rel=0.01)
    assert len(recorder.asked) == 51


async def test_other_sessions_are_not_slowed(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        gateway_before(Recorder().server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [[(bucket(1, 1), Unit.BYTES)], []]) as ([slow, other], found),
    ):
        await slow.stream.send_all(b"".join(write(cookie) for cookie in range(10)))
        await replies(slow, [0])
        await trio.testing.wait_all_tasks_blocked()
        assert found[0].traffic.held
        begun = trio.current_time()
        for cookie in range(100):
            await other.stream.send_all(write(cookie))
            await replies(other, [cookie])
        assert trio.current_time() == begun


async def test_equal_bytes_through_one_bucket(autojump_clock: trio.testing.MockClock) -> None:
    lengths = [BLOCK, 64 * KIB, 16 * KIB]
    seconds = 4
    shared: Charges = [(bucket(10 * MIB, 1), Unit.BYTES)]
    taken = [0, 0, 0]

    async def keep_reading(number: int, client: Client) -> None:
        """Eight at a time."""
        length = lengths[number]
        for cookie in itertools.count():
            await client.stream.send_all(encode_request(Cmd.READ, 0, cookie, 0, length))
            if cookie >= 7:
                await client.receive(SIMPLE_REPLY.size + length)
                taken[number] += length

    async with (
        gateway_before(Recorder().server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [shared] * 3) as (clients, _),
    ):
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(keep_reading, number, client)
    whole = seconds * 10 * MIB
    assert sum(taken) == pytest.approx(whole, rel=0.1)  # what is under way is not counted
    for each in taken:
        assert each == pytest.approx(whole / 3, rel=0.15)


async def test_a_client_that_leaves_while_it_is_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = bucket(1e-6, 1)
    async with gateway_before(Recorder().server, seconds=1000, hub=fast_forward()) as gateway:
        async with sessions(gateway, [[(slow, Unit.BYTES)]]) as ([client], [session]):
            await client.stream.send_all(write(0) + write(1))
            await replies(client, [0])
            await trio.testing.wait_all_tasks_blocked()
            assert slow.waiting == 1
        begun = trio.current_time()
        await session.ended.wait()
        assert trio.current_time() == begun
        assert slow.waiting == 0
        assert gateway.service.hub._doors.next_opening() is None


async def test_draining_waits_for_nobody_who_is_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = bucket(1e-6, 1)
    recorder = Recorder()
    async with (
        gateway_before(recorder.server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [[(slow, Unit.BYTES)]]) as ([client], [session]),
    ):
        await client.stream.send_all(write(0) + write(1))
        await replies(client, [0])
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        gateway.service.drain()
        with suppress(trio.BrokenResourceError):  # its second request was not read
            assert await client.stream.receive_some() == b""
        await session.ended.wait()
        assert trio.current_time() == begun
        assert slow.waiting == 0
        assert session.reason == "shutting down"
    assert len(recorder.asked) == 1


async def test_an_upstream_that_goes_while_a_request_is_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = bucket(1e-6, 1)
    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(close_on_command=Cmd.FLUSH))
    mode = ENDS_WITH_ITS_LINK
    async with (
        gateway_before(server, seconds=1000, hub=fast_forward(), mode=mode) as gateway,
        sessions(gateway, [[(slow, Unit.BYTES)]]) as ([client], [session]),
    ):
        flush = encode_request(Cmd.FLUSH, 0, 1, 0, 0)  # costs no bytes
        await client.stream.send_all(write(0) + flush + write(2))
        begun = trio.current_time()
        await session.ended.wait()
        assert trio.current_time() == begun
        assert slow.waiting == 0
        assert session.reason == "the upstream closed the connection"


async def test_another_rate_holds_for_what_is_held_already(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = bucket(1e-6, 1)
    async with (
        gateway_before(Recorder().server, seconds=1000, hub=fast_forward()) as gateway,
        sessions(gateway, [[(slow, Unit.BYTES)]]) as ([client], [session]),
    ):
        await client.stream.send_all(b"".join(write(cookie) for cookie in range(10)))
        await replies(client, [0])
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        slow.change(BLOCK, 1)
        await replies(client, [1, 2])
        assert trio.current_time() - begun == pytest.approx(2, rel=0.01)
        session.throttle([(bucket(2 * BLOCK, 1), Unit.BYTES)])
        await replies(client, [3, 4, 5])  # the first at once: that bucket is full
        assert trio.current_time() - begun == pytest.approx(3, rel=0.01)
        session.throttle([])
        await replies(client, [6, 7, 8, 9])
        assert trio.current_time() - begun == pytest.approx(3, rel=0.01)
        assert session.traffic.gate is None


async def test_what_a_client_sent_behind_its_last_option_is_charged_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The charges that `relay` is given hold from the first byte."""

    class Throttling(Hub):
        async def relay(
            self,
            client: RelaySocket,
            link: RelaySocket | None,
            traffic: Traffic,
            client_data: bytes = b"",
            charges: Charges = (),
            watched: Watched = (),
            *,
            push: Callable[[], None] | None = None,
            begins: Callable[[Session, trio.Nursery], None] | None = None,
        ) -> Session:
            return await super().relay(
                client, link, traffic, client_data, own, push=push, begins=begins
            )

    own = [(bucket(1, 0.01), Unit.OPERATIONS)]
    hub = Throttling(trio.current_time)
    async with gateway_before(Recorder().server, seconds=1000, hub=hub) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            begun = trio.current_time()
            client.negotiation.go("", [])
            asked = client.negotiation.data_to_send()
            await client.stream.send_all(asked + b"".join(write(cookie) for cookie in range(5)))
            await client.answered()
            client.unread(bytes(client.negotiation._received))
            await replies(client, range(5))
            assert trio.current_time() - begun == pytest.approx(4, rel=0.01)


async def test_the_log_says_nothing_of_an_orderly_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as said:
        async with (
            gateway_before(Recorder().server, seconds=1000, hub=fast_forward()) as gateway,
            sessions(gateway, [[(bucket(1, 1), Unit.OPERATIONS)]]) as ([client], _),
        ):
            await client.stream.send_all(write(0) + write(1) + DISC)
            await replies(client, [0, 1])
            assert await client.stream.receive_some() == b""
    [line] = [line for line in said if line["event"] == "session ended"]
    assert "why" not in line


# --- Between two socket pairs


class Held:
    """A session with a request that is held, in a time that stands."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bucket = Bucket(1, 1, lambda: self.now)
        self.doors = Doors(lambda: None)
        self.pool = CountingPool()
        sizes = BlockSizes(1, 4096, SIZE)
        export = Export(SIZE, int(Flag.HAS_FLAGS), sizes)
        traffic = Traffic(plan(offer(view_of(export), structured=False), export))
        self.wires = Wires(traffic, self.pool, self.doors)
        self.session = self.wires.session
        self.session.throttle([(self.bucket, Unit.OPERATIONS)])
        self.session.begin()

    def settle(self) -> int:
        """Let the session do what it can; say how often it was called."""
        calls = 0
        while self.wires.step():
            calls += 1
            assert calls < 100, "it is called again and again"
        return calls

    def open(self) -> None:
        opening = self.doors.next_opening()
        assert opening is not None
        self.now = opening
        self.doors.open_due(self.now)

    def asked(self) -> list[int]:
        """The lengths of what has come upstream, all of it READ."""
        data = b""
        with suppress(BlockingIOError):
            data = self.wires.upstream.recv(10**6)
        return [int.from_bytes(data[at + 24 : at + 28]) for at in range(0, len(data), 28)]


def reads(*lengths: int) -> bytes:
    return b"".join(encode_request(Cmd.READ, 0, length, 0, length) for length in lengths)


def test_what_is_held_is_left_alone() -> None:
    """Whatever the client sends meanwhile: nobody reads it, nobody is called, and no buffer is held."""
    held = Held()
    held.wires.client.send(reads(1, 2, 3))
    held.settle()
    assert held.asked() == [1]
    assert held.session.traffic.held
    assert held.pool.taken == 0
    held.wires.client.send(reads(4))
    assert held.settle() == 0
    held.open()
    held.settle()
    assert held.asked() == [2]
    assert held.pool.taken == 0
    for length in (3, 4):
        held.open()
        held.settle()
        assert held.asked() == [length]
    assert not held.session.traffic.held
    assert held.doors.next_opening() is None
    assert held.bucket.level == pytest.approx(0, abs=1)
    held.wires.close()


def test_replies_go_on_while_requests_are_held() -> None:
    held = Held()
    held.wires.client.send(reads(1, 2))
    held.settle()
    held.wires.upstream.send(encode_simple_reply(1) + b"x")
    held.settle()
    assert held.wires.client.recv(100)[SIMPLE_REPLY.size :] == b"x"
    assert held.session.traffic.held
    assert held.bucket.waiting == 1  # and it has not been charged
    assert held.bucket.level == 0
    held.wires.close()


def test_who_has_no_room_is_not_charged() -> None:
    """Its turn may come while it may not begin anything: what is begun is charged, and no more."""
    held = Held()
    held.session.traffic.most_in_flight = 1
    held.wires.client.send(reads(1, 2))
    held.settle()
    assert not held.session.traffic.held  # it waits for a reply, not for the gate
    assert held.bucket.level == 0
    held.now = 10
    assert held.doors.next_opening() is None
    held.wires.upstream.send(encode_simple_reply(1) + b"x")
    held.settle()
    assert held.asked() == [1, 2]
    held.wires.close()


def test_a_session_that_has_ended_is_not_woken() -> None:
    held = Held()
    held.wires.client.send(reads(1, 2))
    held.settle()
    held.session.cut()
    assert held.bucket.waiting == 0
    held.session.throttle([])
    held.session.throttle([(held.bucket, Unit.BYTES)])
    assert held.doors.next_opening() is None
    assert held.session.bug is None
    held.wires.close()


def test_a_request_in_pieces_is_charged_when_its_header_is_whole() -> None:
    held = Held()
    request = reads(1, 2)
    for byte in request[:-1]:
        held.wires.client.send(bytes([byte]))
        held.settle()
    assert not held.session.traffic.held
    held.wires.client.send(request[-1:])
    held.settle()
    assert held.session.traffic.held
    held.open()
    held.settle()
    assert held.asked() == [1, 2]
    held.wires.close()
