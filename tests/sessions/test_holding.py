"""Nobody is told that an export is flushed of which something is lost, as long as somebody has to be told."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from gateway.embedded import MemoryDisk, Request, Server
from gateway.sessions.holding import NotDone
from gateway.wire.constants import Cmd, Errno
from gateway.wire.transmission import encode_request, encode_simple_reply
from tests.embedded.peers import Client
from tests.sessions.asking import BLOCK, CONTENT, read_back, write
from tests.sessions.elsewhere import Slowly, There, settled, two_servers
from tests.sessions.houses import SIZE, House, disk_of, house

MODES = {
    "per client": "",
    "shared": 'connections = "shared"',
    "several": "connections = 4",
}
LOST = r"4096 bytes \(0-4095\) may be lost \(.*\): "
OWED = LOST + "1 session not told yet"


async def loses(made: House, here: There) -> Client:
    """A client that has written, and whose server was restarted since."""
    client = await made.client()
    assert await write(client) == 0
    here.die()
    here.up = True
    await trio.sleep(10)
    return client


@pytest.mark.parametrize("mode", MODES)
async def test_who_is_owed_an_error_is_told_before_it_is_paused_or_switched(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await loses(made, here)
        with pytest.raises(NotDone, match=OWED):
            await made.pauses.pause("")
        for close_first in (True, False):
            with pytest.raises(NotDone, match=OWED):
                await made.pauses.switch("", there.target(made), close_first=close_first)
        assert not made.service.paused
        assert not made.service.switched
        assert (await client.simple_reply_to(Cmd.READ, 0, BLOCK))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        await made.pauses.pause("")
        await made.pauses.switch("", there.target(made))
        await made.pauses.resume("")
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


@pytest.mark.parametrize("close_first", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_a_loss_that_is_accepted_is_told_all_the_same(
    autojump_clock: trio.testing.MockClock, mode: str, close_first: bool
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await loses(made, here)
        [done] = await made.pauses.pause("", accept_loss=True, lasts=1000)
        assert "1 session held, 1 flushed" in done
        with pytest.raises(NotDone, match=OWED):
            await made.pauses.switch("", there.target(made), close_first=close_first)
        target = there.target(made)
        await made.pauses.switch("", target, close_first=close_first, accept_loss=True)
        assert list(made.service.paused) == [""]
        await made.pauses.resume("")
        assert (await client.simple_reply_to(Cmd.READ, 0, BLOCK))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0
        assert await read_back(client) == bytes(BLOCK)


@pytest.mark.parametrize("mode", MODES)
async def test_what_nobody_was_told_of_goes_along(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with two_servers(MODES[mode]) as (made, here, there):
        client = await loses(made, here)
        await client.stream.aclose()
        await settled()
        assert not made.sessions()
        words = LOST + "whoever opens it next will be told"
        with pytest.raises(NotDone, match=words):
            await made.pauses.pause("")
        with pytest.raises(NotDone, match=words):
            await made.pauses.switch("", there.target(made))
        await made.pauses.switch("", there.target(made), accept_loss=True)
        late = await made.client()
        assert (await late.simple_reply_to(Cmd.READ, 0, BLOCK))[1] == Errno.EIO
        assert (await late.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        assert (await late.simple_reply_to(Cmd.FLUSH))[1] == 0
        await made.pauses.pause("")


async def test_what_a_client_has_left_unflushed_is_found_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It has gone in the middle of a WRITE, so that its connection could not be flushed any more."""
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        client = await made.client()
        assert await write(client) == 0
        await client.stream.send_all(encode_request(Cmd.WRITE, 0, 9, BLOCK, BLOCK) + CONTENT[:9])
        await settled()
        await client.stream.aclose()
        await settled()
        assert not made.sessions()
        with pytest.raises(NotDone, match=LOST + "whoever opens it next"):
            await made.pauses.pause("")
        assert not made.service.paused


