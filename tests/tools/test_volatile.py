"""The server with a volatile cache: by itself, and under a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from gateway.wire.constants import Cmd, CmdFlag, Errno
from tests.embedded.peers import Client, connected, socket_pair
from tests.sessions.gateways import ENDS_WITH_ITS_LINK, gateway_before
from tests.tools.oracle import Oracle
from tests.tools.stamps import BLOCK_BYTES, Broken, content, stamps_of
from tests.tools.volatile import Piece, Store, VolatileServer, everything, some, torn

SIZE = 16 * BLOCK_BYTES
A, B = b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES


# --- Store


def test_a_store_loses_what_is_not_flushed() -> None:
    store = Store(SIZE)
    store.write(0, A)
    store.flush()
    store.write(0, B)
    store.write(BLOCK_BYTES, B)
    assert store.read(0, 2 * BLOCK_BYTES) == B + B
    assert store.crash() == 2 * BLOCK_BYTES
    assert store.read(0, 2 * BLOCK_BYTES) == A + bytes(BLOCK_BYTES)
    assert not store.unstable


def test_fua_makes_its_range_stable_and_nothing_below_comes_out_later() -> None:
    store = Store(SIZE)
    store.write(0, A + A + A)
    store.write(100, b"f" * 1000, fua=True)
    assert store.unstable == [Piece(0, b"a" * 100), Piece(1100, b"a" * (3 * BLOCK_BYTES - 1100))]
    store.crash(everything)
    assert store.stable[: 3 * BLOCK_BYTES] == (
        b"a" * 100 + b"f" * 1000 + b"a" * (3 * BLOCK_BYTES - 1100)
    )
    store.write(0, A)
    store.write(0, B + B, fua=True)
    assert not store.unstable
    store.crash()
    assert store.read(0, 2 * BLOCK_BYTES) == B + B


def test_a_crash_keeps_what_it_is_told() -> None:
    store = Store(SIZE)
    store.write(0, A)
    store.write(0, B)
    store.write(BLOCK_BYTES, B)
    assert store.crash(lambda pieces: [pieces[0], pieces[2]]) == BLOCK_BYTES
    assert store.read(0, 2 * BLOCK_BYTES) == A + B


def test_a_flush_may_cover_one_connection_only() -> None:
    store = Store(SIZE)
    store.write(0, A + A, connection=1)
    store.write(BLOCK_BYTES, B, connection=2)
    store.flush(1)
    assert store.unstable == [Piece(BLOCK_BYTES, B, 2)]
    store.write(0, A, connection=1)
    store.write(0, B, connection=2)
    store.flush(2)
    assert not store.unstable  # the newer lies over it
    assert store.stable[: 2 * BLOCK_BYTES] == B + B
    store.write(0, A, connection=1)
    store.adopt(1)
    store.flush(2)
    store.crash()
    assert store.read(0, BLOCK_BYTES) == A


def test_what_a_flush_has_failed_to_write_is_seen_and_never_stable() -> None:
    store = Store(SIZE)
    store.write(0, A, connection=1)
    store.write(BLOCK_BYTES, A, connection=2)
    store.fail(1)
    store.flush()
    assert store.read(0, 2 * BLOCK_BYTES) == A + A
    assert store.crash(everything) == BLOCK_BYTES
    assert store.read(0, 2 * BLOCK_BYTES) == bytes(BLOCK_BYTES) + A


def test_writes_are_torn_at_blocks() -> None:
    piece = Piece(500, bytes(range(256)) * 4)
    pieces = torn([piece])
    assert [(each.offset, each.end) for each in pieces] == [(500, 512), (512, 1024), (1024, 1524)]
    assert b"".join(each.data for each in pieces) == piece.data


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_oracle_allows_all_that_a_crash_may_leave(shuffle: bool) -> None:
    """And what is left differs, so that it is worth asking."""
    lost = kept = 0
    for seed in range(100):
        random = Random(seed)
        store, oracle = Store(SIZE), Oracle(SIZE // BLOCK_BYTES)
        session = oracle.session("one")
        for _ in range(30):
            start = random.randrange(12)
            op = session.write(start, random.randint(1, 4), fua=random.random() < 0.1)
            store.write(start * BLOCK_BYTES, op.data, fua=op.fua)
            op.end()
            if random.random() < 0.1:
                flush = session.flush()
                store.flush()
                flush.end()
        loss = oracle.lose()
        store.crash(some(random, shuffle=shuffle))
        oracle.dead(loss)
        now = oracle.check_stable(stamps_of(store.stable))
        lost += now
        kept += not now
    assert lost > 100
    assert kept


# --- Server


@asynccontextmanager
async def gone(server: VolatileServer) -> AsyncIterator[Client]:
    """A client whose connection need not live until the end."""
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        async with ours:
            client = Client(ours)
            await client.go()
            yield client


async def test_it_crashes_and_comes_back() -> None:
    server = VolatileServer(SIZE)
    async with gone(server) as client:
        assert await client.error(Cmd.WRITE, data=A) == 0
        assert await client.error(Cmd.FLUSH) == 0
        assert await client.error(Cmd.WRITE, data=B) == 0
        assert await client.error(Cmd.WRITE, BLOCK_BYTES, data=B, flags=CmdFlag.FUA) == 0
        assert await client.read(0, 2 * BLOCK_BYTES) == B + B
        assert server.crash() == BLOCK_BYTES
        assert await client.rest() == b""
        assert not server.open
    async with connected(server) as client:
        assert await client.rest() == b""  # it is down
    server.start()
    async with gone(server) as client:
        assert await client.read(0, 2 * BLOCK_BYTES) == A + B
    assert server.disk.counts == {"write": 3, "flush": 1, "fua": 1, "read": 2, "crash": 1}


async def test_commands_are_carried_out_and_answered_as_the_test_says() -> None:
    server = VolatileServer(SIZE)
    disk = server.disk
    disk.hold()
    async with gone(server) as client:
        first = await client.send(Cmd.WRITE, data=A)
        await disk.held(1)
        second = await client.send(Cmd.WRITE, data=B)
        await disk.held(2)
        reading = await client.send(Cmd.READ, 0, BLOCK_BYTES)
        one, other, read = await disk.held(3)
        assert (one.command, one.data, other.data, read.command) == ("write", A, B, "read")
        other.carry_out()
        read.answer()
        assert (await client.reply(reading))[0].data == B
        one.answer()
        await client.reply(first)
        assert disk.store.read(0, BLOCK_BYTES) == A
        other.answer()
        await client.reply(second)
        disk.holds = lambda pending: pending.command == "flush"
        assert await client.read(0, BLOCK_BYTES) == A
        flush = await client.send(Cmd.FLUSH)
        (pending,) = await disk.held()
        pending.fail()
        (chunk,) = await client.reply(flush)
        assert chunk.error == Errno.EIO
        flush = await client.send(Cmd.FLUSH)
        await disk.held()
        disk.release()
        await client.reply(flush)
        assert disk.counts["flush"] == 1
        assert not disk.pending


async def test_a_crash_takes_along_what_is_pending_and_a_cut_does_not() -> None:
    server = VolatileServer(SIZE)
    disk = server.disk
    disk.hold("write")
    async with gone(server) as client:
        await client.send(Cmd.WRITE, data=A)
        (late,) = await disk.held()
        assert late.connection == 0
        client.stream.socket.close()
        await trio.testing.wait_all_tasks_blocked()
        async with gone(server) as another:
            assert await another.read(0, BLOCK_BYTES) == bytes(BLOCK_BYTES)
            late.carry_out()
            assert await another.read(0, BLOCK_BYTES) == A
            late.answer()
            await another.send(Cmd.WRITE, data=B)
            (never,) = await disk.held()
            assert never.connection == 1
            server.crash()
            assert not disk.pending
            with pytest.raises(AssertionError, match="a crash has taken it along"):
                never.carry_out()
            assert await another.rest() == b""


@pytest.mark.parametrize("count", [1, 20, 28, 300])
async def test_it_crashes_in_the_middle_of_a_reply(count: int) -> None:
    server = VolatileServer(SIZE)
    async with gone(server) as client:
        server.crash_after_sending(count)
        await client.send(Cmd.READ, 0, BLOCK_BYTES)
        assert len(await client.rest()) == count
    assert server.down


async def test_under_a_gateway() -> None:
    """A gateway without survival: the client goes with the server, and a later one sees what was lost."""
    server = VolatileServer(SIZE)
    oracle = Oracle(SIZE // BLOCK_BYTES)
    async with gateway_before(
        server, refuse=lambda: server.down, mode=ENDS_WITH_ITS_LINK
    ) as gateway:
        session = oracle.session("one")
        client = gateway.client()
        await client.go()
        for start, flush in ((0, True), (1, False)):
            op = session.write(start, 1)
            assert await client.error(Cmd.WRITE, start * BLOCK_BYTES, data=op.data) == 0
            op.end()
            if flush:
                flushing = session.flush()
                flushing.end(await client.error(Cmd.FLUSH))
        loss = oracle.lose()
        assert server.crash()
        oracle.dead(loss)
        assert await client.rest() == b""
        await client.stream.aclose()
        session.close()
        session.seen_off()
        assert oracle.check_stable(stamps_of(server.disk.store.stable)) == 1
        server.start()
        session = oracle.session("two")
        client = gateway.client()
        await client.go()
        reading = session.read(0, 2)
        data = await client.read(0, 2 * BLOCK_BYTES)
        assert data == content(1, 0, 1) + bytes(BLOCK_BYTES)
        with pytest.raises(Broken, match="block 1 has stamp 0"):
            reading.end(data=data)
        await client.send(Cmd.DISC)
        await client.stream.aclose()
