"""What is opened, and compared, before any client is held; and that all of a command has one limit of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.embedded.personality import proper_flags
from gateway.sessions.holding import NotDone
from gateway.sessions.whereabouts import Target
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.transmission import encode_request
from policies.readonly import Readonly
from tests.embedded.peers import socket_pair
from tests.sessions.asking import BLOCK, CONTENT, read_back, write
from tests.sessions.elsewhere import Slowly, There, settled, two_servers
from tests.sessions.houses import PLAIN, SIZE, disk_of, house
from tests.sessions.placed import place
from tests.upstream.servers import server_to

MODES = {"per client": "", "shared": 'connections = "shared"', "several": "connections = 2"}
READ_ONLY = replace(
    PLAIN, flags=lambda disk, structured: proper_flags(disk, structured) | Flag.READ_ONLY
)
TWO_NAMES = "".join(
    f'\n[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""' for name in "ab"
)


@pytest.mark.parametrize("mode", MODES)
async def test_nobody_is_held_while_it_is_opened_elsewhere(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    """Who comes meanwhile goes along."""
    async with house(disk_of(MemoryDisk(SIZE)), upstream=MODES[mode]) as made:
        client = await made.client()
        slow = Slowly(made, disk_of(MemoryDisk(SIZE)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.pauses.switch, "", slow.target())
            await slow.asked.wait()
            assert not made.service.paused
            assert await write(client) == 0
            assert await read_back(client) == CONTENT
            late = await made.client()
            assert await write(late, BLOCK) == 0
            slow.may.set()
        for each in (client, late):
            assert await read_back(each) == bytes(BLOCK)
        await settled()
        assert slow.now == {"per client": 2, "shared": 1, "several": 4}[mode]


@pytest.mark.parametrize("mode", MODES)
async def test_a_server_that_does_not_open_it_costs_nobody_anything(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with house(disk_of(MemoryDisk(SIZE)), upstream=MODES[mode]) as made:
        client = await made.client()
        slow = Slowly(made, disk_of(MemoryDisk(SIZE)))
        longest = [0.0]

        async def writes() -> None:
            while True:
                begun = trio.current_time()
                assert await write(client) == 0
                longest[0] = max(longest[0], trio.current_time() - begun)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes)
            begun = trio.current_time()
            with pytest.raises(NotDone, match="slow has not opened it within 2 s"):
                await made.pauses.switch("", slow.target(), seconds=2)
            assert trio.current_time() - begun == pytest.approx(2, abs=0.1)
            nursery.cancel_scope.cancel()
        assert longest[0] < 0.1
        assert not made.service.switched


async def test_the_limit_is_one_for_all_of_it(autojump_clock: trio.testing.MockClock) -> None:
    """What opening it has taken, is not there for what is under way; and others' commands count as well."""

    async def connect() -> trio.SocketStream:
        await trio.sleep(1.5)
        ours, theirs = socket_pair()
        made._nursery.start_soon(disk_of(MemoryDisk(SIZE)).serve, theirs)
        return ours

    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        target = Target(server_to("another", connect))
        whole = encode_request(Cmd.WRITE, 0, 7, 0, BLOCK) + CONTENT
        await client.stream.send_all(whole[:100])
        await settled()
        begun = trio.current_time()
        with pytest.raises(NotDone, match=r"within 2 s did not come to an end: .*half a request"):
            await made.pauses.switch("", target, seconds=2)
        assert trio.current_time() - begun == pytest.approx(2, abs=0.1)
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(NotDone, match="half a request"):
                    await made.pauses.pause("", seconds=20)

            nursery.start_soon(waits)
            await settled()
            begun = trio.current_time()
            with pytest.raises(NotDone, match="others' commands took longer than 3 s"):
                await made.pauses.switch("", target, seconds=3)
            assert trio.current_time() - begun == pytest.approx(3, abs=0.1)


