"""Sessions that are held, exports that are paused, and links that are exchanged under their clients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import pytest
import structlog
import trio
import trio.testing

from gateway.access.chain import compile_chain
from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.hub.session import Hold
from gateway.net.dial import DialError
from gateway.policy import Next, Policy, Result, View
from gateway.policy import Request as Asked
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.sessions.fitting import misfits
from gateway.sessions.holding import NotDone
from gateway.sessions.opened import Opened
from gateway.sessions.service import Paused
from gateway.sessions.whereabouts import Target
from gateway.throttle import Bucket, Unit
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, MetaContext
from gateway.wire.limits import MIB
from gateway.wire.transmission import DISC, SIMPLE_REPLY, encode_request, encode_simple_reply
from tests.embedded.peers import socket_pair
from tests.hub.wires import CountingPool, Wires
from tests.sessions.asking import BLOCK, CONTENT, read_back, write
from tests.sessions.houses import PLAIN, SIZE, disk_of, house, opening_slowly
from tests.sessions.placed import Waiting, place
from tests.upstream.servers import server_to

# --- Between two socket pairs


class Held:
    """A session between two socket pairs, held."""

    def __init__(self, *, before: bytes = b"") -> None:
        self.pool = CountingPool()
        self.wires = Wires(self.traffic(), self.pool)
        self.session = self.wires.session
        self.session.begin()
        if before:
            self.wires.client.send(before)
            self.settle()
        self.session.hold()

    def traffic(self) -> Traffic:
        flags = Flag.HAS_FLAGS | Flag.SEND_FLUSH
        export = Export(SIZE, int(flags), BlockSizes(1, 4096, SIZE))
        return Traffic(plan(offer(view_of(export), structured=False), export))

    def settle(self) -> int:
        """Let the session do what it can; say how often it was called."""
        calls = 0
        while self.wires.step():
            calls += 1
            assert calls < 1000, "it is called again and again"
        return calls

    def come(self) -> bytes:
        """What has come upstream."""
        data = b""
        with suppress(BlockingIOError):
            while piece := self.wires.upstream.recv(10**6):
                data += piece
        return data


def read(cookie: int) -> bytes:
    return encode_request(Cmd.READ, 0, cookie, 0, cookie)


def lengths(requests: bytes) -> list[int]:
    return [int.from_bytes(requests[at + 24 : at + 28]) for at in range(0, len(requests), 28)]


def test_nothing_is_begun_and_nobody_is_called() -> None:
    held = Held()
    assert held.session.quiet
    held.wires.client.send(read(1) + read(2))
    assert held.settle() == 0
    assert held.come() == b""
    assert held.pool.taken == 0
    held.session.go_on()
    held.settle()
    assert lengths(held.come()) == [1, 2]
    held.wires.close()


def test_who_is_held_for_two_reasons_goes_on_when_both_have_ended() -> None:
    held = Held()
    held.session.hold(Hold.COMES_LATE)
    held.wires.client.send(read(1))
    held.session.go_on()
    held.settle()
    assert held.come() == b""
    assert held.session.held
    held.session.go_on(Hold.COMES_LATE)
    held.settle()
    assert lengths(held.come()) == [1]
    held.wires.close()


def test_what_has_begun_is_finished() -> None:
    held = Held(before=read(1))
    assert not held.session.quiet
    held.wires.upstream.send(encode_simple_reply(1) + b"x")
    held.settle()
    assert held.session.quiet
    assert held.wires.client.recv(100)[SIMPLE_REPLY.size :] == b"x"
    held.wires.close()


def test_a_write_that_is_half_sent_is_finished_and_what_is_behind_it_waits() -> None:
    whole = encode_request(Cmd.WRITE, 0, 1, 0, 100) + b"w" * 100
    held = Held(before=whole[:60])
    assert not held.session.between_requests
    # More than a lane keeps aside for a session that is only throttled.
    behind = b"".join(read(n) for n in range(1, 1000))
    held.wires.client.send(whole[60:] + behind)
    held.settle()
    assert held.come() == whole
    assert not held.session.quiet
    held.wires.upstream.send(encode_simple_reply(1))
    held.settle()
    assert held.session.quiet
    assert held.pool.taken == 0
    assert held.settle() == 0
    held.session.go_on()
    held.session.traffic.most_in_flight = 128
    held.settle()
    assert lengths(held.come()) == list(range(1, 129))
    held.wires.close()


@pytest.mark.parametrize("last", [DISC, b"", read(1) + DISC], ids=["DISC", "nothing", "a READ"])
def test_a_client_that_leaves_while_it_is_held_ends_in_good_order(last: bytes) -> None:
    held = Held()
    held.wires.client.send(last)
    held.wires.client.close()
    assert held.settle() <= 1
    assert not held.session.ended.is_set()
    held.session.go_on()
    held.settle()
    if held.session.traffic.in_flight:
        held.wires.upstream.send(encode_simple_reply(1) + b"x")
        held.settle()
    assert held.session.ended.is_set()
    assert held.session.reason == ""
    assert held.come().endswith(DISC[:4] + b"\0\0\0\2" + bytes(20))
    held.wires.close()


def test_draining_does_not_wait_for_it() -> None:
    held = Held()
    held.wires.client.send(read(1))
    held.session.finish("shutting down", 5)
    assert held.session.ended.is_set()
    assert held.come() == DISC
    held.session.go_on()
    assert held.come() == b""
    held.wires.close()


def test_its_link_may_die_once_it_is_settled() -> None:
    held = Held()
    held.session.settled = True
    held.wires.upstream.close()
    held.settle()
    assert held.session.link_lost == "the upstream closed the connection"
    assert not held.session.ending.is_set()
    assert held.settle() == 0
    held.wires.client.send(read(7))
    held.wires.relink(held.traffic())
    assert held.session.quiet
    held.session.go_on()
    held.settle()
    assert lengths(held.come()) == [7]
    held.wires.close()


@pytest.mark.parametrize("settled", [True, False])
def test_without_another_link_it_ends(settled: bool) -> None:
    held = Held()
    held.session.settled = settled
    held.wires.upstream.close()
    held.settle()
    assert held.session.ended.is_set() is not settled
    held.session.go_on()
    assert held.session.ended.is_set()
    assert held.session.reason == "the upstream closed the connection"
    held.wires.close()


def test_a_throttled_session_is_held() -> None:
    now = 0.0
    bucket = Bucket(1, 1, lambda: now)
    held = Held()
    doors = held.session._doors
    held.session.throttle([(bucket, Unit.OPERATIONS)])
    held.session.go_on()
    held.wires.client.send(read(1) + read(2) + read(3))
    held.settle()
    assert lengths(held.come()) == [1]
    held.session.hold()
    now = 5.0
    doors.open_due(now)  # its turn comes while it is held
    held.settle()
    assert held.come() == b""
    held.wires.upstream.send(encode_simple_reply(1) + b"x")
    held.settle()
    held.session.settled = held.session.quiet
    held.wires.upstream.close()
    held.settle()
    held.wires.relink(held.traffic())
    held.session.go_on()
    held.settle()
    assert lengths(held.come())[0] == 2
    assert held.session.traffic.gate is not None
    held.wires.close()


def test_a_throttled_client_that_leaves_while_it_is_held_is_missed_when_it_may_go_on() -> None:
    held = Held()
    held.session.throttle([(Bucket(1e-6, 1, lambda: 0.0), Unit.OPERATIONS)])
    held.session.go_on()
    held.wires.client.send(read(1) + read(2))
    held.settle()
    held.wires.upstream.send(encode_simple_reply(1) + b"x")
    held.settle()
    assert held.session.traffic.held
    held.session.hold()
    held.wires.client.close()
    held.settle()
    assert not held.session.ended.is_set()
    held.session.go_on()
    held.settle()
    assert held.session.ended.is_set()
    held.wires.close()


# --- Through a gateway


async def test_a_pause_flushes_and_holds_until_it_is_resumed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[int] = []

    def record(request: Request, reply: list[bytes]) -> list[bytes]:
        asked.append(request.command)
        return reply

    async with house(disk_of(MemoryDisk(SIZE), record)) as made:
        client = await made.client()
        assert await write(client) == 0
        [done] = await made.pauses.pause("")
        assert "1 session held, 1 flushed" in done
        assert asked == [Cmd.WRITE, Cmd.FLUSH]
        [done] = await made.pauses.pause("", lasts=100)
        assert "paused already" in done
        await client.send(Cmd.READ, 0, BLOCK)
        with trio.move_on_after(50):
            await client.simple_reply()
            pytest.fail("it is held")
        [done] = await made.pauses.resume("")
        assert (await client.simple_reply())[2] == CONTENT
        with pytest.raises(NotDone, match="is not paused"):
            await made.pauses.resume("")


@pytest.mark.parametrize("connections", ['"per-client"', '"shared"'])
async def test_who_goes_while_it_is_paused_writes_nothing_any_more(
    connections: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever comes then has seen him go, and what he writes is newer."""
    disk = MemoryDisk(SIZE)
    async with house(disk_of(disk), upstream=f"connections = {connections}") as made:
        client, other = await made.client(), await made.client()
        await made.pauses.pause("")
        await client.send(Cmd.WRITE, 0, data=CONTENT)
        await client.stream.aclose()
        await trio.sleep(1)
        await made.pauses.resume("")
        while len(made.sessions()) > 1:
            await trio.sleep(0.1)
        assert await disk.read(0, BLOCK) == bytes(BLOCK)
        assert await write(other) == 0


