"""Exports that are paused and switched while their sessions have no links of their own, but share some, or have
several.
"""

from __future__ import annotations

import pytest
import structlog
import trio
import trio.testing

from gateway.access.chain import Placed
from gateway.embedded import PERSONALITIES, MemoryDisk, Request, Server
from gateway.links.trunk import Trunk
from gateway.net.drive import Stream
from gateway.sessions.holding import NotDone
from gateway.sessions.whereabouts import Target
from gateway.wire.constants import Cmd, Errno
from gateway.wire.framing import EXTENDED
from tests.embedded.peers import Client
from tests.sessions.asking import BLOCK, CONTENT, read_back, write
from tests.sessions.elsewhere import settled, two_servers
from tests.sessions.houses import SIZE, House, Slow, disk_of, house, opening_slowly
from tests.upstream.servers import server_to

MODES = {
    "shared": 'connections = "shared"',
    "spread": "connections = 3",
    "shared and spread": 'connections = "shared:3"',
    "watched": "stall-seconds = 5",
    "verified": 'connections = "shared"\nunflushed = "verify"',
    "replayed": 'connections = "shared:2"\nunflushed = "replay"\nsole-writer = true',
}
SHARED = MODES["shared"]
TWO_NAMES = SHARED + "".join(
    f'\n[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""' for name in "ab"
)