async def test_a_connection_that_dies_before_they_go_over_is_made_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A command that is under way takes its time, and the server is restarted meanwhile. Who went over to a
    connection that is gone would end.
    """
    go = trio.Event()

    def delay(request: Request) -> trio.Event | None:
        return go if request.command == Cmd.READ else None

    async with two_servers("reconnect-seconds = 0") as (made, here, there):
        here.server = Server({"": MemoryDisk(SIZE)}, PLAIN, faults=Faults(delay=delay))
        client = await made.client()
        await client.send(Cmd.READ, 0, BLOCK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.pauses.switch, "", there.target(made))
            await settled()
            assert made.service.paused
            assert there.now == 1
            there.die()
            there.up = True
            await settled()
            go.set()
        await client.simple_reply()
        assert await write(client) == 0
        assert (there.made, there.now) == (2, 1)


async def test_shared_connections_that_are_given_up_before_they_go_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    go = trio.Event()

    def delay(request: Request) -> trio.Event | None:
        return go if request.command == Cmd.READ else None

    async with two_servers(MODES["shared"] + "\nreconnect-seconds = 0") as (made, here, there):
        here.server = Server({"": MemoryDisk(SIZE)}, PLAIN, faults=Faults(delay=delay))
        client = await made.client()
        await client.send(Cmd.READ, 0, BLOCK)
        async with trio.open_nursery() as nursery:

            async def switch() -> None:
                with pytest.raises(NotDone, match="the connections to another were lost"):
                    await made.pauses.switch("", there.target(made))

            nursery.start_soon(switch)
            await settled()
            assert there.now == 1
            there.die()
            there.up = True
            await settled()
            go.set()
        assert (await client.simple_reply())[1] == 0
        assert not made.service.switched
        assert await write(client) == 0


@pytest.mark.parametrize("close_first", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_names_of_one_disk_that_are_taken_together(
    autojump_clock: trio.testing.MockClock, mode: str, close_first: bool
) -> None:
    async with two_servers(MODES[mode] + TWO_NAMES) as (made, here, there):
        one, other = await made.client("a"), await made.client("b")
        assert await write(one) == 0
        done = await made.pauses.switch(["a", "b"], there.target(made), close_first=close_first)
        assert done == [f"{name!r}: 1 session went over to another" for name in "ab"]
        await settled()
        assert (here.now, there.now) == (0, {"per client": 2, "shared": 1, "several": 4}[mode])
        assert await write(one) == 0
        assert await read_back(other) == CONTENT
        done = await made.pauses.pause(["a", "b"])
        assert [each[:19] for each in done] == ["'a': 1 session held", "'b': 1 session held"]
        await made.pauses.resume(["a", "b"])


async def test_if_one_of_them_does_not_fit_none_is_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disks = {name: MemoryDisk(SIZE) for name in "ab"}
    async with trio.open_nursery() as nursery:
        there = There(Server({**disks, "b": MemoryDisk(2 * SIZE)}, PLAIN), nursery)
        async with house(Server(disks, PLAIN)) as made:
            one = await made.client("a")
            assert await write(one) == 0
            for connected in (False, True):
                if connected:
                    await made.client("b")
                with pytest.raises(NotDone, match="does not fit: size"):
                    await made.pauses.switch(["a", "b"], there.target(made))
            assert await read_back(one) == CONTENT
            assert not made.service.switched
        nursery.cancel_scope.cancel()


# --- Nobody is connected

OTHERS: dict[str, tuple[Callable[[], Server], str]] = {
    "smaller": (lambda: disk_of(MemoryDisk(SIZE // 2)), f"size {SIZE // 2} instead of {SIZE}"),
    "another name": (lambda: Server({"x": MemoryDisk(SIZE)}, PLAIN), "ERR_UNKNOWN"),
    "read-only": (
        lambda: Server({"": MemoryDisk(SIZE)}, READ_ONLY),
        "it is read-only",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", OTHERS)
async def test_what_does_not_fit_is_found_out_without_any_client(
    autojump_clock: trio.testing.MockClock, mode: str, other: str
) -> None:
    make, words = OTHERS[other]
    async with two_servers(MODES[mode]) as (made, here, there):
        there.server = make()
        with pytest.raises(NotDone, match=words):
            await made.pauses.switch("", there.target(made))
        assert not made.service.switched
        assert not made.service.paused
        await settled()
        assert (here.now, there.now) == (0, 0)
        assert await write(await made.client()) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_it_is_switched_without_any_client(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        notes: list[str] = []
        [done] = await made.pauses.switch("", there.target(made), note=notes.append)
        assert done == "'': 0 sessions went over to another"
        assert not notes
        await settled()
        assert (here.now, there.now) == (0, 0)
        assert await read_back(await made.client()) == bytes(BLOCK)
        await settled()
        assert here.now == 0
        assert there.now


async def test_what_the_server_says_counts_whoever_is_connected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A client that only reads was never promised that it may write; the next one will be."""
    async with two_servers("") as (made, _here, there):
        there.server = Server({"": MemoryDisk(SIZE)}, READ_ONLY)
        place(made.gateway, Readonly())
        client = await made.client()
        assert (await client.simple_reply_to(Cmd.TRIM, 0, BLOCK))[1] == Errno.EPERM
        with pytest.raises(NotDone, match="it is read-only"):
            await made.pauses.switch("", there.target(made))


@pytest.mark.parametrize("named", [True, False])
async def test_a_server_that_has_gone_may_be_left_if_the_name_is_sure(
    autojump_clock: trio.testing.MockClock, named: bool
) -> None:
    """It cannot be compared with then, which is said."""
    async with two_servers(TWO_NAMES if named else "") as (made, here, there):
        here.up = False
        notes: list[str] = []
        if not named:
            with pytest.raises(NotDone, match="whether there is an export 'a' is not known"):
                await made.pauses.switch("a", there.target(made))
            return
        await made.pauses.switch("a", there.target(made), note=notes.append)
        assert "'a' was not compared with what it was at main" in notes[0]
        assert "nobody is there" in notes[0]
        assert await write(await made.client("a")) == 0
        assert there.now == 1


