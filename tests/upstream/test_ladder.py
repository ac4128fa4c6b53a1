"""The ladder: what is asked of servers that lose their way at what they do not know.

The servers are our embedded ones, which can be as old as those that the rungs are there for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.embedded.personality import EXPORT_NAME_ONLY, WITHOUT_STRUCTURED_REPLIES
from gateway.protocol.errors import Refusal
from gateway.upstream import server as upstream
from gateway.upstream.negotiation import Negotiation, Terms, list_exports, next_rung
from gateway.upstream.server import Rung, Unreachable
from gateway.wire import limits
from gateway.wire.constants import HandshakeFlag, Rep
from tests.embedded.peers import socket_pair

PLAIN = PERSONALITIES["plain"]
SIZE = limits.MIB
STRUCTURED = Terms("", structured=True, queries=("base:allocation",))
SIMPLE = Terms("", structured=False)


@dataclass
class Upstream:
    """One of ours, and how often it was connected to."""

    server: upstream.Server
    connections: int = 0


@asynccontextmanager
async def upstream_of(personality: Personality, *, dead_first: int = 0) -> AsyncIterator[Upstream]:
    """An upstream; the first `dead_first` connections to it are closed before any greeting."""
    async with trio.open_nursery() as nursery:
        ours = Server({"": MemoryDisk(SIZE), "other": MemoryDisk(SIZE)}, personality)

        async def connect() -> trio.SocketStream:
            near, far = socket_pair()
            it.connections += 1
            if it.connections <= dead_first:
                await far.aclose()
            else:
                nursery.start_soon(ours.serve, far)
            return near

        it = Upstream(upstream.Server("main", connect, negotiate_seconds=5))
        yield it
        nursery.cancel_scope.cancel()


async def opened(server: upstream.Server, terms: Terms) -> tuple[Rung, bool, tuple[str, ...]]:
    """The rung that an export was opened on, whether it is structured, and the contexts selected."""
    negotiation = Negotiation(server)
    try:
        link = await negotiation.go(terms)
    finally:
        await negotiation.aclose()
    link.socket.close()
    assert link.export.size == SIZE
    names = tuple(context.name for context in link.export.contexts)
    return link.rung, link.export.structured, names


LOSES_ITS_WAY = {
    "knows everything": (PLAIN, Rung.FULL, 1),
    "lacks structured replies, says so": (
        replace(PLAIN, unsupported=WITHOUT_STRUCTURED_REPLIES),
        Rung.FULL,
        1,
    ),
    "lacks structured replies, loses its way": (
        replace(PLAIN, unsupported=WITHOUT_STRUCTURED_REPLIES, leaves_payload=True),
        Rung.FULL,  # STRUCTURED_REPLY has no payload that could be left over
        1,
    ),
    "has EXPORT_NAME alone, says so": (replace(PLAIN, unsupported=EXPORT_NAME_ONLY), Rung.FULL, 1),
    "has EXPORT_NAME alone, loses its way": (
        replace(PLAIN, unsupported=EXPORT_NAME_ONLY, leaves_payload=True),
        Rung.EXPORT_NAME,
        3,
    ),
    "is not fixed newstyle": (
        replace(PLAIN, handshake_flags=HandshakeFlag.NO_ZEROES),
        Rung.FULL,
        1,
    ),
    "is oldstyle": (replace(PLAIN, oldstyle=True), Rung.FULL, 1),
}


@pytest.mark.parametrize(
    ("personality", "rung", "connections"), LOSES_ITS_WAY.values(), ids=LOSES_ITS_WAY
)
async def test_every_server_is_served_on_the_highest_rung_that_it_bears(
    personality: Personality, rung: Rung, connections: int
) -> None:
    async with upstream_of(personality) as it:
        found, structured, contexts = await opened(it.server, STRUCTURED)
        assert found == rung
        assert structured == (personality is PLAIN)
        assert contexts == (("base:allocation",) if structured else ())
        assert it.connections == connections
        # The next one does not pay for the way down again.
        assert await opened(it.server, STRUCTURED) == (found, structured, contexts)
        assert it.connections == connections + 1


async def test_the_rung_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    lost = replace(PLAIN, unsupported=EXPORT_NAME_ONLY, leaves_payload=True)
    async with upstream_of(lost) as it:
        assert (await opened(it.server, SIMPLE))[0] is Rung.EXPORT_NAME
        assert it.server.rung == Rung.EXPORT_NAME
        await trio.sleep(upstream.RUNG_SECONDS + 1)
        later: Rung = it.server.rung
        assert later == Rung.FULL


async def test_a_connection_that_closes_before_its_greeting_says_nothing_about_options() -> None:
    async with upstream_of(PLAIN, dead_first=1) as it:
        with pytest.raises(Unreachable, match="before its greeting"):
            await opened(it.server, STRUCTURED)
        assert it.connections == 1
        assert await opened(it.server, STRUCTURED) == (Rung.FULL, True, ("base:allocation",))


def test_no_rung_is_tried_that_asks_the_same_again() -> None:
    everything = Terms("", structured=True, extended=True)
    assert next_rung(Rung.FULL, everything) is Rung.STRUCTURED
    assert next_rung(Rung.STRUCTURED, everything) is Rung.SIMPLE
    assert next_rung(Rung.FULL, STRUCTURED) is Rung.SIMPLE
    assert next_rung(Rung.FULL, SIMPLE) is Rung.EXPORT_NAME
    assert next_rung(Rung.SIMPLE, STRUCTURED) is Rung.EXPORT_NAME
    assert next_rung(Rung.EXPORT_NAME, STRUCTURED) is None


async def test_a_name_that_export_name_does_not_find_is_unknown_and_costs_no_rung() -> None:
    old = replace(PLAIN, handshake_flags=HandshakeFlag.NO_ZEROES)
    async with upstream_of(old) as it:
        with pytest.raises(Refusal) as refused:
            await opened(it.server, Terms("none", structured=False))
        assert refused.value.reply == Rep.ERR_UNKNOWN
        assert it.server.rung == Rung.FULL


async def test_a_list_is_asked_for_once_by_all_who_want_it_together() -> None:
    async with upstream_of(PLAIN) as it:
        answers: list[list[str]] = []

        async def ask() -> None:
            listed = await it.server.listing(list_exports)
            answers.append([export.name for export in listed])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert answers == [["", "other"]] * 5
        assert it.connections == 1


async def test_a_server_that_cannot_list_is_asked_once_as_well() -> None:
    async with upstream_of(replace(PLAIN, handshake_flags=HandshakeFlag.NO_ZEROES)) as it:
        for _ in range(2):
            with pytest.raises(Refusal) as refused:
                await it.server.listing(list_exports)
            assert refused.value.reply == Rep.ERR_UNSUP
        assert it.connections == 1
