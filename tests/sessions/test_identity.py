"""Whether it is the same disk that is there after a reconnect: `gateway.losses.witnesses` through a gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import structlog
import trio
import trio.testing

from gateway.config import Connections
from gateway.embedded.personality import NBD_SERVER_3_24, Personality
from gateway.losses.survival import Doubt
from gateway.sessions.holding import NotDone
from gateway.sessions.pausing import Pauses
from gateway.upstream.mode import Mode
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from tests.embedded.peers import Client
from tests.sessions.asking import BLOCK, CONTENT, flush, read, write
from tests.sessions.forgetful import FOR_ALL, FOR_ITSELF, SIZE, SOON, Forgetful, at_rest, before
from tests.tools.defaults import SURVIVAL, mode_with
from tests.tools.volatile import VolatileServer

pytestmark = pytest.mark.real

TRUST = mode_with(survival=replace(SOON.survival, check_identity=False))
SHARED = replace(SOON, wanted=Connections(shared=True))
SOLE = mode_with(survival=replace(SOON.survival, sole_writer=True))
COPY_ON_WRITE = replace(FOR_ITSELF, own_disks=True)
NBD_SERVER = replace(
    NBD_SERVER_3_24,
    own_disks=True,
    flags=lambda _disk, _structured: int(
        Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES
    ),
)
"""As version 3.24 is with copyonwrite."""


def back_as(server: VolatileServer, content: bytes) -> None:
    """Kill a server, and have it come back with another disk, or an older one."""
    server.crash()
    server.disk.store.become(content)
    server.start()


def now(server: VolatileServer) -> bytes:
    return bytes(server.disk.store.stable)


async def put(client: Client, offset: int = 0, content: bytes = CONTENT, flags: int = 0) -> None:
    """Write, and flush."""
    await client.send(Cmd.WRITE, offset, data=content, flags=flags)
    assert (await client.simple_reply())[1] == 0
    assert await flush(client) == 0


async def has_ended(client: Client) -> bool:
    """Say whether a client's session ends; what it asks meanwhile fails."""
    with trio.move_on_after(30):
        try:
            await client.send(Cmd.READ, 0, BLOCK)
            while True:
                assert (await client.simple_reply())[1], "old data"
        except (EOFError, trio.BrokenResourceError):
            return True
    return False


async def goes_on(house: Forgetful, client: Client, offset: int = 0) -> bytes:
    """Give what a client reads, whose session goes on."""
    await house.went_back()
    error, data = await read(client, offset)
    assert not error
    assert await flush(client) == 0
    return data


def why(lines: list[structlog.typing.EventDict]) -> str:
    [end] = [line for line in lines if line["event"] == "session ended"]
    return str(end["why"])