class Mute(Server):
    """It accepts, and says nothing."""

    async def serve(self, stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass


def trunks(made: House) -> set[Trunk]:
    uplinks = [running.opened.uplink for running in made.service.running]
    return {uplink.trunk for uplink in uplinks if uplink.trunk}


def tasks(made: House) -> list[int]:
    """How many tasks each session has."""
    nurseries = [running.nursery for running in made.service.running]
    return [len(nursery.child_tasks) for nursery in nurseries if nursery is not None]


@pytest.mark.parametrize("mode", MODES)
async def test_sessions_go_over_and_come_back(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        clients = [await made.client() for _ in range(3)]
        shared = "shared" in MODES[mode]
        count = max(each.decision.count for each in trunks(made))
        each_time = count * (1 if shared else 3)
        assert here.now == each_time
        assert await write(clients[0]) == 0
        target = there.target(made)
        for _ in range(3):
            assert await write(clients[1], BLOCK) == 0  # is flushed by us
            [done] = await made.pauses.switch("", target)
            assert done == "'': 3 sessions went over to another"
            await settled()
            assert (here.now, there.now) == (0, each_time)
            assert await read_back(clients[1]) == bytes(BLOCK)
            late = await made.client()
            assert await read_back(late) == bytes(BLOCK)
            assert there.now == each_time + (0 if shared else count)
            await late.stream.aclose()
            await settled()
            [done] = await made.pauses.switch("", None)
            assert await read_back(clients[2]) == CONTENT
            assert await read_back(clients[0], BLOCK) == CONTENT
            await settled()
            assert (here.now, there.now) == (each_time, 0)
        assert not made.service.switched
        assert len(trunks(made)) == (1 if shared else 3)
        assert tasks(made) == [1, 1, 1]  # which ends it with its trunk


@pytest.mark.parametrize("mode", MODES)
async def test_a_pause_flushes_and_holds(autojump_clock: trio.testing.MockClock, mode: str) -> None:
    asked: list[int] = []

    def record(request: Request, reply: list[bytes]) -> list[bytes]:
        asked.append(request.command)
        return reply

    async with house(disk_of(MemoryDisk(SIZE), record), upstream=MODES[mode]) as made:
        clients = [await made.client() for _ in range(2)]
        assert await write(clients[0]) == 0
        [done] = await made.pauses.pause("")
        assert "2 sessions held, 2 flushed" in done
        assert asked[0] == Cmd.WRITE
        assert set(asked[1:]) == {Cmd.FLUSH}
        asked.clear()
        await clients[1].send(Cmd.READ, 0, BLOCK)
        with trio.move_on_after(50):
            await clients[1].simple_reply()
            pytest.fail("it is held")
        await made.pauses.resume("")
        assert (await clients[1].simple_reply())[2] == CONTENT
        assert asked == [Cmd.READ]


async def test_a_flush_that_fails_is_told_to_all(autojump_clock: trio.testing.MockClock) -> None:
    failing = [True]

    def reply(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command == Cmd.FLUSH and failing:
            failing.clear()
            return [EXTENDED.failure(request.cookie, 0, Errno.ENOSPC)]
        return reply

    async with house(disk_of(MemoryDisk(SIZE), reply), upstream=SHARED) as made:
        clients = [await made.client() for _ in range(2)]
        assert await write(clients[0]) == 0
        with pytest.raises(NotDone, match="a FLUSH failed"):
            await made.pauses.switch("", None)
        for client in clients:
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


@pytest.mark.parametrize("mode", MODES)
async def test_the_old_connections_are_closed_first(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await made.client()
        [trunk] = trunks(made)
        count = trunk.decision.count
        assert await write(client) == 0
        target = here.target(made)
        [connect] = target.server.connector.connects

        async def connect_then() -> Stream:
            closed.append(all(each.closed.is_set() for each in before))
            return await connect()

        target.server.connector.connects = (connect_then,)
        for _ in range(3):
            closed: list[bool] = []
            before = trunks(made)
            await made.pauses.switch("", target, close_first=True)
            assert all(closed)
            assert await read_back(client) == CONTENT
        assert here.most == count
        there.up = False
        with pytest.raises(NotDone, match="unreachable: nobody is there; it stays paused"):
            await made.pauses.switch("", there.target(made), close_first=True)
        await settled()
        assert here.now == 0
        [session] = made.sessions()
        assert session.link_lost
        [done] = await made.pauses.resume("")
        assert "1 of them over new connections" in done
        assert await read_back(client) == CONTENT
        assert here.most == count


@pytest.mark.parametrize("paused", [True, False])
async def test_what_does_not_fit_changes_nothing(
    autojump_clock: trio.testing.MockClock, paused: bool
) -> None:
    async with two_servers() as (made, here, there):
        there.server = disk_of(MemoryDisk(2 * SIZE))
        clients = [await made.client() for _ in range(2)]
        assert await write(clients[0]) == 0
        before = trunks(made)
        if paused:
            await made.pauses.pause("")
        with pytest.raises(NotDone, match=f"size {2 * SIZE} instead of {SIZE}"):
            await made.pauses.switch("", there.target(made))
        assert bool(made.service.paused) is paused
        if paused:
            await made.pauses.resume("")
        assert trunks(made) == before
        assert await read_back(clients[1]) == CONTENT
        assert await read_back(await made.client()) == CONTENT
        await settled()
        assert (here.made, there.now) == (1, 0)


# --- Connections that die in a pause


@pytest.mark.parametrize("seconds", [1, 20, 200])
@pytest.mark.parametrize("mode", MODES)
async def test_connections_that_are_lost_in_a_pause(
    autojump_clock: trio.testing.MockClock, mode: str, seconds: float
) -> None:
    """After 20 s they are still looked for, after 200 s given up; sessions live in any case."""
    async with two_servers(f"{MODES[mode]}\nconnect-seconds = 1") as (made, here, _there):
        clients = [await made.client() for _ in range(2)]
        assert await write(clients[0]) == 0
        await made.pauses.pause("", lasts=1000)
        here.die()
        await trio.sleep(seconds)
        assert len(made.sessions()) == 2
        with pytest.raises(NotDone, match="unreachable"):
            await made.pauses.resume("")
        here.up = True
        await trio.sleep(100)  # longer than any back-off
        done = await made.pauses.resume("")
        assert "2 sessions go on" in done[0]
        assert await read_back(clients[0]) == await read_back(clients[1]) == CONTENT
        assert (await clients[0].simple_reply_to(Cmd.FLUSH))[1] == 0
        assert await read_back(await made.client()) == CONTENT
        if "shared" in MODES[mode]:
            [trunk] = trunks(made)
            await settled()
            assert here.now == trunk.decision.count


async def test_a_server_that_comes_back_in_a_pause_is_used_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers() as (made, here, _there):
        client = await made.client()
        assert await write(client) == 0
        before = trunks(made)
        await made.pauses.pause("", lasts=1000)
        here.die()
        here.up = True
        await trio.sleep(10)
        [done] = await made.pauses.resume("")
        assert done == "'': 1 session goes on"
        assert trunks(made) == before
        assert await read_back(client) == CONTENT


async def test_a_pause_ends_by_itself_and_there_is_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers() as (made, here, _there):
        client = await made.client()
        [session] = made.sessions()
        await made.pauses.pause("")
        here.die()
        await trio.sleep(250)
        assert session.held
        assert session.link_lost
        assert await client.stream.receive_some() == b""
        assert session.reason.startswith("upstream 'main' is gone: the connection")


async def test_what_is_lost_after_a_switch_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """The ledger knows who goes on with another traffic."""
    async with two_servers() as (made, _here, there):
        clients = [await made.client() for _ in range(2)]
        await made.pauses.switch("", there.target(made))
        assert await write(clients[0]) == 0
        there.die()
        there.up = True
        for client in clients:
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
            assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


# --- Others


async def test_other_names_of_the_export_are_not_taken_along(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers(TWO_NAMES) as (made, here, there):
        one, other = await made.client("a"), await made.client("b")
        assert here.now == 1
        for close_first in (False, True):
            with pytest.raises(NotDone, match="shares its connections with clients of 'b'"):
                await made.pauses.switch("a", there.target(made), close_first=close_first)
        assert not made.service.paused
        assert there.made == 0
        # One of them may be paused, and the other goes on, also if the server dies meanwhile.
        await made.pauses.pause("a")
        assert await write(other) == 0
        assert (await other.simple_reply_to(Cmd.FLUSH))[1] == 0
        here.die()
        here.up = True
        assert await read_back(other) == CONTENT
        [done] = await made.pauses.resume("a")
        assert done == "'a': 1 session goes on"
        assert len(trunks(made)) == 1
        assert await read_back(one) == CONTENT
        await other.stream.aclose()
        await settled()
        await made.pauses.switch("a", there.target(made))
        assert await read_back(one) == bytes(BLOCK)
        assert await read_back(await made.client("b")) == CONTENT
        assert (here.now, there.now) == (1, 1)
        # The way back leads to the connection that others have by now.
        await made.pauses.switch("a", None)
        assert await read_back(one) == CONTENT
        await settled()
        assert (here.now, there.now) == (1, 0)
        assert len(trunks(made)) == 1


async def test_who_comes_in_the_middle_of_a_switch_is_not_taken_along(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers(TWO_NAMES) as (made, _here, there):
        one = await made.client("a")
        assert await write(one) == 0
        others: list[Client] = []

        async def connect() -> trio.SocketStream:
            others.append(await made.client("b"))
            return there.connect()

        main = made.service.servers["main"]
        target = Target(server_to("another", connect, disks=there.connect, mode=main.mode))
        with pytest.raises(NotDone, match="shares its connections with clients of 'b'"):
            await made.pauses.switch("a", target)
        assert await read_back(one) == await read_back(others[0]) == CONTENT
        await settled()
        assert there.now == 0


@pytest.mark.parametrize("to_another", [True, False])
async def test_who_has_asked_before_a_switch_is_led_to_the_new_connection(
    autojump_clock: trio.testing.MockClock, to_another: bool
) -> None:
    async with two_servers() as (made, here, there):
        client = await made.client()
        late = made.comes()
        await late.greeting()
        late.negotiation.ask_info("", ())
        await late.answered()
        assert here.made == 1
        before = trunks(made)
        await made.pauses.switch("", there.target(made) if to_another else None)
        late.negotiation.go("", ())
        await late.answered()
        await settled()
        assert (here.now, there.now) == ((0, 1) if to_another else (1, 0))
        assert len(trunks(made)) == 1
        assert trunks(made) != before
        assert await write(late) == 0
        assert await read_back(client) == CONTENT


async def test_nobody_is_there_but_one_who_asks(autojump_clock: trio.testing.MockClock) -> None:
    async with two_servers() as (made, here, _there):
        late = made.comes()
        await late.greeting()
        late.negotiation.ask_info("", ())
        await late.answered()
        await made.pauses.switch("", None)
        assert here.made == 2  # for a look at what the next client will have
        assert await write(await made.client()) == 0
        assert here.made == 3


async def test_who_is_about_to_open_it_is_led_there(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk(SIZE)
    await disk.write(0, CONTENT)
    async with (
        two_servers(disk=disk) as (made, here, there),
        opening_slowly(made) as (slow, opened, client),
    ):
        await made.pauses.switch("", there.target(made))
        slow._let_go.set()
        await opened.wait()
        assert await read_back(client) == bytes(BLOCK)
        await settled()
        assert (here.now, there.now) == (0, 1)


async def test_who_is_about_to_open_another_name_goes_along(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else one export would have two trunks, which know nothing of each other."""
    async with two_servers(TWO_NAMES) as (made, here, _there):
        await made.client("a")
        slow, late, opened = Slow(), made.comes(), trio.Event()
        made.service.access._of_exports = dict.fromkeys(range(2), (Placed(slow, "slow"),))

        async def come() -> None:
            await late.go("b", structured=False)
            opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked()
            await made.pauses.switch("a", None)
            slow._let_go.set()
        await settled()
        assert len(made.service.running) == 2
        assert len(trunks(made)) == 1
        assert here.now == 1


# --- What the log says


@pytest.mark.parametrize("mode", ["2", '"shared:2"'])
async def test_why_there_are_fewer_connections_is_said_once(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    reason = "one connection instead of 2: the server does not offer CAN_MULTI_CONN"
    with structlog.testing.capture_logs() as said:
        server = Server(
            {"": MemoryDisk(SIZE), "x": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0-incoherent"]
        )
        async with house(server, upstream=f"connections = {mode}") as made:
            for _ in range(3):
                client = await made.client()
                await client.stream.aclose()
                await settled()
            count = [line["event"].startswith(reason) for line in said].count(True)
            assert count == 1, said
            await made.client("x")
    [first, second] = [line for line in said if line["event"].startswith(reason)]
    assert (first["export"], second["export"]) == ("", "x")
    assert first["log_level"] == "warning"


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ('connections = "per-client"', {}),
        ("connections = 2", {"connections": 2}),
        ('connections = "shared"', {"connections": 1, "shared": True}),
        ('connections = "shared:2"', {"connections": 2, "shared": True}),
    ],
)
async def test_a_session_says_what_connections_it_has(
    autojump_clock: trio.testing.MockClock, mode: str, shown: dict[str, object]
) -> None:
    with structlog.testing.capture_logs() as said:
        async with house(disk_of(MemoryDisk(SIZE)), upstream=mode) as made:
            await made.client()
    [begun] = [line for line in said if line["event"] == "session begins"]
    assert {key: begun[key] for key in ("connections", "shared") if key in begun} == shown


async def test_a_recovery_says_once_what_it_does(autojump_clock: trio.testing.MockClock) -> None:
    holds = [True]

    def never(request: Request, reply: list[bytes]) -> list[bytes]:
        return [] if holds and request.command == Cmd.WRITE and request.offset else reply

    with structlog.testing.capture_logs() as said:
        async with two_servers() as (made, here, _there):
            here.server = disk_of(MemoryDisk(SIZE), never)
            clients = [await made.client() for _ in range(2)]
            assert await write(clients[0]) == 0
            for number in (1, 2, 3):
                await clients[1].send(Cmd.WRITE, number * BLOCK, data=CONTENT)
            await settled()
            holds.clear()
            here.server = disk_of(MemoryDisk(SIZE))  # nothing of it is there
            here.die()
            here.up = True
            for _ in range(3):
                assert (await clients[1].simple_reply())[1] == 0
            for client in clients:
                assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
    [again] = [line for line in said if "issued again" in line["event"]]
    assert (again["writes"], again["bytes"]) == (3, 3 * BLOCK)
    assert 29 < again["wait_seconds"] <= 30
    [lost] = [line for line in said if "may be lost" in line["event"]]
    assert (lost["sessions"], lost["bytes"]) == (2, BLOCK)
    assert lost["log_level"] == "warning"


@pytest.mark.parametrize("paused", [True, False])
async def test_a_session_that_has_lost_its_own_link_is_switched(
    autojump_clock: trio.testing.MockClock, paused: bool
) -> None:
    """It is in a bundle for a while, which does not lead it back to the old server afterwards."""
    async with two_servers("") as (made, here, there):
        client = await made.client()
        assert await write(client) == 0
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
        here.die()
        await settled()
        assert len(trunks(made)) == 1
        here.up = True
        await client.send(Cmd.READ, 0, BLOCK)
        assert (await client.simple_reply())[2] == CONTENT
        if paused:
            await made.pauses.pause("", lasts=1000)
        await made.pauses.switch("", there.target(made))
        await trio.sleep(60)
        if paused:
            await made.pauses.resume("")
        assert not trunks(made)
        assert await read_back(client) == bytes(BLOCK)
        assert (here.now, there.now) == (0, 1)
        assert tasks(made) == [0]
        # And it survives there as well.
        assert await write(client) == 0
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
        there.die()
        there.up = True
        assert await read_back(client) == CONTENT
        assert (here.now, there.now) == (0, 1)


# --- Several pauses that end


SILENT_SECONDS = 5
"""How long `gateway_before` negotiates with a server that says nothing."""
EACH_NAME = "".join(
    f'\n[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""' for name in "abcd"
)


@pytest.mark.parametrize("later", [0, 1], ids=["together", "one after the other"])
async def test_pauses_that_end_by_themselves_wait_for_a_silent_server_once(
    autojump_clock: trio.testing.MockClock, later: float
) -> None:
    async with two_servers(EACH_NAME) as (made, here, _there):
        for name in "abcd":
            await made.client(name)
        for name in "abcd":
            await made.pauses.pause(name, lasts=100)
            await trio.sleep(later)
        here.die()
        here.up, here.server = True, Mute({}, PERSONALITIES["plain"])
        paused_until = trio.current_time() + 100 - 4 * later
        while made.service.paused:
            await trio.sleep(0.1)
        rounds = 2 if later else 1  # those that end while the first is seen to are the second
        assert trio.current_time() - paused_until < rounds * SILENT_SECONDS + 1


async def test_a_pause_that_ends_does_not_wait_for_the_server_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers(EACH_NAME) as (made, here, there):
        first, *_more, other = [await made.client(name) for name in "abcd"]
        await made.pauses.switch("d", there.target(made))
        await made.pauses.pause(["a", "b", "c", "d"], lasts=100)
        here.die()
        here.up, here.server = True, Mute({}, PERSONALITIES["plain"])
        begun = trio.current_time()
        assert await read_back(other) == bytes(BLOCK)
        assert trio.current_time() - begun < 101
        assert list(made.service.paused) == ["a", "b", "c"]
        here.server = disk_of(MemoryDisk(SIZE))
        here.die()
        here.up = True
        assert await read_back(first) == bytes(BLOCK)


async def test_names_that_have_lost_what_they_shared_go_on_one_by_one_and_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for exports in (["a", "b"], ["a"], ["b"]):
        async with two_servers(SHARED + EACH_NAME) as (made, here, _there):
            clients = {name: await made.client(name) for name in "ab"}
            await made.pauses.pause(["a", "b"], lasts=1000)
            here.die()
            await trio.sleep(200)
            here.up = True
            await trio.sleep(50)
            await made.pauses.resume(exports)
            for name in exports:
                assert await read_back(clients[name]) == bytes(BLOCK)
            if made.service.paused:
                await made.pauses.resume(list(made.service.paused))
            for client in clients.values():
                assert await read_back(client) == bytes(BLOCK)
            assert len(trunks(made)) == 1
