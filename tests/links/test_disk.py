"""Which exports are one disk, and what is done once for all who are on it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
import trio.testing

from gateway.config import Connections, parse
from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.hub.ending import LOST_SECONDS
from gateway.hub.hold_ups import LOOK_FOR_HOLD_UPS_SECONDS
from gateway.links import disk as disk_module
from gateway.links.disk import Disk, Disks
from gateway.links.trunk import Trunk
from gateway.losses.survival import Doubt
from gateway.protocol.errors import Refusal
from gateway.sessions.holding import NotDone
from gateway.sessions.service import Relayed
from gateway.sessions.whereabouts import Target
from gateway.upstream.configured import servers_of
from gateway.upstream.server import Server as Upstream
from gateway.wire.constants import Cmd, Errno
from gateway.wire.framing import EXTENDED
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import KIB, MIB
from gateway.wire.transmission import encode_request
from tests.embedded.peers import Client
from tests.sessions.asking import BLOCK, CONTENT, read_back, write
from tests.sessions.elsewhere import There, settled
from tests.sessions.houses import PLAIN, SIZE, House, house
from tests.tools.defaults import MODE, SURVIVAL, mode_with
from tests.upstream.servers import server_to

pytestmark = pytest.mark.real

SECTOR = 512
SHARED = 'connections = "shared"'
PER_CLIENT = 'connections = "per-client"'


@dataclass
class Two:
    """A gateway before a server with two disks, x and y, of which only blocks of 4096 bytes can be written."""

    made: House
    x: MemoryDisk
    y: MemoryDisk
    answers: trio.Event
    """The server answers READs from now on."""

    def target(self, name: str) -> Target:
        """A name of the same server, as by its URI."""
        return replace(self.made.at(self.made_of), name=name)

    @property
    def made_of(self) -> Server:
        disks = self.made.service.servers["main"].disks
        assert isinstance(disks, Server)
        return disks

    def disk_of(self, running: Relayed) -> Disk:
        return self.made.service.disk_at(running.opened.location)

    def trunks(self) -> list[Trunk]:
        uplinks = [running.opened.uplink for running in self.made.service.running]
        return [uplink.trunk for uplink in uplinks if uplink.trunk]


@asynccontextmanager
async def two(upstream: str = PER_CLIENT) -> AsyncIterator[Two]:
    answers = trio.Event()

    def delay(request: Request) -> trio.Event | None:
        return answers if request.command == Cmd.READ else None

    disks = {"x": MemoryDisk(SIZE), "y": MemoryDisk(SIZE)}
    personality = replace(PLAIN, block_sizes=BlockSizes(4 * KIB, 4 * KIB, MIB))
    server = Server(disks, personality, faults=Faults(delay=delay))
    async with house(server, upstream=upstream, export="") as made:
        yield Two(made, disks["x"], disks["y"], answers)


async def changes(client: Client, sector: int) -> None:
    await client.send(Cmd.WRITE, sector * SECTOR, data=bytes([sector + 1]) * SECTOR)


async def check_both(it: Two, disk: MemoryDisk, one: Client, other: Client) -> None:
    """Have two clients change parts of one block at the same time."""
    await changes(one, 0)
    await changes(other, 1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    it.answers.set()
    for client in (one, other):
        assert (await client.simple_reply())[1] == 0
    assert await disk.read(0, 2 * SECTOR) == b"\1" * SECTOR + b"\2" * SECTOR


# --- Who keeps out of whose way


@pytest.mark.parametrize("mode", [PER_CLIENT, SHARED, "connections = 2"])
@pytest.mark.parametrize("when", ["before it comes", "while it is there"])
@pytest.mark.parametrize(("switched", "to"), ["xy", "yx"])
async def test_who_was_switched_to_where_others_are_keeps_out_of_their_way(
    autojump_clock: trio.testing.MockClock, mode: str, when: str, switched: str, to: str
) -> None:
    async with two(mode) as it:
        one = await it.made.client(to)
        other = await it.made.client(switched) if when == "while it is there" else None
        await it.made.pauses.switch(switched, it.target(to))
        other = other or await it.made.client(switched)
        await check_both(it, it.y if to == "y" else it.x, one, other)
        [disk] = {it.disk_of(each) for each in it.made.service.running}
        assert len(set(it.trunks())) == (1 if mode == SHARED else len(it.trunks()))
        assert disk is it.made.service.disks.at(it.made.service.servers["main"], to)


async def test_after_a_switch_each_is_on_its_own_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who was on the disk that is left has nothing to do any more with who has left."""
    async with two() as it:
        gone, stays = await it.made.client("x"), await it.made.client("y")
        await it.made.pauses.switch("x", it.target("y"))
        await it.made.pauses.switch("y", it.target("x"))
        await changes(gone, 0)
        await changes(stays, 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        locks = [it.disk_of(each).locks for each in it.made.service.running]
        assert [each.busy for each in locks] == [True, True]
        assert locks[0] is not locks[1]
        it.answers.set()
        for client in (gone, stays):
            assert (await client.simple_reply())[1] == 0
        assert await it.y.read(0, SECTOR) == b"\1" * SECTOR
        assert await it.x.read(SECTOR, SECTOR) == b"\2" * SECTOR


# --- Disks that may be one


@dataclass
class Aliases:
    """A gateway before a server that has one disk under two names, a and b, in blocks of 4096 bytes."""

    made: House
    there: There
    disk: MemoryDisk
    answers: dict[Cmd, trio.Event]
    """The server answers commands of these kinds from then on."""

    async def both_are_there(self) -> bool:
        return await self.disk.read(0, 2 * SECTOR) == b"\1" * SECTOR + b"\2" * SECTOR


@asynccontextmanager
async def aliases(upstream: str = PER_CLIENT) -> AsyncIterator[Aliases]:
    disk, answers = MemoryDisk(SIZE), {Cmd.READ: trio.Event(), Cmd.WRITE: trio.Event()}

    def delay(request: Request) -> trio.Event | None:
        return answers.get(Cmd(request.command))

    personality = replace(PLAIN, block_sizes=BlockSizes(4 * KIB, 4 * KIB, MIB))
    server = Server(dict.fromkeys("ab", disk), personality, faults=Faults(delay=delay))
    async with trio.open_nursery() as nursery:
        there = There(server, nursery)
        async with house(there.connect, upstream=upstream, export="") as made:
            yield Aliases(made, there, disk, answers)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mode", [PER_CLIENT, SHARED, "connections = 2"])
@pytest.mark.parametrize("names", ["ab", "aa"])
async def test_a_server_may_have_one_disk_under_all_names(
    autojump_clock: trio.testing.MockClock, mode: str, names: str
) -> None:
    async with aliases(mode) as it:
        clients = [await it.made.client(name) for name in names]
        it.answers[Cmd.WRITE].set()
        for sector, client in enumerate(clients):
            await changes(client, sector)
        await settled()
        it.answers[Cmd.READ].set()
        for client in clients:
            assert (await client.simple_reply())[1] == 0
        assert await it.both_are_there()


async def test_names_are_disks_where_the_configuration_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Here it is mistaken, and so one of the changes is undone."""
    async with aliases("canonical-names = true") as it:
        clients = [await it.made.client(name) for name in "ab"]
        it.answers[Cmd.WRITE].set()
        for sector, client in enumerate(clients):
            await changes(client, sector)
        await settled()
        it.answers[Cmd.READ].set()
        for client in clients:
            assert (await client.simple_reply())[1] == 0
        assert not await it.both_are_there()


NOW_SECONDS = 1
"""By the clock of the test, which goes on only when all wait for it."""


@pytest.mark.parametrize("mode", [PER_CLIENT, SHARED, "connections = 2"])
@pytest.mark.parametrize("how", ["changes it", "zeroes it"])
@pytest.mark.parametrize("up", [True, False])
async def test_nobody_waits_for_what_becomes_of_a_link_of_another_name(
    autojump_clock: trio.testing.MockClock, mode: str, how: str, up: bool
) -> None:
    """Neither until it is made again, nor until what was lost with it may be written."""
    async with aliases(mode) as it:
        one, other = await it.made.client("a"), await it.made.client("b")
        if how == "changes it":
            await changes(one, 0)
        else:  # zeros are not looked for, but written anew after late-write-seconds
            await one.send(Cmd.WRITE, 0, data=bytes(BLOCK))
        await settled()
        await changes(other, 1)
        await settled()
        began = trio.current_time()
        it.there.up = up
        for scope in it.there.serving[: it.there.made // 2]:
            scope.cancel()
        for event in it.answers.values():
            event.set()
        assert (await other.simple_reply())[1] == 0
        assert trio.current_time() - began < NOW_SECONDS
        it.there.up = True
        assert (await one.simple_reply())[1] == 0
        # Then it is as before.
        await check_exclusion(it, one, other)


async def test_nobody_waits_for_who_comes_while_another_name_has_no_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with aliases(SHARED) as it:
        await it.made.client("a")
        other = await it.made.client("b")
        for event in it.answers.values():
            event.set()
        it.there.up = False
        it.there.serving[0].cancel()
        await settled()
        late = await it.made.client("a")
        await changes(late, 0)
        await settled()
        began = trio.current_time()
        await changes(other, 1)
        assert (await other.simple_reply())[1] == 0
        assert trio.current_time() - began < NOW_SECONDS
        it.there.up = True
        assert (await late.simple_reply())[1] == 0
        assert await it.both_are_there()


async def check_exclusion(it: Aliases, one: Client, other: Client) -> None:
    it.answers[Cmd.READ] = trio.Event()
    await changes(one, 0)
    await changes(other, 1)
    await settled()
    it.answers[Cmd.READ].set()
    for client in (one, other):
        assert (await client.simple_reply())[1] == 0
    assert await it.both_are_there()


@pytest.mark.parametrize("mode", [PER_CLIENT, SHARED])
async def test_nobody_waits_long_for_a_server_that_does_not_answer_another_name(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with aliases(mode) as it:
        one, other = await it.made.client("a"), await it.made.client("b")
        it.answers[Cmd.WRITE].set()
        await changes(one, 0)
        await settled()
        for _ in range(3):
            began = trio.current_time()
            assert await write(other) == 0
            assert trio.current_time() - began <= 2 * LOOK_FOR_HOLD_UPS_SECONDS
        assert trio.current_time() == began  # it waits for the first alone
        it.answers[Cmd.READ].set()
        assert (await one.simple_reply())[1] == 0
        await check_exclusion(it, one, other)


async def test_nobody_waits_long_for_a_client_of_another_name_that_is_not_cut_off_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with aliases() as it:
        one, other = await it.made.client("a"), await it.made.client("b")
        for event in it.answers.values():
            event.set()
        whole = encode_request(Cmd.WRITE, 0, 7, 0, BLOCK) + CONTENT
        await one.stream.send_all(whole[:100])
        await settled()
        began = trio.current_time()
        await changes(other, 1)
        assert (await other.simple_reply())[1] == 0
        assert trio.current_time() - began <= 2 * LOOK_FOR_HOLD_UPS_SECONDS
        await trio.sleep(2 * LOST_SECONDS)
        await one.stream.send_all(whole[100:])
        assert (await one.simple_reply())[:2] == (7, 0)


# --- Connections that are shared


async def test_a_guest_may_leave_the_connections_of_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two(SHARED) as it:
        it.answers.set()
        guest, at_home = await it.made.client("x"), await it.made.client("y")
        assert await write(guest) == 0
        await it.made.pauses.switch("x", it.target("y"))
        assert await read_back(guest) == bytes(BLOCK)
        [trunk] = set(it.trunks())
        with pytest.raises(NotDone, match="shares its connections with clients of 'x'"):
            await it.made.pauses.switch("y", it.target("x"))
        with pytest.raises(NotDone, match="shares its connections with clients of 'y'"):
            await it.made.pauses.switch("x", it.target("y"))
        with pytest.raises(NotDone, match="shares its connections with clients of 'y'"):
            await it.made.pauses.switch("x", None, close_first=True)
        await it.made.pauses.switch("x", None)
        assert await read_back(guest) == CONTENT
        assert await read_back(at_home) == bytes(BLOCK)
        assert len(set(it.trunks())) == 2
        assert trunk in it.trunks()
        assert await read_back(await it.made.client("y")) == bytes(BLOCK)
        assert it.trunks().count(trunk) == 2


TWO_UPSTREAMS = """
[[listen]]
uri = "nbd://here"
[upstream.a]
uri = "nbd://h"
connections = "shared"
[upstream.b]
uri = "{uri}"
connections = "shared"
[[export]]
name = "x"
upstream = "a"
"""


@pytest.mark.parametrize(
    ("uri", "agree"),
    [("nbd://h:10809", True), ("nbds://h", False)],
)
async def test_connections_are_not_shared_with_who_has_other_credentials(
    autojump_clock: trio.testing.MockClock, uri: str, agree: bool
) -> None:
    """Least of all may go in the clear what is to go over TLS."""
    config = parse(TWO_UPSTREAMS.format(uri=uri), "test")
    async with two(SHARED) as it, trio.open_nursery() as nursery:
        servers = servers_of(config, nursery, None).servers
        disk = it.made.service.disks.at(servers["a"], "x")
        assert disk is it.made.service.disks.at(servers["b"], "x")
        await it.made.client("x")
        [trunk] = it.trunks()
        trunk.server.recipe = servers["a"].recipe
        disk.trunk = trunk
        join = it.made.service.trunks.join
        assert (await join(disk, servers["a"], "x")).trunk is trunk
        if agree:
            assert (await join(disk, servers["b"], "x")).trunk is trunk
        else:
            with pytest.raises(Refusal, match="made with other credentials than those of 'b'"):
                await join(disk, servers["b"], "x")


async def test_who_comes_to_a_disk_whose_connections_are_shared_shares_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever its own upstream says, as after a reload: one might undo what the other has written."""
    async with two(SHARED) as it:
        first = await it.made.client("x")
        it.made.service.servers["main"].mode = MODE
        await it.made.client("x")
        assert len(set(it.trunks())) == 1
        assert len(it.trunks()) == 2
        await it.made.client("y")  # another disk
        assert len(it.trunks()) == 2
        await first.stream.aclose()


async def test_nobody_writes_beside_what_is_written_again_after_a_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two() as it:
        own = await it.made.client("x")
        server = it.made.service.servers["main"]
        replays = replace(SURVIVAL, unflushed=Doubt.REPLAY)
        server.mode = mode_with(Connections(shared=True), survival=replays)
        with pytest.raises(AssertionError, match="connections of their own to this disk"):
            await it.made.client("x")
        await own.stream.aclose()
        await trio.sleep(1)
        await it.made.client("x")
        assert len(it.trunks()) == 1
        await it.made.client("x")


# --- What is remembered, and how long


async def nowhere() -> trio.SocketStream:
    raise AssertionError("nobody connects here")


def lose(disk: Disk) -> None:
    """Have something be lost that nobody is there to be told of."""
    disk.losses.tell_the_next("gone", [(0, BLOCK)])
    disk.is_left()


def test_a_disk_is_remembered_as_long_as_it_is_in_use() -> None:
    server, disks = server_to("main", nowhere), Disks()
    x = disks.at(server, "x")
    assert disks.at(server, "x") is x
    assert disks.at(server, "y") is not x
    there = weakref.ref(x)
    del x
    gc.collect()
    assert there() is None


def test_a_disk_is_remembered_until_somebody_was_told_what_it_has_lost() -> None:
    server, disks = server_to("main", nowhere), Disks()
    lose(disks.at(server, "x"))
    gc.collect()
    x = disks.at(server, "x")
    debt = x.losses.open()
    assert (debt.why, debt.lost) == ("gone", [(0, BLOCK)])
    assert x.losses.answer(debt.read(), 0, "") == (Errno.EIO, "gone")
    x.losses.end(debt)
    x.is_left()
    del x, debt
    gc.collect()
    assert not disks.at(server, "x").losses.open().why


def has_to_hear(disks: Disks, server: Upstream, name: str) -> bool:
    return bool(disks.at(server, name).losses.open().why)


def tell(disks: Disks, server: Upstream, name: str) -> None:
    """Have a session open a disk, FLUSH, and leave."""
    disk = disks.at(server, name)
    debt = disk.losses.open()
    assert disk.losses.answer(debt.read(), 0, "")[0] == Errno.EIO
    disk.losses.end(debt)
    disk.is_left()
    gc.collect()


def test_of_many_disks_that_have_lost_something_the_first_are_known_by_name_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk_module, "MOST_KEPT", 3)
    server, disks = server_to("main", nowhere), Disks()
    for number in range(5):
        lose(disks.at(server, f"{number}"))
    gc.collect()
    first = disks.at(server, "0").losses.open()
    assert first.why == disk_module.NOT_REMEMBERED
    assert not first.lost
    assert disks.at(server, "4").losses.open().lost == [(0, BLOCK)]
    assert not has_to_hear(disks, server, "another")
    assert not has_to_hear(disks, server_to("other", nowhere), "1")
    assert has_to_hear(disks, server, "1")
    gc.collect()
    assert has_to_hear(disks, server, "1")  # it has only been asked for
    tell(disks, server, "1")
    assert not has_to_hear(disks, server, "1")