@pytest.mark.parametrize("mode", [SOON, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("fua", [False, True])
async def test_an_older_snapshot_ends_a_session_that_has_written(
    fua: bool, mode: Mode, autojump_clock: trio.testing.MockClock
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    with structlog.testing.capture_logs() as lines:
        async with before(server, mode) as house:
            client = await house.client()
            await put(client)
            snapshot = now(server)
            if fua:
                await client.send(Cmd.WRITE, BLOCK, data=CONTENT, flags=CmdFlag.FUA)
                assert (await client.simple_reply())[1] == 0
            else:
                await put(client, BLOCK)
            back_as(server, snapshot)
            assert await has_ended(client)
    assert "an older state of this one" in why(lines)
    assert f"{BLOCK} bytes at offset {BLOCK}" in why(lines)


async def test_who_trusts_the_server_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """The proof that the others find something."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, TRUST) as house:
        client = await house.client()
        await put(client)
        back_as(server, bytes(SIZE))
        assert await goes_on(house, client) == bytes(BLOCK)


async def test_a_server_that_lost_nothing_is_recognised_again_and_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        client = await house.client()
        for number in range(5):
            await put(client, number * BLOCK)
            assert await write(client, 2**20) == 0  # not flushed, and lost
            back_as(server, now(server))
            await house.went_back()
            assert await flush(client)
            assert await goes_on(house, client, number * BLOCK) == CONTENT
        assert len(house.gateway.service.hub.sessions) == 1
        back_as(server, bytes(SIZE))  # and it is still looked
        assert await has_ended(client)


async def test_a_disk_for_each_connection_ends_a_session_that_has_flushed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, COPY_ON_WRITE)
    async with before(server) as house:
        client, reader = await house.client(), await house.client()
        await put(client)
        assert await read(client) == (0, CONTENT)
        server.crash()
        server.start()
        assert await has_ended(client)
        assert await goes_on(house, reader) == bytes(BLOCK)


@pytest.mark.parametrize("flushes", [True, False])
async def test_nbd_server_with_copy_on_write_is_known_for_it(
    flushes: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """What is not flushed is as surely gone."""
    server = VolatileServer(SIZE, NBD_SERVER)
    with structlog.testing.capture_logs() as lines:
        async with before(server) as house:
            client, reader = await house.client(), await house.client()
            assert await write(client) == 0
            if flushes:
                assert await flush(client) == 0
            connections = server.connections
            server.cut_one(0)
            assert await has_ended(client)
            assert server.connections == connections
            assert await read(reader) == (0, bytes(BLOCK))
            server.cut_one(0)
            assert await goes_on(house, reader) == bytes(BLOCK)
            await reader.stream.aclose()
    whys = [str(line.get("why")) for line in lines if line["event"] == "session ended"]
    assert any("nbd-server-own-disks" in each for each in whys)


async def test_nbd_server_is_trusted_if_that_is_said(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, NBD_SERVER)
    async with before(server, TRUST) as house:
        client = await house.client()
        await put(client)
        server.cut_one(0)
        assert await goes_on(house, client) == bytes(BLOCK)


@pytest.mark.parametrize(
    ("gone", "mode", "ends"),
    [(1, SOON, False), (2, SOON, False), (3, SOON, True), (6, SOON, True), (1, SOLE, True)],
)
async def test_with_can_multi_conn_most_of_the_newest_have_to_be_gone(
    gone: int, mode: Mode, ends: bool, autojump_clock: trio.testing.MockClock
) -> None:
    server = VolatileServer(SIZE, FOR_ALL)
    with structlog.testing.capture_logs() as lines:
        async with before(server, mode) as house:
            client = await house.client()
            snapshot = bytes(SIZE)
            for number in range(6):
                if number == 6 - gone:
                    snapshot = now(server)
                await put(client, number * BLOCK)
            back_as(server, snapshot)
            if ends:
                assert await has_ended(client)
            else:
                assert await goes_on(house, client) == CONTENT
    warned = [line for line in lines if "not there any more" in line["event"]]
    assert len(warned) == (0 if ends else gone)


async def test_what_another_session_has_flushed_bears_witness_with_can_multi_conn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ALL)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        await put(one)
        for number in range(1, 4):
            await put(other, number * BLOCK)
        one_wrote = bytes(CONTENT) + bytes(SIZE - BLOCK)
        back_as(server, one_wrote)
        assert await has_ended(one)
        assert await has_ended(other)


async def test_a_session_alone_relies_on_what_it_has_written_without_can_multi_conn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        await put(one)
        await put(other, BLOCK)
        back_as(server, bytes(CONTENT) + bytes(SIZE - BLOCK))
        assert await goes_on(house, one) == CONTENT
        assert await has_ended(other)


# --- What must not end a session


async def test_heartbeats_of_others(autojump_clock: trio.testing.MockClock) -> None:
    """Another gateway writes over what was written here, more than once."""
    server = VolatileServer(SIZE, FOR_ALL)
    theirs = b"\x77" * BLOCK
    async with before(server) as house:
        client = await house.client()
        for _ in range(3):
            await put(client, 0)
            await put(client, BLOCK)
            await put(client, 2 * BLOCK)
            server.disk.store.write(BLOCK, theirs, fua=True)
            back_as(server, now(server))
            assert await goes_on(house, client, BLOCK) == theirs


@pytest.mark.parametrize("personality", [FOR_ALL, FOR_ITSELF], ids=["for all", "for itself"])
async def test_a_view_of_a_disk_that_changes(
    personality: Personality, autojump_clock: trio.testing.MockClock
) -> None:
    server = VolatileServer(SIZE, personality)
    async with before(server, export="read-only = true") as house:
        client = await house.client()
        assert await read(client) == (0, bytes(BLOCK))
        back_as(server, b"\x33" * SIZE)
        assert await goes_on(house, client) == b"\x33" * BLOCK


async def _trim(client: Client) -> None:
    await client.send(Cmd.TRIM, 0, 4 * BLOCK)
    assert (await client.simple_reply())[1] == 0


async def _trim_and_flush(client: Client) -> None:
    await _trim(client)
    assert await flush(client) == 0


async def _trim_and_use_again(client: Client) -> None:
    await _trim_and_flush(client)
    await put(client, 0, b"\x11" * BLOCK)


async def _zero_with_fua(client: Client) -> None:
    await client.send(Cmd.WRITE_ZEROES, 0, 4 * BLOCK, flags=CmdFlag.FUA)
    assert (await client.simple_reply())[1] == 0


async def _write_with_fua(client: Client) -> None:
    await client.send(Cmd.WRITE, 512, data=b"\x11" * BLOCK, flags=CmdFlag.FUA)
    assert (await client.simple_reply())[1] == 0


async def _write_twice(client: Client) -> None:
    await client.send(Cmd.WRITE, 0, data=b"\x11" * BLOCK)
    await client.send(Cmd.WRITE, 0, data=b"\x22" * BLOCK)
    assert (await client.simple_reply())[1] == 0
    assert (await client.simple_reply())[1] == 0
    assert await flush(client) == 0


@pytest.mark.parametrize(
    "then",
    [_trim, _trim_and_flush, _trim_and_use_again, _zero_with_fua, _write_with_fua, _write_twice],
)
@pytest.mark.parametrize("by_another", [False, True])
@pytest.mark.parametrize("personality", [FOR_ALL, FOR_ITSELF], ids=["for all", "for itself"])
async def test_what_was_written_over(
    personality: Personality,
    by_another: bool,
    then: Callable[[Client], object],
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, personality)
    async with before(server, SOLE) as house:
        client, other = await house.client(), await house.client()
        await put(client)
        await then(other if by_another else client)  # type: ignore[misc]
        server.crash(lambda pieces: pieces)  # all is kept
        server.start()
        await at_rest()
        await house.went_back()
        await read(client)
        assert len(house.gateway.service.hub.sessions) == 2


async def test_a_write_under_way_over_what_was_flushed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        client = await house.client()
        await put(client)
        server.disk.hold("write")
        await client.send(Cmd.WRITE, 0, data=b"\x11" * BLOCK)
        [pending] = await server.disk.held()
        pending.carry_out()
        server.disk.holds = lambda _: False
        back_as(server, b"\x11" * BLOCK + bytes(SIZE - BLOCK))
        assert (await client.simple_reply())[1] == 0
        assert await goes_on(house, client) == b"\x11" * BLOCK


async def test_windows_of_one_disk(autojump_clock: trio.testing.MockClock) -> None:
    """What is looked for is looked for where it was written, on the server's disk."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    window = f'policies = [{{ use = "window", offset = {SIZE // 2} }}]'
    async with before(server, export=window) as house:
        client = await house.client()
        await put(client)
        assert now(server)[SIZE // 2 : SIZE // 2 + BLOCK] == CONTENT
        back_as(server, now(server))
        assert await goes_on(house, client) == CONTENT
        back_as(server, CONTENT + bytes(SIZE - BLOCK))
        assert await has_ended(client)


async def test_a_session_of_which_nothing_is_noted_has_all_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another upstream that leads to the disk may have sessions end with their links."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        client = await house.client()
        await put(client)
        main = house.gateway.service.servers["main"]
        main.mode = mode_with(survival=replace(SURVIVAL, reconnect_seconds=0))
        other = await house.client()
        main.mode = SOON
        await put(other, 0, b"\x11" * BLOCK)
        back_as(server, now(server))
        assert await goes_on(house, client) == b"\x11" * BLOCK


# --- Before anything else


async def test_nothing_is_written_again_to_another_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    survival = replace(SURVIVAL, unflushed=Doubt.REPLAY, sole_writer=True, late_write_seconds=0)
    server = VolatileServer(SIZE, FOR_ALL)
    async with before(server, mode_with(Connections(shared=True), survival=survival)) as house:
        client = await house.client()
        await put(client)
        assert await write(client, BLOCK) == 0
        back_as(server, bytes(SIZE))
        assert await has_ended(client)
        assert server.disk.store.seen == bytes(SIZE)


async def test_blocks_of_the_server(autojump_clock: trio.testing.MockClock) -> None:
    """What is read back is whole blocks, of which a part was written."""
    large = replace(FOR_ITSELF, block_sizes=BlockSizes(16384, 16384, 2**25))
    server = VolatileServer(SIZE, large)
    async with before(server) as house:
        client = await house.client()
        await put(client, 512, b"\x11" * 1024)
        back_as(server, now(server))
        assert (await goes_on(house, client))[512:1536] == b"\x11" * 1024
        back_as(server, bytes(SIZE))
        assert await has_ended(client)


# --- In a pause


RESTARTED = {
    "own": SOON,
    "shared": SHARED,
    "watched": mode_with(survival=replace(SOON.survival, stall_seconds=5)),
}


@pytest.mark.parametrize("waits", [1, 200], ids=["at once", "when connections are given up"])
@pytest.mark.parametrize("by_itself", [False, True], ids=["resumed", "by itself"])
@pytest.mark.parametrize("mode", RESTARTED)
async def test_a_pause_that_ends_before_another_disk(
    mode: str, by_itself: bool, waits: float, autojump_clock: trio.testing.MockClock
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    with structlog.testing.capture_logs() as lines:
        async with before(server, RESTARTED[mode]) as house:
            pauses = Pauses(house.gateway.service, house.gateway.nursery)
            client = await house.client()
            await put(client)
            await pauses.pause("", lasts=1000)
            server.crash()
            await trio.sleep(waits)
            server.disk.store.become(bytes(SIZE))
            server.start()
            await trio.sleep(50)  # longer than any back-off
            if by_itself:
                await trio.sleep(1000)
            else:
                with pytest.raises(NotDone, match=r"1 session has ended: .*another disk"):
                    await pauses.resume("")
            assert not house.gateway.service.paused
            assert await has_ended(client)
    assert f"{BLOCK} bytes at offset 0" in why(lines)


@pytest.mark.parametrize("mode", RESTARTED)
async def test_a_pause_that_ends_before_the_same_disk(
    mode: str, autojump_clock: trio.testing.MockClock
) -> None:
    """And what was flushed before it is looked for after it as well, whenever a connection is lost."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, RESTARTED[mode]) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client = await house.client()
        await put(client)
        for _ in range(2):
            await pauses.pause("", lasts=1000)
            server.crash()
            await trio.sleep(200)
            server.start()
            await trio.sleep(50)
            [done] = await pauses.resume("")
            assert "1 session goes on, 1 of them over new connections" in done
            assert await read(client) == (0, CONTENT)
        await put(client, BLOCK)
        back_as(server, bytes(BLOCK) + now(server)[BLOCK:])
        assert await has_ended(client)


async def test_only_those_end_whose_disk_is_not_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client, reader = await house.client(), await house.client()
        await put(client)
        await pauses.pause("")
        back_as(server, bytes(SIZE))
        await at_rest()
        with pytest.raises(NotDone, match=r"1 session has ended: .*: 1 session goes on"):
            await pauses.resume("")
        assert await has_ended(client)
        assert await goes_on(house, reader) == bytes(BLOCK)


async def test_most_of_the_newest_are_looked_for_in_a_pause_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another has written over what was flushed, which with CAN_MULTI_CONN it may."""
    server = VolatileServer(SIZE, FOR_ALL)
    theirs = b"\x77" * BLOCK
    async with before(server) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client = await house.client()
        await put(client)
        await put(client, BLOCK)
        await pauses.pause("")
        server.disk.store.write(BLOCK, theirs, fua=True)
        back_as(server, now(server))
        await at_rest()
        await pauses.resume("")
        assert await goes_on(house, client, BLOCK) == theirs


@pytest.mark.parametrize("flushes", [True, False])
async def test_nbd_server_with_copy_on_write_is_known_for_it_in_a_pause(
    flushes: bool, autojump_clock: trio.testing.MockClock
) -> None:
    server = VolatileServer(SIZE, NBD_SERVER)
    async with before(server) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client, reader = await house.client(), await house.client()
        assert await write(client) == 0
        if flushes:
            assert await flush(client) == 0
        await pauses.pause("")
        connections = server.connections
        server.cut_one(0)
        server.cut_one(1)
        await at_rest()
        with pytest.raises(NotDone, match=r"1 session has ended: .*nbd-server-own-disks"):
            await pauses.resume("")
        assert await has_ended(client)
        assert await goes_on(house, reader) == bytes(BLOCK)
        assert server.connections == connections + 1


@pytest.mark.parametrize("mode", RESTARTED)
async def test_who_switches_gives_his_word_for_the_disk(
    mode: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Also when the connections were found to lead to another one before that."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, RESTARTED[mode]) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client = await house.client()
        await put(client)
        await pauses.pause("")
        back_as(server, b"\x33" * SIZE)
        await trio.sleep(50)
        await pauses.switch("", None)
        await pauses.resume("")
        assert await read(client) == (0, b"\x33" * BLOCK)
        assert await flush(client) == 0


async def test_a_pause_that_ends_while_it_is_looked_what_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Connections that clients share are made again in the pause, and nobody knows yet where they lead."""
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, SHARED) as house:
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        client = await house.client()
        await put(client)
        await pauses.pause("")
        server.disk.hold("read")
        back_as(server, bytes(SIZE))
        await server.disk.held()
        async with trio.open_nursery() as nursery:

            async def resume() -> None:
                with pytest.raises(NotDone, match="another disk"):
                    await pauses.resume("")

            nursery.start_soon(resume)
            await at_rest()
            assert house.gateway.service.paused
            server.disk.release()
        assert await has_ended(client)


async def test_who_shares_new_connections_with_a_paused_export_has_its_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Clients of another name have begun them, when those that they had together were given up."""
    names = "".join(
        f'\n[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""' for name in "ab"
    )
    for content in (b"", bytes(SIZE)):
        server = VolatileServer(SIZE, FOR_ITSELF)
        async with before(server, SHARED, upstream=names) as house:
            pauses = Pauses(house.gateway.service, house.gateway.nursery)
            client = await house.client("a")
            await put(client)
            await pauses.pause("a", lasts=1000)
            server.crash()
            await trio.sleep(200)
            server.disk.store.become(content or now(server))
            server.start()
            await trio.sleep(50)
            other = await house.client("b")
            if content:
                with pytest.raises(NotDone, match="another disk"):
                    await pauses.resume("a")
                assert await has_ended(client)
            else:
                await pauses.resume("a")
                assert await read(client) == await read(other) == (0, CONTENT)