async def test_what_another_has_left_is_covered_by_the_flush_of_who_was_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        await made.client()
        client = await made.client()
        assert await write(client) == 0
        await client.stream.send_all(encode_request(Cmd.WRITE, 0, 9, BLOCK, BLOCK) + CONTENT[:9])
        await settled()
        await client.stream.aclose()
        await settled()
        [done] = await made.pauses.pause("")
        assert "1 session held, 1 flushed" in done


async def test_a_flush_that_fails_names_what_it_may_have_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failing = [Errno.EIO]

    def reply(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command == Cmd.FLUSH and failing:
            return [encode_simple_reply(request.cookie, failing[0])]
        return reply

    async with house(disk_of(MemoryDisk(SIZE), reply)) as made:
        client = await made.client()
        assert await write(client) == 0
        with pytest.raises(NotDone, match=r"goes on, for a FLUSH failed: .*EIO.*; " + OWED):
            await made.pauses.pause("")
        with pytest.raises(NotDone, match=OWED):
            await made.pauses.pause("")
        [done] = await made.pauses.pause("", accept_loss=True)
        assert "1 session held" in done
        await made.pauses.resume("")
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        # Of what was not tried nothing is lost, and nothing is durable.
        failing[0] = Errno.ENOMEM
        with pytest.raises(NotDone, match=r"a FLUSH failed: .*ENOMEM"):
            await made.pauses.pause("", accept_loss=True)
        failing.clear()
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == 0


async def test_who_has_the_disk_by_another_name_is_not_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A copy of it would lack as much."""
    names = "".join(
        f'\n[[export]]\nname = "{name}"\nupstream = "main"\nupstream-name = ""' for name in "ab"
    )
    async with two_servers(names) as (made, here, _there):
        client = await made.client("a")
        assert await write(client) == 0
        other = await made.client("b")
        here.die()
        here.up = True
        await trio.sleep(10)
        assert (await other.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        with pytest.raises(NotDone, match=OWED):
            await made.pauses.pause("b")
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO
        await made.pauses.pause("b")


async def test_sessions_that_are_let_go_again_owe_what_they_owed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_servers("") as (made, here, there):
        client = await loses(made, here)
        there.server = Server({"": MemoryDisk(2 * SIZE)}, there.server.personality)
        with pytest.raises(NotDone, match="does not fit"):
            await made.pauses.switch("", there.target(made), accept_loss=True)
        assert (await client.simple_reply_to(Cmd.FLUSH))[1] == Errno.EIO


@pytest.mark.parametrize("verb", ["pause", "switch"])
async def test_nobody_is_held_for_what_is_known_before(
    autojump_clock: trio.testing.MockClock, verb: str
) -> None:
    """A client with half a request would be waited for."""
    async with two_servers("") as (made, here, there):
        client = await loses(made, here)
        await client.stream.send_all(encode_request(Cmd.WRITE, 0, 9, BLOCK, BLOCK) + CONTENT[:9])
        await settled()
        begun = trio.current_time()
        pauses = made.pauses
        do = {
            "pause": partial(pauses.pause, ""),
            "switch": partial(pauses.switch, "", there.target(made)),
        }[verb]
        with pytest.raises(NotDone, match=OWED):
            await do(seconds=20)
        assert trio.current_time() - begun < 1
        assert there.made == 0


async def test_what_is_lost_of_a_paused_export_while_it_is_opened_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(disk_of(MemoryDisk(SIZE))) as made:
        await made.client()
        await made.pauses.pause("")
        slow = Slowly(made, disk_of(MemoryDisk(SIZE)))
        async with trio.open_nursery() as nursery:

            async def switch() -> None:
                with pytest.raises(NotDone, match="may be lost"):
                    await made.pauses.switch("", slow.target())

            nursery.start_soon(switch)
            await slow.asked.wait()
            [running] = made.service.running
            running.disk.losses.tell_the_next("gone", [(0, BLOCK)])
            slow.may.set()
        assert not made.service.switched
        assert list(made.service.paused) == [""]