async def test_who_cannot_resume_still_holds_what_he_has_paused(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it ends when he goes."""
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        await made.client()
        await made.pauses.pause("", by="me", command="this")

        async def fails(_exports: object) -> dict[str, int]:
            raise NotDone("the server is not back")

        monkeypatch.setattr(made.pauses._reconnecting, "reconnect", fails)
        for _ in range(2):
            with pytest.raises(NotDone, match="is not back"):
                await made.pauses.resume("", by="me")
        assert made.service.paused
        await made.pauses.undo("this")
        assert not made.service.paused


async def test_who_says_goodbye_while_it_is_paused_ends_in_good_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        await made.pauses.pause("")
        await client.send(Cmd.DISC)
        await client.stream.aclose()
        [session] = made.sessions()
        await made.pauses.resume("")
        await session.ended.wait()
        assert session.reason == ""


async def test_who_comes_while_it_is_paused_waits_and_its_clock_stands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        await made.pauses.pause("")
        stays, leaves = made.comes(), made.comes()
        opened = trio.Event()

        async def come() -> None:
            await stays.go("", structured=False)
            opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await leaves.structured()
            leaves.negotiation.go("", ())
            await leaves.stream.send_all(leaves.negotiation.data_to_send())
            await trio.sleep(100)  # far more than a handshake may take
            assert not opened.is_set()
            await leaves.stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert len(made.service.negotiations) == 1
            await made.pauses.resume("")
        assert opened.is_set()
        assert await write(stays) == 0
        assert len(made.sessions()) == 1


async def test_a_pause_that_nobody_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        await made.pauses.pause("", lasts=200)
        begun = trio.current_time()
        with structlog.testing.capture_logs() as said:
            assert await write(client) == 0
        assert trio.current_time() - begun == pytest.approx(200, abs=1)
        assert [line["event"] for line in said] == ["export resumed: nobody has done it"]
        assert not made.service.paused


async def test_who_is_not_quiet_is_named_and_all_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        slow, other = await made.client(), await made.client()
        whole = encode_request(Cmd.WRITE, 0, 7, 0, BLOCK) + CONTENT
        await slow.stream.send_all(whole[:100])
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        with pytest.raises(NotDone, match=r"within 20 s did not come to an end: .*half a request"):
            await made.pauses.pause("", seconds=20)
        assert trio.current_time() - begun == pytest.approx(20, abs=1)
        assert await write(other, BLOCK) == 0
        await slow.stream.send_all(whole[100:])
        assert (await slow.simple_reply())[:2] == (7, 0)


async def test_a_flush_that_fails_is_told_to_the_clients_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failing = [True]

    def reply(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command == Cmd.FLUSH and failing:
            return [encode_simple_reply(request.cookie, Errno.ENOSPC)]
        return reply

    async with house(disk_of(MemoryDisk(SIZE), reply)) as made:
        clients = [await made.client() for _ in range(2)]
        for number, client in enumerate(clients):
            assert await write(client, number * BLOCK) == 0
        with pytest.raises(NotDone, match=r"a FLUSH failed: .*ENOSPC"):
            await made.pauses.pause("")
        assert not made.service.paused
        failing.clear()
        for client in clients:
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
        await made.pauses.pause("")
        await made.pauses.resume("")


async def test_hooks_come_to_an_end_before_it_is_quiet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    waiting = Waiting()
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        place(made.gateway, waiting)
        client = await made.client()
        await client.send(Cmd.READ, 0, BLOCK)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NotDone, match="1 command under way"):
            await made.pauses.pause("", seconds=5)
        waiting._let_go.set()
        assert len((await client.simple_reply())[2]) == BLOCK
        await made.pauses.pause("", seconds=5)


async def test_draining_while_it_is_paused(autojump_clock: trio.testing.MockClock) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        await made.pauses.pause("")
        late = made.comes()
        async with trio.open_nursery() as nursery:
            refused = []

            async def come() -> None:
                await late.structured()
                late.negotiation.go("", ())
                refused.append(await late.refused())

            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            made.service.drain()
            assert await client.stream.receive_some() == b""
        assert "shutting down" in str(refused[0])
        assert trio.current_time() - begun < 1
        with pytest.raises(NotDone):
            await made.pauses.resume("")
        with pytest.raises(NotDone, match="shutting down"):
            await made.pauses.pause("")
        await late.stream.aclose()


async def test_sessions_go_over_and_come_back(autojump_clock: trio.testing.MockClock) -> None:
    one, other = MemoryDisk(SIZE), MemoryDisk(SIZE)
    async with house(disk_of(one)) as made:
        clients = [await made.client() for _ in range(3)]
        assert await write(clients[0]) == 0
        for _ in range(3):
            [done] = await made.pauses.switch("", made.at(disk_of(other)))
            assert "sessions went over to another" in done
            assert await read_back(clients[1]) == bytes(BLOCK)
            assert await read_back(await made.client()) == bytes(BLOCK)
            [done] = await made.pauses.switch("", None)
            assert await read_back(clients[2]) == CONTENT
            assert await read_back(await made.client()) == CONTENT
        assert not made.service.switched


async def test_a_switch_of_a_paused_export_leaves_it_paused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        await made.pauses.pause("", lasts=1000)
        [done] = await made.pauses.switch("", made.at(disk_of(MemoryDisk(SIZE))))
        assert done.endswith("and stay paused")
        [session] = made.sessions()
        assert session.held
        await made.pauses.resume("")
        assert await write(client) == 0


async def test_hooks_go_over(autojump_clock: trio.testing.MockClock) -> None:
    class Through(Policy):
        async def each(self, request: Asked, next: Next) -> Result:
            result: Result = await next(request)
            return result

    other = MemoryDisk(SIZE)
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        place(made.gateway, Through())
        client = await made.client()
        assert await write(client) == 0
        await made.pauses.switch("", made.at(disk_of(other)))
        assert await read_back(client) == bytes(BLOCK)
        assert await write(client) == 0
        assert bytes(await other.read(0, BLOCK)) == CONTENT


MISFITS: dict[str, tuple[Callable[[], Server], str]] = {
    "larger": (lambda: disk_of(MemoryDisk(2 * SIZE)), f"size {2 * SIZE} instead of {SIZE}"),
    "smaller": (lambda: disk_of(MemoryDisk(SIZE // 2)), f"size {SIZE // 2} instead of {SIZE}"),
    "another name": (lambda: Server({"x": MemoryDisk(SIZE)}, PLAIN), "another: "),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("paused", [True, False])
async def test_what_does_not_fit_changes_nothing(
    autojump_clock: trio.testing.MockClock, misfit: str, paused: bool
) -> None:
    make, words = MISFITS[misfit]
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        assert await write(client) == 0
        if paused:
            await made.pauses.pause("")
        with pytest.raises(NotDone) as failed:
            await made.pauses.switch("", made.at(make()))
        assert words in str(failed.value)
        assert bool(made.service.paused) is paused
        if paused:
            await made.pauses.resume("")
        assert await read_back(client) == CONTENT
        assert await read_back(await made.client()) == CONTENT
        assert not made.service.switched


FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM | Flag.SEND_FUA
SIZES = BlockSizes(512, 4096, MIB)
PROMISED = Export(SIZE, int(FLAGS), SIZES, structured=True, contexts=(MetaContext(7, "x:y"),))
LESS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "more": ({"flags": int(FLAGS | Flag.CAN_MULTI_CONN), "block_sizes": BlockSizes(1, 1, MIB)}, []),
    "another framing": ({"structured": False}, []),
    "another id": ({"contexts": (MetaContext(1, "x:y"),)}, []),
    "size": ({"size": SIZE + 512}, [f"size {SIZE + 512} instead of {SIZE}"]),
    "a tail": ({"size": SIZE + 1}, [f"size {SIZE + 1} instead of {SIZE}"]),
    "TRIM": ({"flags": int(FLAGS & ~Flag.SEND_TRIM)}, ["no SEND_TRIM"]),
    "FLUSH": (
        {"flags": int(FLAGS & ~Flag.SEND_FLUSH & ~Flag.SEND_FUA)},
        ["no SEND_FLUSH", "no SEND_FUA"],
    ),
    "FUA, which FLUSH does": ({"flags": int(FLAGS & ~Flag.SEND_FUA)}, []),
    "read-only": (
        {"flags": int(FLAGS | Flag.READ_ONLY)},
        ["no SEND_TRIM", "no SEND_WRITE_ZEROES", "it is read-only"],
    ),
    "blocks": (
        {"block_sizes": BlockSizes(4096, 4096, MIB)},
        ["minimum block 4096 instead of 512"],
    ),
    "payload": (
        {"block_sizes": BlockSizes(512, 4096, MIB // 2)},
        [f"maximum payload {MIB // 2} instead of {MIB}"],
    ),
    "a context": ({"contexts": ()}, ["no x:y"]),
}


@pytest.mark.parametrize("less", LESS)
def test_what_was_promised(less: str) -> None:
    changes, problems = LESS[less]
    now = replace(PROMISED, **changes)
    view = view_of(PROMISED)
    promised = offer(view, structured=True, selected=(MetaContext(1, "x:y"),))
    assert misfits(promised, PROMISED, now, compile_chain((), view_of(now))) == problems


def test_what_was_promised_of_blocks_that_had_to_be_obeyed() -> None:
    promised = offer(view_of(PROMISED, any_alignment=False), structured=True)
    now = replace(PROMISED, block_sizes=BlockSizes(4096, 4096, MIB))
    found = misfits(promised, PROMISED, now, compile_chain((), view_of(now, any_alignment=False)))
    assert "alignment 4096 instead of 512" in found


async def test_who_has_asked_before_a_switch_is_led_to_the_new_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever stands open since is not used: neither a negotiation nor an export that was opened for INFO."""

    class Looks(Policy):
        def prepares(self) -> bool:
            return True

        async def prepare(self, behind: View, read: Next) -> Self:
            await read(Asked(Cmd.READ, 0, 0, 512))
            return self

    for policies in ((), (Looks(),)):
        async with house(disk_of(MemoryDisk(SIZE))) as made:
            place(made.gateway, *policies)
            first = await made.client()
            assert await write(first) == 0
            late = made.comes()
            await late.greeting()
            late.negotiation.ask_info("", ())
            await late.answered()
            await made.pauses.switch("", made.at(disk_of(MemoryDisk(SIZE))))
            late.negotiation.go("", ())
            await late.answered()
            assert await read_back(late) == bytes(BLOCK)
            assert await read_back(first) == bytes(BLOCK)


async def test_a_pause_that_nobody_ends_of_a_server_that_has_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    serving: list[trio.CancelScope] = []
    server = disk_of(MemoryDisk(SIZE))
    there = True

    async def serve(stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            serving.append(scope)
            async with stream:
                await server.serve(stream)

    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            if not there:
                raise DialError("nobody is there")
            ours, theirs = socket_pair()
            nursery.start_soon(serve, theirs)
            return ours

        async with house(connect) as made:
            client = await made.client()
            assert await write(client) == 0
            await made.pauses.pause("")
            serving[-1].cancel()
            await trio.testing.wait_all_tasks_blocked()
            [session] = made.sessions()
            assert session.link_lost
            there = False
            with pytest.raises(NotDone, match=r"unreachable: nobody is there"):
                await made.pauses.resume("")
            there = True
            await made.pauses.resume("")
            assert await read_back(client) == CONTENT
            await made.pauses.pause("")
            serving[-1].cancel()
            assert await read_back(client) == CONTENT  # after 300 s
            await made.pauses.pause("")
            serving[-1].cancel()
            there = False
            assert await client.stream.receive_some() == b""  # after as much
            assert session.reason.startswith("upstream 'main' is gone: ")


async def test_who_is_about_to_open_it_waits_too(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        house(disk_of(MemoryDisk(SIZE))) as made,
        opening_slowly(made) as (slow, opened, _client),
    ):
        await made.pauses.pause("")
        slow._let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not opened.is_set()
        await made.pauses.resume("")
        await opened.wait()


async def test_who_is_about_to_open_it_is_led_to_the_new_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = MemoryDisk(SIZE)
    await one.write(0, CONTENT)
    async with (
        house(disk_of(one)) as made,
        opening_slowly(made) as (slow, opened, client),
    ):
        await made.pauses.switch("", made.at(disk_of(MemoryDisk(SIZE))))
        slow._let_go.set()
        await opened.wait()
        assert await read_back(client) == bytes(BLOCK)


async def test_who_has_just_opened_it_is_held(autojump_clock: trio.testing.MockClock) -> None:
    """A pause begins between its GO and the first of its requests."""

    class Moment(set[Opened]):
        def add(self, opened: Opened) -> None:
            super().add(opened)
            made.service.paused[""] = Paused()
            busy.extend(made.pauses.holding.busy(""))

    busy: list[str] = []
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        made.service.opening = Moment()
        await made.client()
        assert busy == ["a client that opens it"]
        assert made.pauses.holding.busy("") == []
        [session] = made.sessions()
        assert session.held


async def test_a_new_process_at_the_old_address(autojump_clock: trio.testing.MockClock) -> None:
    """Who has begun to negotiate with the old one is led to the new one."""
    connected = 0
    server = disk_of(MemoryDisk(SIZE))
    async with trio.open_nursery() as nursery:

        def connect() -> trio.SocketStream:
            nonlocal connected
            connected += 1
            ours, theirs = socket_pair()
            nursery.start_soon(server.serve, theirs)
            return ours

        async with house(connect) as made:
            client = await made.client()
            late = made.comes()
            await late.greeting()
            late.negotiation.ask_info("", ())
            await late.answered()
            assert connected == 2
            await made.pauses.switch("", None)
            assert connected == 3
            late.negotiation.go("", ())
            await late.answered()
            assert connected == 4
            assert await write(client) == await write(late) == 0


async def test_a_flush_that_has_failed_is_told_after_a_switch_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        [running] = made.service.running
        running.traffic.debt.has_to_hear("a FLUSH of the gateway failed", [])
        with pytest.raises(NotDone, match="a FLUSH of the gateway failed"):
            await made.pauses.switch("", None)
        await made.pauses.switch("", None, accept_loss=True)
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


async def test_other_names_stay_where_they_are(autojump_clock: trio.testing.MockClock) -> None:
    server = Server({"": MemoryDisk(SIZE), "x": MemoryDisk(SIZE)}, PLAIN)
    async with house(server) as made:
        here, there = await made.client(), await made.client("x")
        assert await write(there) == 0
        await made.pauses.switch("", made.at(disk_of(MemoryDisk(SIZE))))
        assert await read_back(there) == CONTENT
        assert await read_back(here) == bytes(BLOCK)


async def test_the_old_connection_is_closed_first(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk(SIZE)
    connected = most = 0

    async with house(disk_of(disk)) as made:
        client = await made.client()
        assert await write(client) == 0

        async def serve(stream: trio.SocketStream) -> None:
            nonlocal connected, most
            connected += 1
            most = max(most, connected)
            await disk_of(disk).serve(stream)
            connected -= 1

        async def connect() -> trio.SocketStream:
            await trio.testing.wait_all_tasks_blocked()
            ours, theirs = socket_pair()
            made._nursery.start_soon(serve, theirs)
            return ours

        one = Target(server_to("one", connect, disks=made.service.servers["main"].disks))
        for _ in range(3):
            await made.pauses.switch("", one, close_first=True)
            assert await read_back(client) == CONTENT
        assert most == 1
        larger = made.at(disk_of(MemoryDisk(2 * SIZE)))
        with pytest.raises(NotDone, match=r"does not fit.*it stays paused"):
            await made.pauses.switch("", larger, close_first=True)
        [done] = await made.pauses.resume("")
        assert "1 of them over new connections" in done
        assert await read_back(client) == CONTENT
        assert most == 1
        with pytest.raises(NotDone):
            await made.pauses.switch("", larger, close_first=True)
        made.service.switched[""].server.connector.connects = (partial(_nowhere, one),)
        await client.send(Cmd.READ, 0, BLOCK)
        # Nobody did anything for so long, nor came back for as long as a lost server is waited for.
        assert (await client.simple_reply())[1] == Errno.EIO
        assert await client.stream.receive_some() == b""


async def _nowhere(_target: Target) -> trio.SocketStream:
    raise DialError("there is nobody")


async def test_a_session_that_we_end_under_the_flush_of_a_pause_has_lost_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    go = trio.Event()
    hung: list[Request] = []

    def delay(request: Request) -> trio.Event | None:
        if request.command == Cmd.FLUSH and not hung:
            hung.append(request)
            return go
        return None

    server = Server({"": MemoryDisk(SIZE)}, PLAIN, faults=Faults(delay=delay))
    async with house(server) as made:
        for number, client in enumerate([await made.client(), await made.client()]):
            assert await write(client, number * BLOCK) == 0
        problems: list[str] = []

        async def pause() -> None:
            try:
                await made.pauses.pause("")
            except NotDone as error:
                problems.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            await trio.testing.wait_all_tasks_blocked()
            [busy] = [each for each in made.service.running if each.traffic.in_flight]
            busy.relaying.finish("access denied: a rule", 1)
        assert "the session has ended" in problems[0]
        go.set()
        [left] = made.service.running
        assert not left.traffic.debt.why


async def test_a_flush_that_fails_in_a_pause_is_a_loss_whoever_hears_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The server says so once, to the first that is asked; and what the others are told then is no comfort."""
    failing = [True]

    def reply(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command == Cmd.FLUSH and failing:
            failing.clear()
            return [encode_simple_reply(request.cookie, Errno.EIO)]
        return reply

    async with house(disk_of(MemoryDisk(SIZE), reply)) as made:
        clients = [await made.client() for _ in range(3)]
        for number, client in enumerate(clients):
            assert await write(client, number * BLOCK) == 0
        with pytest.raises(NotDone, match="a FLUSH failed"):
            await made.pauses.pause("")
        for client in clients:
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
