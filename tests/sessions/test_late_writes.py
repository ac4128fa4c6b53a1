"""WRITEs that an old server may still carry out after its connection was lost, through a gateway."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
import trio.testing

from gateway.config import Connections
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Request, Server
from gateway.embedded.disk import Data
from gateway.losses.survival import Doubt, Unanswered
from gateway.peer import UNKNOWN, Peer
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.sessions.holding import Holding
from gateway.upstream.mode import Mode
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import MIB
from tests.bundle.model import Process
from tests.embedded.peers import Client
from tests.sessions.asking import opened
from tests.sessions.gateways import Gateway
from tests.sessions.restarts import Restarts, restarting, went_back
from tests.tools.defaults import MODE, SURVIVAL, mode_with

SIZE = 8 * MIB
BLOCK = 4096
OLD, NEW = b"X" * BLOCK, b"Y" * BLOCK
LATE_SECONDS = SURVIVAL.late_write_seconds
PLAIN = PERSONALITIES["plain"]
WHOLE_BLOCKS = replace(PLAIN, block_sizes=BlockSizes(BLOCK, BLOCK, MIB))

OWN = MODE
SHARED = mode_with(Connections(shared=True))
TRUSTED = replace(SURVIVAL, unflushed=Doubt.ASSUME_DURABLE)
"""Here no server loses anything."""


@dataclass
class House:
    gateway: Gateway
    server: Restarts
    disk: MemoryDisk
    writer: Client
    other: Client
    lost_at: float

    async def late_write(self) -> None:
        """What the old server still had to do, it does now."""
        await self.disk.write(0, OLD)


@asynccontextmanager
async def after_a_loss(
    mode: Mode,
    personality: Personality = PLAIN,
    peer: Peer = UNKNOWN,
    flags: int = 0,
    others_asks: Sequence[tuple[Cmd, int, bytes]] = (),
    *,
    ends: bool = True,
    there: bool = True,
) -> AsyncIterator[House]:
    """The disk has `OLD` in its first block; the writer's WRITE of the same is answered, but was so after its
    connection was lost.

    `peer` has ended with that, if it `ends`. What the other asks hangs as well, and then only the writer's
    connection is lost. If the disk has something else by now (not `there`), the WRITE has no answer yet.
    """
    stuck = False

    def delay(request: Request) -> trio.Event | None:
        return trio.Event() if stuck and request.command == Cmd.WRITE else None

    def faults(number: int) -> Faults:
        return Faults(delay=delay) if number < (1 if mode.wanted.shared else 2) else Faults()

    disk = MemoryDisk(SIZE)
    mode = replace(mode, survival=TRUSTED)
    async with restarting(Server({"": disk}, personality, faults=faults), mode) as (
        gateway,
        server,
    ):
        gateway.service.servers["main"].connector.peer_of = lambda _stream: peer
        writer, other = await opened(gateway), await opened(gateway)
        async with writer.stream, other.stream:
            assert await command(writer, Cmd.WRITE, data=OLD) == 0
            assert await command(writer, Cmd.FLUSH) == 0
            stuck = True
            for what, offset, data in others_asks:
                await other.send(what, offset, data=data)
            await writer.send(Cmd.WRITE, 0, data=OLD, flags=flags)
            await trio.sleep(1)
            if others_asks:
                server.cut(0)
            else:
                server.kill(down=True)
                if not there:
                    await disk.write(0, bytes(BLOCK))
                server.down = False
            lost_at = trio.current_time()
            if isinstance(peer, Process) and ends:
                peer.ended = True
            if there:
                assert (await writer.simple_reply())[1] == 0
            yield House(gateway, server, disk, writer, other, lost_at)


async def command(
    client: Client,
    command: Cmd,
    offset: int = 0,
    length: int = 0,
    data: bytes = b"",
    flags: int = 0,
) -> int:
    await client.send(command, offset, length, data=data, flags=flags)
    return (await client.simple_reply())[1]


modes = pytest.mark.parametrize("mode", [OWN, SHARED], ids=["own", "shared"])
whoever = pytest.mark.parametrize("who", ["writer", "other"])


@modes
@whoever
@pytest.mark.parametrize("flags", [0, CmdFlag.FUA])
async def test_a_newer_write_is_not_undone_by_an_old_one_that_was_there(
    mode: Mode, who: str, flags: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with after_a_loss(mode, flags=flags) as house:
        writer = getattr(house, who)
        assert trio.current_time() < house.lost_at + LATE_SECONDS
        await writer.send(Cmd.WRITE, 0, data=NEW)
        await trio.sleep_until(house.lost_at + LATE_SECONDS - 1)
        await house.late_write()
        assert (await writer.simple_reply())[1] == 0
        assert trio.current_time() >= house.lost_at + LATE_SECONDS
        assert await house.disk.read(0, BLOCK) == NEW


@modes
@whoever
async def test_whatever_else_is_asked_meanwhile_does_not_wait(
    mode: Mode, who: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with after_a_loss(mode) as house:
        client = getattr(house, who)
        if mode is OWN:
            await went_back(house.gateway)  # and there as well
        assert (await client.simple_reply_to(Cmd.READ, 0, BLOCK))[1:] == (0, OLD)
        assert await command(client, Cmd.FLUSH) == 0
        assert await command(client, Cmd.WRITE, BLOCK, data=NEW) == 0
        assert trio.current_time() < house.lost_at + LATE_SECONDS


@modes
@pytest.mark.parametrize(
    "asked",
    [
        (Cmd.WRITE, 0, BLOCK),
        (Cmd.WRITE, BLOCK - 1, 2 * BLOCK),
        (Cmd.WRITE, 17, 5),
        (Cmd.WRITE_ZEROES, 0, BLOCK),
        (Cmd.WRITE_ZEROES, 0, SIZE),
        (Cmd.TRIM, 0, SIZE),
    ],
)
@pytest.mark.parametrize("personality", [PLAIN, WHOLE_BLOCKS], ids=["bytes", "blocks"])
async def test_everything_waits_that_writes_there(
    mode: Mode,
    asked: tuple[Cmd, int, int],
    personality: Personality,
    autojump_clock: trio.testing.MockClock,
) -> None:
    what, offset, length = asked
    data = b"Z" * length if what is Cmd.WRITE else b""
    async with after_a_loss(mode, personality) as house:
        if mode is OWN:
            await went_back(house.gateway)
        assert await command(house.other, what, offset, length, data=data) == 0
        assert trio.current_time() >= house.lost_at + LATE_SECONDS
        assert (
            house.gateway.service.disks.at(
                house.gateway.service.servers["main"], ""
            ).fences.standing
            == []
        )


@modes
async def test_nobody_waits_for_a_server_that_has_ended(
    mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    async with after_a_loss(mode, peer=Process()) as house:
        assert await command(house.other, Cmd.WRITE, data=NEW) == 0
        assert trio.current_time() < house.lost_at + LATE_SECONDS


@modes
async def test_who_had_ended_before_it_was_linked_to_is_not_who_serves(
    mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Process()
    peer.ended = True
    async with after_a_loss(mode, peer=peer) as house:
        assert await command(house.other, Cmd.WRITE, data=NEW) == 0
        assert trio.current_time() >= house.lost_at + LATE_SECONDS


async def test_what_was_under_way_before_waits_for_no_fence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The other's WRITE was sent before the writer had its answer, and its connection is lost later. What is
    found of it is answered as any is.
    """
    asks = [(Cmd.WRITE, 0, OLD)]
    async with after_a_loss(OWN, others_asks=asks) as house:
        await trio.sleep(1)
        house.server.cut(1)
        lost_at = trio.current_time()
        assert (await house.other.simple_reply())[1] == 0
        assert trio.current_time() < house.lost_at + LATE_SECONDS
        assert await command(house.writer, Cmd.WRITE, data=NEW) == 0
        assert trio.current_time() >= lost_at + LATE_SECONDS


