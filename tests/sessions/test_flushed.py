"""No FLUSH that is answered 0 hides a loss: the rule of `gateway.losses.rule` through a whole gateway,
before a server that keeps what is not flushed in its memory alone.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.losses.rule import PROOF_SECONDS
from gateway.losses.survival import Doubt
from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.memory import Memory
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.sessions.holding import NotDone
from gateway.sessions.pausing import Pauses
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from gateway.wire.transmission import DISC, encode_request, encode_simple_reply
from tests.embedded.peers import Client
from tests.hub.wires import Wires
from tests.sessions.asking import BLOCK, CONTENT, flush, read, write
from tests.sessions.forgetful import FOR_ALL, FOR_ITSELF, SIZE, at_rest, before
from tests.sessions.gateways import ENDS_WITH_ITS_LINK
from tests.tools.defaults import SURVIVAL, mode_with
from tests.tools.volatile import VolatileServer


def stable(server: VolatileServer, offset: int = 0) -> bytes:
    return bytes(server.disk.store.stable[offset : offset + BLOCK])


async def restart(server: VolatileServer) -> None:
    server.crash()
    server.start()


async def leave(client: Client) -> None:
    await client.stream.send_all(DISC)
    await client.stream.aclose()


@pytest.mark.parametrize("personality", [FOR_ALL, FOR_ITSELF], ids=["for all", "for itself"])
@pytest.mark.parametrize("says_disc", [True, False])
async def test_what_a_client_leaves_is_flushed_before_its_connection_is_closed(
    personality: object,
    says_disc: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, personality)  # type: ignore[arg-type] # parametrize has no types
    async with before(server) as house:
        client = await house.client()
        assert await write(client) == 0
        await (leave(client) if says_disc else client.stream.aclose())
        await at_rest()
        assert stable(server) == CONTENT
        assert server.open == 0


async def test_a_client_that_leaves_does_not_wait_for_that(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        client = await house.client()
        assert await write(client) == 0
        server.disk.hold("flush")
        await client.stream.send_all(DISC)
        assert await client.stream.receive_some() == b""
        assert server.open == 1
        server.disk.release()
        await at_rest()
        assert server.open == 0


async def test_who_has_flushed_leaves_without_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        client = await house.client()
        assert await write(client) == 0
        assert await flush(client) == 0
        await leave(client)
        await at_rest()
        assert server.disk.counts["flush"] == 1


async def test_sessions_that_end_with_their_link_are_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server, ENDS_WITH_ITS_LINK) as house:
        client = await house.client()
        assert await write(client) == 0
        await leave(client)
        await at_rest()
        assert server.disk.counts["flush"] == 0


async def test_the_last_of_a_shared_connection_leaves_what_is_flushed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, None, upstream='connections = "shared"') as house:
        one, other = await house.client(), await house.client()
        assert await write(one) == 0
        await leave(one)
        await at_rest()
        assert server.disk.counts["flush"] == 0  # the connection is in use
        await leave(other)
        await trio.sleep(1)
        assert stable(server) == CONTENT
        assert server.open == 0


@pytest.mark.parametrize("connections", ["per-client", "shared"])
async def test_what_a_client_leaves_is_flushed_again_if_that_was_not_tried(
    connections: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server, None, upstream=f'connections = "{connections}"') as house:
        client = await house.client()
        assert await write(client) == 0
        server.disk.hold("flush")
        await leave(client)
        await at_rest()
        [ours] = server.disk.pending
        ours.fail(Errno.ENOMEM)
        await trio.sleep(2)
        server.disk.release()
        await trio.sleep(2)
        assert stable(server) == CONTENT
        assert server.open == 0
        assert await flush(await house.client()) == 0


@pytest.mark.parametrize("connections", ["per-client", "shared"])
async def test_the_hub_is_not_ended_before_what_a_client_has_left_is_flushed(
    connections: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server, None, upstream=f'connections = "{connections}"') as house:
        client = await house.client()
        assert await write(client) == 0
        server.disk.hold("flush")
        await leave(client)
        await at_rest()
        assert server.open == 1
        async with trio.open_nursery() as nursery:
            parted = trio.Event()

            async def part() -> None:
                while house.gateway.service.relayed:
                    await trio.sleep(0.1)
                await house.gateway.service.hub.all_seen_off()
                parted.set()

            nursery.start_soon(part)
            await trio.sleep(2)
            assert not parted.is_set()
            server.disk.release()
            await parted.wait()
        assert stable(server) == CONTENT
        await at_rest()
        assert server.open == 0


async def test_a_server_that_says_eio_when_it_is_back_is_believed_over_the_configuration(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    trusted = mode_with(
        survival=replace(SURVIVAL, late_write_seconds=0, unflushed=Doubt.ASSUME_DURABLE)
    )
    async with before(server, trusted) as house:
        client = await house.client()
        assert await write(client) == 0
        server.disk.hold("flush")
        await restart(server)
        await trio.sleep(2)
        [ours] = server.disk.pending
        ours.fail(Errno.EIO)
        server.disk.release()
        await house.went_back()
        assert await flush(client) == Errno.EIO
        assert await flush(client) == 0


async def test_a_connection_that_was_there_proves_that_nothing_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        assert await write(one) == 0
        server.cut_one(0)
        await house.went_back()
        assert stable(server) == CONTENT
        for client in (one, other):
            assert await read(client) == (0, CONTENT)
            assert await flush(client) == 0


async def test_without_can_multi_conn_it_proves_nothing_and_tells_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE, FOR_ITSELF)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        assert await write(one) == 0
        assert await write(other, BLOCK) == 0
        server.cut_one(0)
        await house.went_back()
        assert await flush(other) == 0
        assert (await read(one))[0] == Errno.EIO
        assert await flush(one) == Errno.EIO
        assert await flush(one) == 0


async def test_a_younger_connection_has_the_older_one_flushed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one = await house.client()
        assert await write(one) == 0
        other = await house.client()
        server.disk.holds = lambda pending: pending.command == "flush" and pending.connection == 0
        await other.send(Cmd.FLUSH)
        await at_rest()
        assert server.disk.pending
        assert server.disk.counts["flush"] == 1  # its own
        server.disk.release()
        assert (await other.simple_reply())[1] == 0
        assert stable(server) == CONTENT
        assert await flush(one) == 0


async def test_what_went_into_a_black_hole_is_lost_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is told to whoever relies on it, and so is whoever wrote it, should it ever ask."""
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one = await house.client()
        assert await write(one) == 0
        other = await house.client()
        server.disk.holds = lambda pending: pending.connection == 0
        asked = trio.current_time()
        assert await flush(other) == Errno.EIO
        assert trio.current_time() - asked == pytest.approx(PROOF_SECONDS, abs=0.5)
        assert await flush(other) == 0
        server.disk.release()
        assert await flush(one) == Errno.EIO
        assert await flush(one) == 0


