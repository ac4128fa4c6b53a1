"""A negotiation may be cancelled anywhere: the server is told what it can understand, and then the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.upstream import server as upstream
from gateway.upstream.errors import Silent
from gateway.upstream.greeting import greeted
from gateway.upstream.handshake import FAREWELL_SECONDS
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation, listed_apart
from gateway.wire.constants import HandshakeFlag, Opt
from gateway.wire.handshake import CLIENT_FLAGS, encode_option
from gateway.wire.limits import MIB
from gateway.wire.transmission import DISC
from tests.embedded.peers import socket_pair
from tests.upstream.options import FLAGS, understood
from tests.upstream.servers import server_to
from tests.upstream.taps import Tap, cancelled_at

PLAIN = PERSONALITIES["plain"]
TERMS = Terms("", structured=True, queries=("base:allocation",))


async def opens(server: upstream.Server) -> None:
    negotiation = Negotiation(server)
    try:
        await negotiation.describe(TERMS)
        (await negotiation.go(TERMS)).close()
    finally:
        await negotiation.aclose()


async def is_greeted(server: upstream.Server) -> None:
    slot = await server.slot(patient=False)
    await (await greeted(server, slot, patient=False)).aclose()


async def lists(server: upstream.Server) -> None:
    await listed_apart(server)


Act = Callable[[upstream.Server], Awaitable[None]]


async def cancelled_everywhere(act: Act, personality: Personality) -> set[bytes]:
    """What servers have heard that were left at each step of something, one after the other."""
    heard: set[bytes] = set()
    ours = Server({"": MemoryDisk(MIB)}, personality)
    number = 0

    async def once() -> bool:
        taps: list[Tap] = []
        async with trio.open_nursery() as nursery:

            async def connect() -> trio.SocketStream:
                taps.append(Tap())
                return taps[-1].connect(nursery, ours.serve)

            server = server_to("main", connect, negotiate_seconds=5)
            cancelled = await cancelled_at(number, partial(act, server))
        assert [tap.end for tap in taps] == ["FIN"] * len(taps), f"at step {number}"
        heard.update(tap.sent for tap in taps)
        return cancelled

    while True:
        number += 1
        if not await once():
            assert number > 3  # it was cancelled in several places
            return heard


@pytest.mark.parametrize("act", [opens, lists])
async def test_a_server_understands_whatever_is_cancelled(
    act: Act, autojump_clock: trio.testing.MockClock
) -> None:
    heard = await cancelled_everywhere(act, PLAIN)
    assert any(understood(sent) for sent in heard)
    for sent in heard:
        assert Opt.ABORT not in understood(sent)[:-1]


async def test_a_greeting_that_nobody_reads_is_no_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Cancelled when the server has said something, and it was not looked at."""
    tap = Tap()
    ours = Server({"": MemoryDisk(MIB)}, PLAIN)
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.SocketStream:
            stream = tap.connect(nursery, ours.serve)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            return stream

        server = server_to("main", connect, negotiate_seconds=5)
        with trio.CancelScope() as scope:
            await opens(server)
    assert (tap.sent, tap.end) == (b"", "FIN")


NOT_FIXED = replace(PLAIN, handshake_flags=0)
OLDSTYLE = replace(PLAIN, oldstyle=True)
OTHERS = {
    # what a server hears that is left behind its greeting
    "fixed newstyle": (PLAIN, FLAGS + encode_option(Opt.ABORT)),
    "fixed newstyle, with zeroes": (
        replace(PLAIN, handshake_flags=int(HandshakeFlag.FIXED_NEWSTYLE)),
        CLIENT_FLAGS.pack(1) + encode_option(Opt.ABORT),
    ),
    "newstyle": (NOT_FIXED, CLIENT_FLAGS.pack(0)),
    "oldstyle": (OLDSTYLE, DISC),
}


@pytest.mark.parametrize(("personality", "heard"), OTHERS.values(), ids=OTHERS)
async def test_every_handshake_is_left_in_its_own_words(
    personality: Personality, heard: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    assert await cancelled_everywhere(is_greeted, personality) == {heard}


async def test_a_server_that_does_not_hang_up_is_waited_for_no_longer_than_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        ours, theirs = socket_pair()

        async def connect() -> trio.SocketStream:
            return ours

        async def greet() -> None:
            await theirs.send_all(b"NBDMAGICIHAVEOPT\0\3")

        nursery.start_soon(greet)
        server = server_to("main", connect, negotiate_seconds=5)
        before = trio.current_time()
        with pytest.raises(Silent):
            await opens(server)
        assert trio.current_time() - before == 5  # of which it said nothing: that is enough
        with trio.move_on_after(1) as scope:
            async with theirs:
                while await theirs.receive_some():
                    pass
        assert not scope.cancelled_caught
        assert FAREWELL_SECONDS < 5
