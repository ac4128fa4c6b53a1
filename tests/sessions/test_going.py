"""A server that goes in good order, and answers ESHUTDOWN meanwhile: where sessions survive nobody sees that.

And a request that takes the server down, or an export that it has no more: they end what they have to, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import structlog
import trio
import trio.testing

from gateway.bundle.again import REJECTIONS_SECONDS
from gateway.bundle.deadly import MOST_WRITE_DEATHS
from gateway.bundle.pieces import MOST_LOSSES
from gateway.config import Connections
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Request, Server
from gateway.hub.crowd import READ
from gateway.losses.survival import Doubt, Unanswered
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.going import GOES_SECONDS
from gateway.wire.constants import BASE_ALLOCATION, Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import MIB
from tests.sessions.asking import BLOCK, CONTENT, flush, opened, read, write
from tests.sessions.restarts import SIZE, Restarts, restarting, went_back
from tests.sessions.survivors import Survivor
from tests.tools.defaults import MODE, SURVIVAL, mode_with
from tests.tools.volatile import VolatileServer

PLAIN = PERSONALITIES["plain"]
TRUSTED = replace(SURVIVAL, unflushed=Doubt.ASSUME_DURABLE, late_write_seconds=0)
"""Before a server that loses nothing."""

WANTED = (
    Connections(),
    Connections(shared=True),
    Connections(count=4),
    Connections(shared=True, count=4),
)
FOUR_STRIPES = (0, MIB, 2 * MIB, 3 * MIB)

Edit = Callable[[Request, list[bytes]], Iterable[bytes]]


@dataclass
class Old:
    """The server that goes: what it was sent since then, and which replies it holds back."""

    disk: MemoryDisk = field(default_factory=lambda: MemoryDisk(SIZE))
    personality: Personality = PLAIN
    edit: Edit | None = None
    """What it says in place of a reply."""
    holds: Callable[[Request], bool] = lambda _request: False
    since: list[Cmd] = field(default_factory=list)
    """Commands that have come since it goes."""
    complaints: list[str] = field(default_factory=list)
    """Connections that did not end with DISC, and why."""
    free: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        faults = Faults(delay=self._delay, on_reply=self._on_reply)
        self.server = Server(
            {"": self.disk}, self.personality, faults=faults, log=self.complaints.append
        )

    def _delay(self, request: Request) -> trio.Event | None:
        if self.server.goes:
            self.since.append(Cmd(request.command))
        return self.free if not self.server.goes and self.holds(request) else None

    def _on_reply(self, request: Request, reply: list[bytes]) -> Iterable[bytes]:
        return self.edit(request, reply) if self.edit is not None else reply

    def next(self) -> Server:
        """The server that comes after it, with the same disk."""
        return Server({"": self.disk}, replace(self.personality))


def goes(made: Restarts) -> None:
    """It begins to go, and takes no connections any more."""
    made.server.goes = made.down = True


def comes(made: Restarts, server: Server) -> None:
    """Another one is there."""
    made.server, made.down = server, False


@pytest.mark.parametrize("wanted", WANTED, ids=map(str, WANTED))
async def test_what_is_answered_with_eshutdown_is_asked_again(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever it is, and over whichever link it went."""
    old = Old()
    mode = mode_with(wanted, survival=TRUSTED)
    async with restarting(old.server, mode) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            for offset in FOUR_STRIPES:
                assert await write(client, offset) == 0
            goes(made)
            for offset in FOUR_STRIPES:
                await client.send(Cmd.READ, offset, BLOCK)
                await client.send(Cmd.WRITE, offset + BLOCK, data=CONTENT)
                await client.send(Cmd.TRIM, offset + 2 * BLOCK, BLOCK)
                await client.send(Cmd.WRITE_ZEROES, offset + 3 * BLOCK, BLOCK)
                await client.send(Cmd.CACHE, offset, BLOCK)
            await client.send(Cmd.FLUSH)
            await trio.sleep(1)
            assert old.since
            comes(made, old.next())
            replies = [await client.simple_reply() for _ in range(5 * len(FOUR_STRIPES) + 1)]
            assert {error for _cookie, error, _data in replies} == {0}
            assert [data for *_, data in replies if data] == [CONTENT] * len(FOUR_STRIPES)
            for offset in FOUR_STRIPES:
                assert await read(client, offset + BLOCK) == (0, CONTENT)
    assert not old.complaints