@modes
async def test_a_wait_ends_with_the_server(
    mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Process()
    async with after_a_loss(mode, peer=peer, ends=False) as house:
        await house.other.send(Cmd.WRITE, 0, data=NEW)
        await trio.sleep(2)
        peer.ended = True
        assert (await house.other.simple_reply())[1] == 0
        assert trio.current_time() < house.lost_at + LATE_SECONDS


@modes
async def test_the_wait_of_what_is_not_there_ends_with_the_server(
    mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Process()
    async with after_a_loss(mode, peer=peer, ends=False, there=False) as house:
        await trio.sleep(2)
        assert await house.disk.read(0, BLOCK) == bytes(BLOCK)
        peer.ended = True
        assert (await house.writer.simple_reply())[1] == 0
        assert trio.current_time() < house.lost_at + LATE_SECONDS
        assert await house.disk.read(0, BLOCK) == OLD


async def test_who_comes_later_waits_as_well(autojump_clock: trio.testing.MockClock) -> None:
    """Though all who were there have gone, and what raised the fence with them."""
    async with after_a_loss(OWN) as house:
        for client in (house.writer, house.other):
            await client.stream.aclose()
        while house.gateway.service.running:
            await trio.sleep(0.1)
        gc.collect()  # which forgets what is not in use
        newcomer = await opened(house.gateway)
        async with newcomer.stream:
            assert trio.current_time() < house.lost_at + LATE_SECONDS
            assert await command(newcomer, Cmd.WRITE, data=NEW) == 0
            assert trio.current_time() >= house.lost_at + LATE_SECONDS


async def test_who_waits_may_leave(autojump_clock: trio.testing.MockClock) -> None:
    """`gateway_before` looks whether anything is left."""
    async with after_a_loss(OWN) as house:
        await house.other.send(Cmd.WRITE, 0, data=NEW)
        await trio.aclose_forcefully(house.other.stream)
        while len(house.gateway.service.running) > 1:
            await trio.sleep(1)


@modes
@pytest.mark.parametrize("when", ["at once", "while it is held"])
async def test_what_waits_of_who_has_gone_is_not_written(
    mode: Mode, when: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Others may have seen him go, and what they write then is newer."""
    async with after_a_loss(mode) as house:
        await house.other.send(Cmd.WRITE, 0, data=b"G" * BLOCK)
        await trio.sleep_until(house.lost_at + (5 if when == "at once" else LATE_SECONDS - 1))
        if when == "while it is held":
            for session in house.gateway.service.hub.sessions:
                session.hold()
        await trio.aclose_forcefully(house.other.stream)
        await trio.sleep_until(house.lost_at + LATE_SECONDS + 1)
        assert await house.disk.read(0, BLOCK) == OLD
        for session in list(house.gateway.service.hub.sessions):
            session.go_on()
        assert await command(house.writer, Cmd.WRITE, data=NEW) == 0
        await trio.sleep(LATE_SECONDS)
        assert await house.disk.read(0, BLOCK) == NEW


async def test_a_fence_stands_whoever_has_gone_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its client goes, and then the connection is lost over which it had something written."""

    def delay(request: Request) -> trio.Event | None:
        return trio.Event() if request.command == Cmd.WRITE and request.length == BLOCK else None

    def faults(number: int) -> Faults:
        return Faults(delay=delay) if not number else Faults()

    disk = MemoryDisk(SIZE)
    mode = replace(OWN, survival=TRUSTED)
    async with restarting(Server({"": disk}, faults=faults), mode) as (gateway, server):
        writer, other = await opened(gateway), await opened(gateway)
        await writer.send(Cmd.WRITE, 0, data=OLD)
        await trio.sleep(1)
        await trio.aclose_forcefully(writer.stream)
        await trio.sleep(1)
        server.cut(0)
        lost_at = trio.current_time()
        await trio.sleep(1)
        assert len(gateway.service.running) == 1
        busy = Holding(gateway.service).busy("")
        assert busy == ["what was being written when a connection was lost, and may yet be"]
        async with other.stream:
            assert await command(other, Cmd.WRITE, data=NEW) == 0
            assert trio.current_time() >= lost_at + LATE_SECONDS
            assert Holding(gateway.service).busy("") == []


class Stalled(MemoryDisk):
    """Nothing that is begun comes to an end."""

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        await trio.sleep_forever()


async def test_a_fence_stands_of_all_that_its_client_has_sent_whole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The server has stopped to read. Of what is unsent the kernel may have more than it says, over TLS."""
    mode = replace(OWN, survival=TRUSTED)
    async with restarting(Server({"": Stalled(SIZE)}), mode) as (gateway, server):
        writer, other = await opened(gateway), await opened(gateway)
        async with other.stream, trio.open_nursery() as nursery:
            nursery.start_soon(_writes_all_over, writer)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        [running] = [each for each in gateway.service.running if each.traffic.in_flight]
        session, traffic = running.relaying, running.traffic
        written = {
            (offset, offset + length)
            for ours, (_cookie, _word, offset, length) in traffic.in_flight.items()
            if ours != traffic.early.half_sent
        }
        sent_bytes, _to_client = session.bytes_relayed
        assert sent_bytes < sum(end - start for start, end in written)
        await trio.aclose_forcefully(writer.stream)
        server.cut(0)
        await trio.sleep(1)
        fences = running.disk.fences.standing
        assert {(each.start, each.end) for each in fences} == written


async def _writes_all_over(client: Client) -> None:
    """More than the server reads, and than fits into sockets."""
    for offset in range(0, SIZE, 2 * BLOCK):
        await client.send(Cmd.WRITE, offset, data=OLD)


@pytest.mark.parametrize("unknown", [Unanswered.REISSUE, Unanswered.EIO])
async def test_what_was_widened_has_others_bytes_in_it(
    unknown: Unanswered, autojump_clock: trio.testing.MockClock
) -> None:
    """The server counts in whole blocks, and the connection is lost of a WRITE of a part of one. Who writes
    another part waits, also where the first client is told that nobody knows: it is not told of the other's.
    """
    late: list[Request] = []

    def delay(request: Request) -> trio.Event | None:
        if late or request.command != Cmd.WRITE:
            return None
        late.append(request)
        return trio.Event()

    def faults(number: int) -> Faults:
        return Faults(delay=delay) if not number else Faults()

    disk = MemoryDisk(SIZE)
    mode = replace(OWN, survival=replace(TRUSTED, unknown_writes=unknown))
    server = Server({"": disk}, WHOLE_BLOCKS, faults=faults)
    async with restarting(server, mode) as (gateway, process):
        writer, other = await opened(gateway), await opened(gateway)
        async with writer.stream, other.stream:
            await writer.send(Cmd.WRITE, 0, data=OLD[:100])
            await trio.sleep(1)
            [old] = late
            assert old.length == BLOCK
            process.cut(0)
            lost_at = trio.current_time()
            await trio.sleep(1)
            assert await command(other, Cmd.WRITE, 200, data=NEW[:100]) == 0
            assert trio.current_time() >= lost_at + LATE_SECONDS


@modes
async def test_what_lies_behind_of_who_has_gone_is_not_written(
    mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    """More than may be under way: the rest is read when that is over."""
    disk = MemoryDisk(SIZE)
    async with restarting(Server({"": disk}), replace(mode, survival=TRUSTED)) as (gateway, server):
        writer, other = await opened(gateway), await opened(gateway)
        server.kill(down=True)
        async with writer.stream:
            for number in range(MAX_IN_FLIGHT + 64):
                await writer.send(Cmd.WRITE, number * 512, data=OLD[:512])
            await trio.sleep(1)
            writer.stream.socket.shutdown(socket.SHUT_WR)
            server.down = False
            while len(gateway.service.running) > 1:
                await trio.sleep(1)
        async with other.stream:
            assert await command(other, Cmd.FLUSH) == 0
    assert bytes(await disk.read(0, SIZE)) == bytes(SIZE)