def test_beyond_that_each_disk_of_the_server_may_have_lost_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk_module, "MOST_KEPT", 1)
    monkeypatch.setattr(disk_module, "MOST_NAMED", 4)
    server, disks = server_to("main", nowhere), Disks()
    for number in range(6):
        lose(disks.at(server, f"{number}"))
        gc.collect()
    assert has_to_hear(disks, server, "0")  # nobody knows its name any more
    assert has_to_hear(disks, server, "another")
    tell(disks, server, "another")
    assert not has_to_hear(disks, server, "another")  # once for each name
    assert not has_to_hear(disks, server_to("other", nowhere), "0")


async def test_what_nobody_was_told_of_is_told_where_the_export_was_switched_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The other server has the same content, and so it lacks the same."""
    async with two() as it:
        it.answers.set()
        service = it.made.service
        lose(service.disks.at(service.servers["main"], "x"))
        with pytest.raises(NotDone, match=r"4096 bytes \(0-4095\) may be lost \(gone\)"):
            await it.made.pauses.switch("x", it.target("y"))
        await it.made.pauses.switch("x", it.target("y"), accept_loss=True)
        client = await it.made.client("x")
        assert (await client.simple_reply_to(Cmd.READ, 0, BLOCK))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


async def test_who_ends_leaves_the_disk_that_he_was_switched_to(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is looked at then: it is remembered if it has something to tell."""
    left: list[str] = []

    def look_at(_disks: Disks, disk: Disk) -> None:
        left.append(disk.key[1])

    monkeypatch.setattr(Disks, "_look_at", look_at)
    async with two() as it:
        client = await it.made.client("x")
        await it.made.pauses.switch("x", it.target("y"))
        left.clear()
        await client.stream.aclose()
        await trio.sleep(10)
        assert left == ["y"]


async def test_a_flush_that_fails_in_a_pause_is_told_to_all_who_are_on_the_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """By whatever name they came there; and not to those who are where one of them was."""
    failing: list[bool] = []

    def reply(request: Request, said: list[bytes]) -> list[bytes]:
        if request.command == Cmd.FLUSH and failing:
            failing.clear()
            return [EXTENDED.failure(request.cookie, 0, Errno.EIO)]
        return said

    disks = {"x": MemoryDisk(SIZE), "y": MemoryDisk(SIZE)}
    server = Server(disks, PLAIN, faults=Faults(on_reply=reply))
    async with house(server, upstream=SHARED, export="") as made:
        guest, at_home = await made.client("x"), await made.client("y")
        await made.pauses.switch("x", replace(made.at(server), name="y"))
        await made.pauses.switch("x", None)
        stranger = guest
        guest = await made.client("y")
        failing.append(True)
        assert await write(at_home) == 0
        with pytest.raises(NotDone, match="a FLUSH failed"):
            await made.pauses.pause("y")
        for client in (guest, at_home):
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
        assert (await stranger.simple_reply_to(Cmd.FLUSH))[1] == 0