@pytest.mark.parametrize("framing", [STRUCTURED, EXTENDED], ids=str)
@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_chunks_of_a_server_that_goes(
    wanted: Connections, framing: Framing, autojump_clock: trio.testing.MockClock
) -> None:
    """An error chunk may come behind data, which the client keeps; and behind one context of two."""
    half = BLOCK // 2

    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        if old.server.goes and request.command == Cmd.READ:
            at = request.offset
            yield framing.data_head(request.cookie, at, at, half, done=False) + CONTENT[:half]
        if old.server.goes and request.command == Cmd.BLOCK_STATUS:
            extents = [(BLOCK, 0)]
            yield framing.status(request.cookie, request.offset, 0, extents, done=False)
        yield from reply

    dirty = "qemu:dirty-bitmap:x"
    old = Old(personality=replace(PLAIN, contexts=(BASE_ALLOCATION, dirty)), edit=edit)
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client = gateway.client()
        extended = framing is EXTENDED
        await client.go("", extended=extended, contexts=(BASE_ALLOCATION, dirty))
        async with client.stream:
            assert await client.error(Cmd.WRITE, 0, data=CONTENT) == 0
            goes(made)
            reading = await client.send(Cmd.READ, 0, BLOCK)
            asking = await client.send(Cmd.BLOCK_STATUS, 0, BLOCK)
            await trio.sleep(1)
            comes(made, old.next())
            chunks: dict[int, list[bytes]] = {reading: [], asking: []}
            data = bytearray(BLOCK)
            contexts = []
            while chunks:
                cookie, chunk = await client.chunk()
                assert not chunk.kind & 0x8000
                if cookie == reading and chunk.payload:
                    data[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
                if cookie == asking and chunk.payload:
                    contexts.append(chunk.status[0] if not extended else chunk.payload[:4])
                if chunk.done:
                    del chunks[cookie]
            assert data == CONTENT
            assert len(set(contexts)) == len(contexts) == 2


async def test_no_command_is_sent_once_the_server_has_said_that_it_goes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    old = Old()
    async with restarting(old.server, mode_with(survival=TRUSTED)) as (gateway, made):
        client, other = await opened(gateway), await opened(gateway)
        old.holds = lambda request: request.offset == MIB
        async with client.stream, other.stream:
            await client.send(Cmd.READ, MIB, BLOCK)  # is under way, and so keeps the link
            await trio.testing.wait_all_tasks_blocked()
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            assert old.since == [Cmd.READ]
            for _ in range(5):
                await client.send(Cmd.READ, BLOCK, BLOCK)
                await client.send(Cmd.FLUSH)
            await trio.sleep(GOES_SECONDS / 2)
            assert old.since == [Cmd.READ]
            old.free.set()
            assert (await client.simple_reply())[1:] == (0, bytes(BLOCK))
            comes(made, old.next())
            for _ in range(11):
                assert (await client.simple_reply())[1] == 0
            assert old.since == [Cmd.READ]


def test_what_is_ready_together_with_the_word_that_it_goes_is_not_read() -> None:
    """The reactor has heard of the client's request before it has served the link."""
    export = Export(SIZE, int(Flag.HAS_FLAGS | Flag.SEND_FLUSH))
    survivor = Survivor(offer(view_of(export), structured=False), export)
    session, wires = survivor.session, survivor.wires
    survivor.traffic.going.heed(session.server_goes)
    session.begin()
    request = partial(SIMPLE.encode_request, Cmd.READ, 0)
    try:
        wires.client.send(request(1, 0, BLOCK) + request(2, BLOCK, BLOCK))
        while wires.step():
            pass
        assert len(wires.upstream.recv(BLOCK)) == 2 * SIMPLE.request.size
        wires.client.send(request(3, 2 * BLOCK, BLOCK))
        wires.upstream.send(SIMPLE.failure(1, 0, Errno.ESHUTDOWN))
        session.link_ready(READ)
        session.client_ready(READ)
        while wires.step():
            pass
        with pytest.raises(BlockingIOError):
            wires.upstream.recv(BLOCK)
    finally:
        survivor.close()


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_a_link_is_left_by_disc_when_what_is_under_way_is_answered(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    old = Old(holds=lambda request: request.offset == MIB)
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            await client.send(Cmd.READ, MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(GOES_SECONDS / 2)
            assert made.there == 1
            old.free.set()
            await trio.testing.wait_all_tasks_blocked()
            assert made.there == 0
            assert not old.complaints
            comes(made, old.next())
            assert {(await client.simple_reply())[1] for _ in range(2)} == {0}


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_what_is_not_answered_is_not_waited_for_for_long(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    old = Old(holds=lambda request: request.offset == MIB)
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            await client.send(Cmd.READ, MIB, BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            begun = trio.current_time()
            comes(made, old.next())
            assert {(await client.simple_reply())[1] for _ in range(2)} == {0}
            assert -1 < trio.current_time() - begun - GOES_SECONDS < 5
            old.free.set()


async def test_half_a_write_does_not_keep_a_link_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its client takes its time with the data; it is a WRITE like any other over the next link."""
    old = Old()
    async with restarting(old.server, mode_with(survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            head = client.framing.encode_request(Cmd.WRITE, 0, 99, 0, BLOCK)
            await client.stream.send_all(head + CONTENT[:100])
            comes(made, old.next())
            await trio.sleep(GOES_SECONDS + 5)
            assert (await client.simple_reply())[1] == 0
            await client.stream.send_all(CONTENT[100:])
            assert (await client.simple_reply())[:2] == (99, 0)
            assert await read(client) == (0, CONTENT)


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_a_write_has_an_unknown_outcome(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody has said that it was not done: so it may come late, and may be left to the client."""
    old = Old()
    late = replace(TRUSTED, late_write_seconds=30)
    async with restarting(old.server, mode_with(wanted, survival=late)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            goes(made)
            begun = trio.current_time()
            await client.send(Cmd.WRITE, 0, data=CONTENT)
            await trio.testing.wait_all_tasks_blocked()
            comes(made, old.next())
            assert (await client.simple_reply())[1] == 0
            assert 29 < trio.current_time() - begun < 40
            assert await read(client) == (0, CONTENT)
    told = replace(TRUSTED, unknown_writes=Unanswered.EIO)
    old = Old()
    async with restarting(old.server, mode_with(wanted, survival=told)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            goes(made)
            await client.send(Cmd.WRITE, 0, data=CONTENT)
            await trio.testing.wait_all_tasks_blocked()
            comes(made, old.next())
            assert (await client.simple_reply())[1] == Errno.EIO


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_a_flush_is_no_loss_by_itself_and_covers_nothing(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    """Nor does the good order in which the server goes: only what it has not flushed is told."""
    server = VolatileServer(SIZE)
    async with restarting(
        server, mode_with(wanted, survival=replace(SURVIVAL, late_write_seconds=0))
    ) as (
        gateway,
        made,
    ):
        client = await opened(gateway)
        async with client.stream:
            assert await write(client) == 0
            assert await flush(client) == 0
            goes(made)
            await client.send(Cmd.FLUSH)  # there is nothing to cover
            await trio.sleep(1)
            made.server.goes = made.down = False
            assert (await client.simple_reply())[1] == 0
            assert await write(client, BLOCK) == 0
            goes(made)
            await client.send(Cmd.FLUSH)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(1)
            server.disk.crash()
            made.server.goes = made.down = False
            errors = {
                cookie: error
                for cookie, error, _ in [await client.simple_reply(), await client.simple_reply()]
            }
            assert sorted(errors.values()) == [0, Errno.EIO]
            assert await flush(client) == 0


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
@pytest.mark.parametrize("structured", [False, True])
async def test_without_survival_eshutdown_reaches_the_client(
    wanted: Connections, structured: bool, autojump_clock: trio.testing.MockClock
) -> None:
    old = Old()
    mode = mode_with(wanted, survival=replace(TRUSTED, reconnect_seconds=0))
    async with restarting(old.server, mode) as (gateway, made):
        client = gateway.client()
        await client.go("", structured=structured)
        async with client.stream:
            goes(made)
            assert await client.error(Cmd.READ, 0, BLOCK) == Errno.ESHUTDOWN
            assert await client.error(Cmd.WRITE, 0, data=CONTENT) == Errno.ESHUTDOWN
            assert await client.error(Cmd.FLUSH) == Errno.ESHUTDOWN
            assert made.there == 1


@pytest.mark.parametrize("at", [Cmd.READ, Cmd.WRITE])
@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_steps_of_a_read_modify_write_are_asked_again(
    wanted: Connections, at: Cmd, autojump_clock: trio.testing.MockClock
) -> None:
    blocks = replace(PLAIN, block_sizes=BlockSizes(BLOCK, BLOCK, MIB))

    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        if request.command == at and len(reply) == 1 and not old.server.goes:
            old.server.goes = made.down = True
            return [framing.failure(request.cookie, request.offset, Errno.ESHUTDOWN)]
        return reply

    old = Old(personality=blocks)
    framing = EXTENDED if wanted.shared else SIMPLE
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            assert await write(client) == 0
            old.edit = edit
            await client.send(Cmd.WRITE, 1, data=b"abc")
            await trio.sleep(1)
            assert old.server.goes
            comes(made, old.next())
            assert (await client.simple_reply())[1] == 0
            assert await read(client) == (0, CONTENT[:1] + b"abc" + CONTENT[4:])


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_a_step_that_comes_while_the_server_goes_is_asked_of_the_next(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    """And is not taken for one that may have been done."""
    blocks = replace(PLAIN, block_sizes=BlockSizes(BLOCK, BLOCK, MIB))
    old = Old(personality=blocks)
    survival = replace(TRUSTED, late_write_seconds=30)
    async with restarting(old.server, mode_with(wanted, survival=survival)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            assert await write(client) == 0
            old.holds = lambda request: request.command == Cmd.READ
            await client.send(Cmd.WRITE, 1, data=b"abc")
            await trio.testing.wait_all_tasks_blocked()
            goes(made)
            begun = trio.current_time()
            await client.send(Cmd.FLUSH)
            await trio.testing.wait_all_tasks_blocked()
            old.free.set()  # what is read is written next
            await trio.testing.wait_all_tasks_blocked()
            assert old.since == [Cmd.FLUSH]
            comes(made, old.next())
            assert {(await client.simple_reply())[1] for _ in range(2)} == {0}
            assert await read(client) == (0, CONTENT[:1] + b"abc" + CONTENT[4:])
            assert trio.current_time() - begun < 20


async def test_a_server_that_goes_puts_nobody_under_suspicion(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it has refused may see another link die, and is asked once more."""
    old = Old()
    async with restarting(old.server, mode_with(survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.testing.wait_all_tasks_blocked()

            def die(_request: Request, _reply: list[bytes]) -> list[bytes]:
                made.kill(old.next())
                return []

            comes(made, Server({"": old.disk}, faults=Faults(on_reply=die)))
            assert (await client.simple_reply())[1] == 0


async def test_a_server_that_still_greets_is_down_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """ERR_SHUTDOWN in the option phase is waited for, for as long as a server may be away."""
    old = Old()
    mode = mode_with(survival=replace(TRUSTED, reconnect_seconds=40))
    async with restarting(old.server, mode) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            made.server.goes = True
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(30)
            comes(made, old.next())
            assert (await client.simple_reply())[1] == 0
            await went_back(gateway)
            made.server.goes = True
            begun = trio.current_time()
            await client.send(Cmd.READ, 0, BLOCK)
            assert (await client.simple_reply())[1] == Errno.EIO
            assert not await client.stream.receive_some()
            assert 39 < trio.current_time() - begun < 50


async def test_a_server_that_never_says_anything_else_is_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        if request.command == Cmd.READ and request.offset:
            reply = [SIMPLE.failure(request.cookie, 0, Errno.ESHUTDOWN)]
        return reply

    old = Old(edit=edit)
    mode = mode_with(survival=replace(TRUSTED, reconnect_seconds=40))
    async with restarting(old.server, mode) as (gateway, _made):
        client = await opened(gateway)
        async with client.stream:
            await client.send(Cmd.READ, BLOCK, BLOCK)
            begun = trio.current_time()
            assert (await client.simple_reply())[1] == Errno.EIO
            assert not await client.stream.receive_some()
            assert 39 < trio.current_time() - begun < 50


@pytest.mark.parametrize("wanted", WANTED[1:], ids=map(str, WANTED[1:]))
async def test_connections_that_were_never_used_have_not_been_away(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    """Though the first thing that is said over them is ESHUTDOWN, long after the last loss."""
    old = Old()
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            await trio.sleep(1)  # all are there
            made.kill()
            await trio.sleep(200)
            goes(made)
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(30)
            comes(made, old.next())
            assert (await client.simple_reply())[1] == 0


async def test_an_error_before_eshutdown_is_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And a second reply to the same command costs the link."""

    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        if old.server.goes and request.offset == 0:
            yield STRUCTURED.failure(request.cookie, 0, Errno.EIO, "bad", done=False)
        yield from reply

    old = Old(edit=edit)
    async with restarting(old.server, mode_with(survival=TRUSTED)) as (gateway, made):
        client = gateway.client()
        await client.go("")
        async with client.stream:
            goes(made)
            failed = await client.send(Cmd.READ, 0, BLOCK)
            again = await client.send(Cmd.READ, BLOCK, BLOCK)
            assert [each.kind & 0x8000 != 0 for each in await client.reply(failed)] == [True, False]
            comes(made, old.next())
            assert [each.kind & 0x8000 for each in await client.reply(again)] == [0]


# --- What takes the server down


@pytest.mark.parametrize("wanted", WANTED, ids=map(str, WANTED))
@pytest.mark.parametrize("command", [Cmd.READ, Cmd.TRIM, Cmd.FLUSH])
async def test_what_takes_the_server_down_is_not_asked_a_third_time(
    wanted: Connections, command: Cmd, autojump_clock: trio.testing.MockClock
) -> None:
    """It fails, and what was under way beside it does not."""
    asked = 0

    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        nonlocal asked
        it_is = request.command == command and request.offset in (0, 3 * BLOCK)
        if deadly and it_is and (command is Cmd.FLUSH or request.offset):
            asked += 1
            made.kill()
            return []
        return reply

    deadly = False
    old = Old(edit=edit)
    async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
        client, neighbour = await opened(gateway), await opened(gateway)
        async with client.stream, neighbour.stream:
            assert await write(neighbour) == 0
            assert await flush(neighbour) == 0
            deadly = True
            old.holds = lambda request: request.command == Cmd.READ and request.offset != 3 * BLOCK
            for number in range(3):
                await client.send(Cmd.READ, number * BLOCK, BLOCK)
                await neighbour.send(Cmd.READ, number * BLOCK, BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            old.free.set()
            nowhere = command is Cmd.FLUSH
            await client.send(command, 0 if nowhere else 3 * BLOCK, 0 if nowhere else BLOCK)
            last = client._cookie
            replies = [await client.simple_reply() for _ in range(4)]
            errors = {cookie: error for cookie, error, _data in replies}
            assert errors.pop(last) == Errno.EIO
            assert set(errors.values()) == {0}
            assert asked == 2
            for _ in range(3):
                assert (await neighbour.simple_reply())[1] == 0
            assert await read(neighbour) == (0, CONTENT)


@pytest.mark.parametrize("command", [Cmd.READ, Cmd.FLUSH])
async def test_what_the_gateway_asks_by_itself_after_a_loss_is_not_asked_for_ever(
    command: Cmd, autojump_clock: trio.testing.MockClock
) -> None:
    """A place that was flushed is looked at, which no client reads; or what is found is flushed."""
    asked = 0

    def edit(request: Request, reply: list[bytes]) -> Iterable[bytes]:
        nonlocal asked
        if deadly and request.command == command and request.offset != 3 * BLOCK:
            asked += 1
            made.kill()
            return []
        return reply

    deadly = False
    old = Old(edit=edit)
    shared = Connections(shared=True)
    verify = mode_with(
        shared, survival=replace(SURVIVAL, unflushed=Doubt.VERIFY, late_write_seconds=0)
    )
    mode = MODE if command is Cmd.READ else verify
    with structlog.testing.capture_logs() as lines:
        async with restarting(old.server, mode) as (gateway, made):
            client = await opened(gateway)
            async with client.stream:
                assert await write(client) == 0
                if command is Cmd.READ:
                    assert await flush(client) == 0
                deadly = True
                made.kill()
                begun = trio.current_time()
                assert (await read(client, 3 * BLOCK))[0] == 0
                assert trio.current_time() - begun < 10
                assert asked == (MOST_WRITE_DEATHS if command is Cmd.FLUSH else MOST_LOSSES)
                deadly = False
                assert await flush(client) == (Errno.EIO if command is Cmd.FLUSH else 0)
                assert await flush(client) == 0
                assert await read(client) == (0, CONTENT)
    if command is Cmd.READ:
        [line] = [line for line in lines if "it is not looked at any more" in line["event"]]
        assert (line["offset"], line["bytes"]) == (0, BLOCK)


# --- An export that is gone


@pytest.mark.parametrize("wanted", WANTED[:2], ids=map(str, WANTED[:2]))
async def test_an_export_that_the_server_has_no_more_ends_its_sessions(
    wanted: Connections, autojump_clock: trio.testing.MockClock
) -> None:
    old = Old()
    with structlog.testing.capture_logs() as lines:
        async with restarting(old.server, mode_with(wanted, survival=TRUSTED)) as (gateway, made):
            client = await opened(gateway)
            async with client.stream:
                made.kill(Server({"other": old.disk}))
                begun = trio.current_time()
                await client.send(Cmd.READ, 0, BLOCK)
                assert (await client.simple_reply())[1] == Errno.EIO
                assert not await client.stream.receive_some()
                assert trio.current_time() - begun < REJECTIONS_SECONDS + 1
    [end] = [line for line in lines if line["event"] == "session ended"]
    assert "has the export no more" in end["why"]
    assert "ERR_UNKNOWN" in end["why"]


async def test_an_export_that_comes_a_little_later_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    old = Old()
    async with restarting(old.server, mode_with(survival=TRUSTED)) as (gateway, made):
        client = await opened(gateway)
        async with client.stream:
            made.kill(Server({"other": old.disk}))
            await client.send(Cmd.READ, 0, BLOCK)
            await trio.sleep(2)
            made.server = old.next()
            assert (await client.simple_reply())[1] == 0