# --- A FLUSH of others


@pytest.mark.parametrize("close_first", [True, False])
async def test_another_name_has_had_the_link_flushed(
    autojump_clock: trio.testing.MockClock, close_first: bool
) -> None:
    """What was written over the link of one client has to be covered for the FLUSH of another: so the gateway
    sends a FLUSH over it, which is still under way when the switch has had its own answered.
    """
    flushes: list[trio.Event] = []
    holds = [True]

    def delay(request: Request) -> trio.Event | None:
        if request.command != Cmd.FLUSH or not holds:
            return None
        flushes.append(trio.Event())
        return flushes[-1]

    server = Server({"": MemoryDisk(SIZE)}, PLAIN, faults=Faults(delay=delay))
    async with trio.open_nursery() as nursery:
        here = There(server, nursery)
        async with house(here.connect, upstream=TWO_NAMES) as made:
            one = await made.client("a")
            assert await write(one) == 0
            other = await made.client("b")  # whose link came later, and proves nothing
            [session] = [each.relaying for each in made.service.running if each.name == "a"]
            assert session is not None
            there = There(disk_of(MemoryDisk(SIZE)), nursery)
            done: list[list[str]] = []

            async def switch() -> None:
                target = there.target(made)
                done.append(await made.pauses.switch("a", target, close_first=close_first))

            async with trio.open_nursery() as switching:
                switching.start_soon(switch)
                await settled()
                [ours] = flushes  # of the switch
                await other.send(Cmd.FLUSH)
                await settled()
                _, theirs = flushes  # of the other client
                theirs.set()
                await settled()
                _, _, proof = flushes
                ours.set()
                holds.clear()
                await trio.sleep(1)
                assert session.held
                assert not session.quiet
                assert not done
                assert not session.link_lost
                proof.set()
                assert (await other.simple_reply())[1] == 0
            assert done == [["'a': 1 session went over to another"]]
            assert await read_back(one) == bytes(BLOCK)
            assert await read_back(other) == CONTENT
            assert not session.ended.is_set()
            assert (await one.simple_reply_to(Cmd.FLUSH))[1] == 0
        nursery.cancel_scope.cancel()


# --- Who has asked goes in the middle of it


@pytest.mark.parametrize("to_another", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_connections_that_were_closed_first_are_made_again_if_who_asked_has_gone(
    autojump_clock: trio.testing.MockClock, mode: str, to_another: bool
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await made.client()
        assert await write(client) == 0
        slow = Slowly(made, there.server)
        main = made.service.servers["main"]
        connects, opening = main.connector.connects, trio.Event()

        async def hang() -> trio.SocketStream:
            opening.set()
            await trio.sleep_forever()
            raise AssertionError

        if not to_another:
            main.connector.connects = (hang,)
        asked = trio.CancelScope()

        async def switch() -> None:
            with asked:
                await made.pauses.switch(
                    "", slow.target() if to_another else None, close_first=True
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch)
            await (slow.asked if to_another else opening).wait()
            await settled()
            assert here.now == 0
            assert made.service.paused
            main.connector.connects = connects
            asked.cancel()
        assert not made.service.paused
        assert not made.service.switched
        assert await read_back(client) == CONTENT
        assert not [each for each in made.sessions() if each.held]
        await settled()
        assert here.now == (2 if mode == "several" else 1)


async def test_connections_that_were_closed_first_and_cannot_be_made_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It stays paused, as after any failure of it; and not for ever."""
    async with two_servers("") as (made, here, there):
        client = await made.client()
        assert await write(client) == 0
        slow = Slowly(made, there.server)
        asked = trio.CancelScope()

        async def switch() -> None:
            with asked:
                await made.pauses.switch("", slow.target(), close_first=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch)
            await slow.asked.wait()
            here.up = False
            asked.cancel()
        assert made.service.paused
        [session] = made.sessions()
        assert session.held
        here.up = True
        await trio.sleep(60)
        [done] = await made.pauses.resume("")
        assert "1 of them over new connections" in done
        assert await read_back(client) == CONTENT


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_is_left_of_a_switch_that_is_given_up_while_it_is_prepared(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await made.client()
        before = here.now
        whole = encode_request(Cmd.WRITE, 0, 7, 0, BLOCK) + CONTENT
        await client.stream.send_all(whole[:100])  # it is waited for
        await settled()
        asked = trio.CancelScope()

        async def switch() -> None:
            with asked:
                await made.pauses.switch("", there.target(made))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch)
            await settled()
            assert made.service.paused
            assert there.now
            asked.cancel()
        await client.stream.send_all(whole[100:])
        assert (await client.simple_reply())[:2] == (7, 0)
        await settled()
        assert not made.service.paused
        assert (here.now, there.now) == (before, 0)