@pytest.mark.parametrize("lost", [True, False])
async def test_who_comes_when_a_connection_has_died_reads_nothing_that_is_in_question(
    lost: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The server may have been started anew, and the connections that are still there lead nowhere."""
    server = VolatileServer(SIZE)
    async with before(server) as house:
        await house.client()
        writer = await house.client()
        assert await write(writer) == 0
        server.disk.holds = lambda pending: pending.connection == 0
        if lost:
            server.disk.crash()
        server.cut_one(1)
        late = await house.client()
        answers: list[tuple[int, bytes]] = []

        async def ask() -> None:
            answers.append(await read(late))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(PROOF_SECONDS - 1)
            assert not answers
            if not lost:
                server.disk.release()
                await at_rest()
                assert answers == [(0, CONTENT)]
        if lost:
            assert answers[0][0] == Errno.EIO
            assert await flush(late) == Errno.EIO
        assert await flush(late) == 0


async def test_who_comes_reads_nothing_old_while_a_slow_client_hides_a_death(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A session whose client takes no replies reads nothing of its link, so that it does not see its end."""
    server = VolatileServer(SIZE)
    async with before(server) as house:
        slow = await house.client()
        assert await write(slow) == 0
        for number in range(40):
            await slow.send(Cmd.READ, number % 8 * MIB, MIB)
        await at_rest()
        server.disk.crash()
        server.cut_one(0)
        late = await house.client()
        assert (await read(late))[0] == Errno.EIO
        assert await flush(late) == Errno.EIO


async def test_who_comes_late_begins_in_time_whatever_is_paused_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        await house.client()
        writer = await house.client()
        assert await write(writer) == 0
        server.disk.holds = lambda pending: pending.connection == 0
        server.disk.crash()
        server.cut_one(1)
        late = await house.client()
        await late.send(Cmd.READ, 0, BLOCK)
        pauses = Pauses(house.gateway.service, house.gateway.nursery)
        with pytest.raises(NotDone):
            await pauses.pause("", seconds=1)
        await at_rest()
        [running] = [each for each in house.gateway.service.running if each.relaying.held]
        assert running.relaying.held  # also when the pause has come to nothing
        assert (await late.simple_reply())[1] == Errno.EIO


async def test_a_proof_that_was_not_tried_is_no_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one = await house.client()
        assert await write(one) == 0
        other = await house.client()
        server.disk.holds = lambda pending: pending.command == "flush" and pending.connection == 0
        await other.send(Cmd.FLUSH)
        await at_rest()
        [proof] = server.disk.pending
        proof.fail(Errno.ENOMEM)
        assert (await other.simple_reply())[1] == Errno.ENOMEM
        server.disk.release()
        assert await flush(other) == 0
        assert stable(server) == CONTENT


async def test_half_a_write_stands_in_the_connection_of_who_vanishes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So that cannot be FLUSHed; what it had written is told once, if it cannot be proved, and no READ
    fails."""
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one = await house.client()
        assert await write(one) == 0
        half = encode_request(Cmd.WRITE, 0, 77, BLOCK, BLOCK) + CONTENT[:100]
        await one.stream.send_all(half)
        await at_rest()
        await one.stream.aclose()
        await at_rest()
        later = await house.client()
        assert await read(later) == (0, CONTENT)
        assert await flush(later) == Errno.EIO
        assert await flush(later) == 0


async def test_half_a_write_of_who_vanishes_does_no_harm_where_another_was_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        assert await write(one) == 0
        half = encode_request(Cmd.WRITE, 0, 77, BLOCK, BLOCK) + CONTENT[:100]
        await one.stream.send_all(half)
        await at_rest()
        await one.stream.aclose()
        await at_rest()
        assert await flush(other) == 0
        assert stable(server) == CONTENT


async def test_all_who_are_there_and_rely_on_it_are_told_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        one, other = await house.client(), await house.client()
        assert await write(one) == 0
        await restart(server)
        await house.went_back()
        late = await house.client()  # and nobody has been told yet
        for client in (other, one, late):
            assert (await read(client))[0] == Errno.EIO
            assert await flush(client) == Errno.EIO
            assert await read(client) == (0, bytes(BLOCK))
            assert await flush(client) == 0
        assert await flush(await house.client()) == 0


async def test_a_flush_behind_a_telling_one_in_one_packet_tells_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    async with before(server) as house:
        client = await house.client()
        assert await write(client) == 0
        await restart(server)
        await house.went_back()
        two = b"".join(encode_request(Cmd.FLUSH, 0, cookie, 0, 0) for cookie in (7, 8))
        await client.stream.send_all(two)
        replies = [(await client.simple_reply())[:2] for _ in range(2)]
        assert sorted(replies) == [(7, Errno.EIO), (8, Errno.EIO)]
        assert await flush(client) == 0


EMULATED = 'policies = [ { use = "zero", how = "emulate" } ]'
DELAYED = 'policies = [ { use = "delay", flush = 1.5 } ]'


@pytest.mark.parametrize("flushes_again", [True, False])
async def test_who_is_lost_before_it_has_read_its_eio_was_not_told(
    flushes_again: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """qemu connects again then, and asks for its FLUSH once more."""
    server = VolatileServer(SIZE)
    async with before(server) as house:
        lost = await house.client()
        assert await write(lost) == 0
        await restart(server)
        await house.went_back()
        await lost.send(Cmd.FLUSH)
        await at_rest()
        if flushes_again:
            assert (await lost.simple_reply())[1] == Errno.EIO
            await lost.send(Cmd.FLUSH)
            await at_rest()
        await lost.stream.aclose()  # with something unread: its connection is reset
        again = await house.client()
        assert await flush(again) == (0 if flushes_again else Errno.EIO)
        assert await flush(again) == 0


@pytest.mark.parametrize("connections", ['"per-client"', '"shared"', "4"])
async def test_a_flush_that_waits_in_a_hook_hears_of_a_loss_meanwhile(
    connections: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    mode = f"connections = {connections}\nlate-write-seconds = 0"
    async with before(server, None, upstream=mode, export=DELAYED) as house:
        client = await house.client()
        assert await write(client) == 0
        await client.send(Cmd.FLUSH)
        await trio.sleep(0.2)
        await restart(server)
        assert (await client.simple_reply())[1] == Errno.EIO
        assert await flush(client) == 0


@pytest.mark.parametrize("connections", ['"per-client"', '"shared"', "4"])
async def test_a_command_in_several_steps_fails_if_one_of_them_may_be_lost(
    connections: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = VolatileServer(SIZE)
    mode = f"connections = {connections}\nlate-write-seconds = 0"
    async with before(server, None, upstream=mode, export=EMULATED) as house:
        client = await house.client()
        server.disk.holds = lambda pending: pending.offset == MIB
        await client.send(Cmd.WRITE_ZEROES, 0, 4 * MIB)
        await server.disk.held()  # the first piece has been answered
        server.crash()
        server.disk.release()
        server.start()
        assert (await client.simple_reply())[1] == Errno.EIO
        assert await flush(client) == Errno.EIO
        assert await flush(client) == 0


@pytest.mark.parametrize("first", [Cmd.FLUSH, Cmd.WRITE])
@pytest.mark.parametrize("structured", [False, True])
def test_answers_that_come_together_go_on_in_their_order(first: Cmd, structured: bool) -> None:
    """By that a client knows what a failing FLUSH may be about, and so do we: it is not told of it twice."""
    export = Export(SIZE, int(Flag.HAS_FLAGS | Flag.SEND_FLUSH), structured=structured)
    offered = offer(view_of(export), structured=structured)
    traffic = Traffic(plan(offered, export, Dialect()))
    trail = traffic.debt.losses.trail(None)
    traffic.debt.losses.came_up(trail)
    traffic.trail = traffic.debt.trail = trail
    traffic.memory = Memory(trail)
    with closing(Wires(traffic)) as wires:
        wires.session.begin()
        wires.client.send(encode_request(Cmd.FLUSH, 0, 7, 0, 0))
        wires.client.send(encode_request(Cmd.WRITE, 0, 8, 0, BLOCK) + CONTENT)
        settle(wires)
        [asked_flush, asked_write] = traffic.in_flight
        replies = {
            Cmd.FLUSH: encode_simple_reply(asked_flush, Errno.EIO),
            Cmd.WRITE: encode_simple_reply(asked_write),
        }
        second = Cmd.WRITE if first is Cmd.FLUSH else Cmd.FLUSH
        wires.upstream.send(replies[first] + replies[second])
        settle(wires)
        answers = wires.client.recv(1000)
        at = {
            Cmd.FLUSH: answers.index((7).to_bytes(8, "big")),
            Cmd.WRITE: answers.index((8).to_bytes(8, "big")),
        }
        assert at[first] < at[second]
        # A WRITE that is answered after the EIO may have been done before: that is told, once.
        assert bool(traffic.debt.why) is (first is Cmd.FLUSH)


def settle(wires: Wires) -> None:
    while wires.step():
        pass
