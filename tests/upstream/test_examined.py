"""INFO goes before GO as long as nothing is known of a server, and where GO leaves a quirk in doubt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.net.dial import DialError
from gateway.protocol.client_role import Style
from gateway.quirks import Evidence, recognised
from gateway.upstream.circuits import MOST_BACK_OFF_SECONDS
from gateway.upstream.errors import Unreachable
from gateway.upstream.examined import MOST_EXAMINED, Examined
from gateway.upstream.ladder import RUNG_SECONDS
from gateway.upstream.link import Link, Terms
from gateway.upstream.negotiation import Negotiation
from gateway.wire.constants import Opt, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from tests.embedded.personalities import like_nbd_server
from tests.upstream.options import understood
from tests.upstream.servers import server_to
from tests.upstream.taps import Tap

PLAIN, QEMU_3_0 = PERSONALITIES["plain"], PERSONALITIES["qemu-3.0"]
NBD_SERVER = PERSONALITIES["nbd-server-3.24"]
OWN_DISKS = replace(
    NBD_SERVER,
    flags=lambda disk, structured: NBD_SERVER.flags(disk, structured) & ~Flag.CAN_MULTI_CONN,
)
TERMS = Terms("", structured=True)
FIRST, ALONE = [Opt.STRUCTURED_REPLY, Opt.INFO, Opt.GO], [Opt.STRUCTURED_REPLY, Opt.GO]


class House:
    """A server at one address, which may be exchanged, or refuse."""

    def __init__(self, nursery: trio.Nursery, personality: Personality) -> None:
        self.personality = personality
        self.refuses = False
        self.taps: list[Tap] = []
        self.upstream = server_to("main", self._connect)
        self._nursery = nursery

    async def _connect(self) -> trio.SocketStream:
        if self.refuses:
            raise DialError("refused", down=True)
        self.taps.append(Tap())
        ours = Server({name: MemoryDisk(MIB) for name in ("", "b")}, self.personality)
        return self.taps[-1].connect(self._nursery, ours.serve)

    async def opened(self, terms: Terms = TERMS) -> tuple[Link, list[list[int]]]:
        """Open the export, and close it: say what was sent over each connection for that."""
        before = len(self.taps)
        negotiation = Negotiation(self.upstream)
        try:
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        link.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        return link, [understood(tap.sent) for tap in self.taps[before:]]


@asynccontextmanager
async def house(personality: Personality) -> AsyncIterator[House]:
    async with trio.open_nursery() as nursery:
        yield House(nursery, personality)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("personality", "quirks"),
    [
        (PLAIN, ()),
        (QEMU_3_0, ("qemu-multi-conn-bit", "qemu-offset-reads")),
        (like_nbd_server(), ("nbd-server-df",)),
        (OWN_DISKS, ("nbd-server-own-disks",)),
    ],
    ids=["plain", "qemu-3.0", "nbd-server with DF", "nbd-server with own disks"],
)
async def test_what_is_known_is_not_asked_again(
    personality: Personality, quirks: tuple[str, ...]
) -> None:
    async with house(personality) as server:
        first, options = await server.opened()
        assert first.quirks == quirks
        assert options == [FIRST]
        again, options = await server.opened()
        assert options == [ALONE]
        assert (again.quirks, again.export) == (first.quirks, first.export)


async def test_who_was_asked_by_a_client_has_the_same_quirks() -> None:
    async with house(like_nbd_server()) as server:
        negotiation = Negotiation(server.upstream)
        _export, _dialect, quirks = await negotiation.describe(TERMS)
        link = await negotiation.go(TERMS)
        link.close()
        assert quirks == link.quirks == ("nbd-server-df",)


@pytest.mark.parametrize("personality", [OWN_DISKS, like_nbd_server(), QEMU_3_0])
async def test_who_asks_info_costs_a_known_server_no_connection_more(
    personality: Personality,
) -> None:
    async with house(personality) as server:
        known, _options = await server.opened()
        negotiation = Negotiation(server.upstream)
        await negotiation.describe(TERMS)
        link = await negotiation.go(TERMS)
        link.close()
        assert link.quirks == known.quirks
        assert len(server.taps) == 2


async def test_another_server_at_the_address_is_examined_anew() -> None:
    """It has come unseen, and says what leaves a quirk in doubt."""
    async with house(PLAIN) as server:
        await server.opened()
        server.personality = QEMU_3_0
        link, options = await server.opened()
        assert options == [ALONE, FIRST]
        assert server.taps[1].end == "FIN"
        assert link.quirks == ("qemu-multi-conn-bit", "qemu-offset-reads")
        assert not link.export.flags & Flag.CAN_MULTI_CONN
        for personality in (PLAIN, QEMU_3_0):
            server.personality = personality
            link, options = await server.opened()
            assert options == [ALONE]
        assert link.quirks == ("qemu-multi-conn-bit", "qemu-offset-reads")


async def test_nothing_is_known_of_a_server_that_was_seen_down_or_after_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with house(PLAIN) as server:
        await server.opened()
        server.refuses = True
        with pytest.raises(Unreachable):
            await server.opened()
        server.refuses = False
        await trio.sleep(MOST_BACK_OFF_SECONDS)
        assert (await server.opened())[1] == [FIRST]
        await trio.sleep(RUNG_SECONDS - 1)
        assert (await server.opened())[1] == [ALONE]
        await trio.sleep(2)
        assert (await server.opened())[1] == [FIRST]


@pytest.mark.parametrize("personality", [OWN_DISKS, like_nbd_server(), QEMU_3_0])
async def test_clients_with_structured_replies_and_without_are_told_alike(
    personality: Personality,
) -> None:
    simple = Terms("", structured=False)
    for first, then in ((simple, TERMS), (TERMS, simple)):
        async with house(personality) as server:
            await server.opened(first)
            link, options = await server.opened(then)
            assert len(options) == 1
            server.upstream.forget()
            assert (await server.opened(then))[0].quirks == link.quirks


async def test_what_is_forgotten_while_go_is_under_way_counts_for_it() -> None:
    """A connection that is kept ready, of a server that cannot be connected to: the next one cannot be had."""

    def flags(disk: object, structured: bool) -> int:
        assert isinstance(disk, MemoryDisk)
        if len(server.taps) == 2:
            server.upstream.forget()
            server.refuses = True
        return OWN_DISKS.flags(disk, structured)

    async with house(replace(OWN_DISKS, flags=flags)) as server:
        await server.opened()
        link, options = await server.opened()
        assert options == [ALONE]
        assert link.quirks == ("nbd-server-own-disks",)


async def test_every_export_may_say_something_else() -> None:
    """And is asked for once, where that is in doubt."""
    own = [True, False, False, True, False]

    def flags(disk: object, structured: bool) -> int:
        assert isinstance(disk, MemoryDisk)
        mask = Flag.CAN_MULTI_CONN if own[-1] else 0
        return NBD_SERVER.flags(disk, structured) & ~mask

    async with house(replace(NBD_SERVER, flags=flags)) as server:
        asked = []
        while own:
            link, options = await server.opened()
            assert (link.quirks == ("nbd-server-own-disks",)) is own.pop()
            asked.append(options)
        assert asked == [[FIRST], [ALONE, FIRST], [ALONE], [ALONE], [ALONE]]


def evidence(flags: int, reply: Rep | None = None) -> Evidence:
    return Evidence(Style.FIXED_NEWSTYLE, flags, None, reply, structured=True)


def test_evidence_is_completed_or_nobody_can_tell() -> None:
    examined, suspicious = Examined(), int(Flag.HAS_FLAGS | Flag.CAN_MULTI_CONN)
    assert not examined.known(0)
    harmless = replace(evidence(Flag.HAS_FLAGS), named=True)
    assert examined.settle(harmless, recognised, 0) == harmless
    assert examined.settle(evidence(suspicious), recognised, 0) is None
    shown = replace(evidence(suspicious, Rep.ACK), sizeless_info=True)
    examined.note(shown, 0)
    assert examined.known(0)
    assert examined.settle(evidence(suspicious), recognised, 0) == shown
    assert examined.settle(evidence(suspicious), recognised, RUNG_SECONDS) is None


def test_so_much_is_remembered() -> None:
    examined = Examined()
    for number in range(MOST_EXAMINED + 1):
        examined.note(evidence(number, Rep.ACK), 0)
        assert len(examined._shown) <= MOST_EXAMINED
    assert examined.known(0)
