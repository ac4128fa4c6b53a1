"""Who looks at one export after the other needs no connection for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Server
from gateway.embedded.personality import PLAIN, lacking
from gateway.protocol.errors import Refusal
from gateway.upstream.errors import Unreachable
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.option_phase import OF_QEMU
from gateway.upstream.option_room import MOST_OPTIONS
from gateway.wire.constants import BASE_ALLOCATION, Opt, TransmissionFlag
from gateway.wire.handshake import ListedExport
from tests.upstream.options import understood
from tests.upstream.servers import server_to
from tests.upstream.taps import Tap

NAMES = [f"disk {number}" for number in range(MOST_OPTIONS)]
OLDER = replace(PLAIN, flags=lacking(TransmissionFlag.SEND_FAST_ZERO, TransmissionFlag.SEND_CACHE))
"""It may be qemu 3.0, for all that is seen."""

OTHER = replace(PLAIN, flags=lacking(TransmissionFlag.SEND_FAST_ZERO))
"""No qemu up to 4.1 has both bits."""

SIZES = {name: 512 * number + 512 for number, name in enumerate(NAMES)}


class House:
    def __init__(
        self,
        nursery: trio.Nursery,
        *faults: Faults,
        personality: Personality = PLAIN,
        listed: bool = False,
    ) -> None:
        disks = {name: MemoryDisk(size) for name, size in SIZES.items()}
        left = list(faults)
        self.server = Server(disks, personality, faults=lambda _: left.pop(0) if left else Faults())
        self.taps: list[Tap] = []
        self.upstream = server_to("main", self._connect, max_connections=2)
        self.negotiation = Negotiation(self.upstream, listed=listed)
        self._nursery = nursery

    async def _connect(self) -> trio.SocketStream:
        self.taps.append(Tap())
        return self.taps[-1].connect(self._nursery, self.server.serve)

    async def look(self, name: str) -> None:
        """As `qemu-nbd -L` does."""
        terms = Terms(name, structured=True)
        export, _dialect, _quirks = await self.negotiation.describe(terms)
        assert export.size == SIZES[name]
        [context] = await self.negotiation.list_contexts(terms, ())
        assert context.name == BASE_ALLOCATION


@pytest.mark.parametrize(("personality", "connections"), [(PLAIN, 3), (OLDER, 4)])
async def test_so_many_are_looked_at_over_one_connection(
    personality: Personality, connections: int
) -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery, personality=personality)
        for name in NAMES:
            await house.look(name)
        assert len(house.taps) == connections
        await house.negotiation.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for tap in house.taps:
            assert (
                MOST_OPTIONS // 2 < len(understood(tap.sent)) <= MOST_OPTIONS
                or tap is house.taps[-1]
            )
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("personality", [PLAIN, OLDER], ids=["plain", "older"])
async def test_who_has_a_list_looks_at_all_of_it_over_one_connection(
    personality: Personality,
) -> None:
    """A server that bears so many options bears more of them from who asks it for a list."""
    async with trio.open_nursery() as nursery:
        personality = replace(personality, most_options=MOST_OPTIONS)
        house = House(nursery, personality=personality, listed=True)
        for _ in range(3):
            for name in NAMES:
                await house.look(name)
        await house.negotiation.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        [tap] = house.taps
        assert understood(tap.sent).count(Opt.LIST) == 1
        assert understood(tap.sent)[-1] == Opt.ABORT
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("unsupported", [True, False])
async def test_who_is_told_no_list_there_looks_at_it_over_several(unsupported: bool) -> None:
    """Or one of a single name: a server that has no more to tell bears no more."""
    async with trio.open_nursery() as nursery:
        without = frozenset({Opt.LIST} if unsupported else ())
        personality = replace(PLAIN, most_options=MOST_OPTIONS, unsupported=without)
        house = House(nursery, personality=personality, listed=True)
        if not unsupported:
            house.server.listed = lambda: [ListedExport(NAMES[0])]  # type: ignore[method-assign]
        for name in NAMES:
            await house.look(name)
        await house.negotiation.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(house.taps) == 3
        for tap in house.taps:
            assert len(understood(tap.sent)) <= MOST_OPTIONS
            assert understood(tap.sent)[-1] == Opt.ABORT  # it was not closed by the server
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("personality", "asked"), [(PLAIN, 1), (OLDER, 2), (OTHER, 1)])
async def test_contexts_are_listed_once_and_once_more_by_who_may_forget_some(
    personality: Personality, asked: int
) -> None:
    """Q-S3; qemu's client, who has seen none of qemu's, asks for those by itself."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, personality=personality)
        await house.look(NAMES[0])
        assert understood(house.taps[0].sent).count(Opt.LIST_META_CONTEXT) == asked
        terms = Terms(NAMES[0], structured=True)
        assert await house.negotiation.list_contexts(terms, OF_QEMU) == ()
        assert understood(house.taps[0].sent).count(Opt.LIST_META_CONTEXT) == asked
        other = await house.negotiation.list_contexts(terms, (BASE_ALLOCATION,))
        assert [context.name for context in other] == [BASE_ALLOCATION]
        assert understood(house.taps[0].sent).count(Opt.LIST_META_CONTEXT) == asked + 1
        await house.negotiation.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_that_has_had_enough_is_asked_over_another() -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery, Faults(cut_at_option=6), Faults(cut_at_option=5))
        for name in NAMES[:5]:
            await house.look(name)
        assert len(house.taps) == 3
        await house.negotiation.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["opens", "selects"])
async def test_what_is_opened_or_selected_has_a_connection_of_its_own(what: str) -> None:
    """Also the last that was looked at: servers have been wrong about a second export."""
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        await house.look(NAMES[0])
        await house.look(NAMES[1])
        queries = (BASE_ALLOCATION,) if what == "selects" else None
        terms = Terms(NAMES[1], structured=True, queries=queries)
        if what == "selects":
            await house.negotiation.contexts(terms)
        link = await house.negotiation.go(terms)
        assert link.export.size == SIZES[NAMES[1]]
        link.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        asked = understood(house.taps[1].sent)
        assert (len(house.taps), asked[-1]) == (2, Opt.GO)
        assert (Opt.SET_META_CONTEXT in asked) == (what == "selects")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("oldstyle", [False, True])
async def test_a_server_without_contexts_is_connected_to_once(oldstyle: bool) -> None:
    """Who asks for contexts first is told that there are none; and there may be no other connection."""
    personality = replace(PERSONALITIES["qemu-2.5"], oldstyle=oldstyle)
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        house.server = Server({"": MemoryDisk(512)}, personality)
        asked = Terms("", structured=True, queries=(BASE_ALLOCATION,))
        with pytest.raises(Refusal, match="no meta contexts"):
            await house.negotiation.contexts(asked)
        made = len(house.taps)
        link = await house.negotiation.go(Terms("", structured=True))
        assert link.export.size == 512
        assert len(house.taps) == made
        assert made == 1 or not oldstyle
        link.close()
        nursery.cancel_scope.cancel()


async def test_who_opens_what_it_has_looked_at_alone_uses_that_connection() -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        await house.look(NAMES[0])
        (await house.negotiation.go(Terms(NAMES[0], structured=True))).close()
        assert len(house.taps) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("personality", [PLAIN, OLDER, PERSONALITIES["qemu-3.0"]])
async def test_who_asks_what_an_export_is_before_it_selects_contexts_needs_one_connection(
    personality: Personality,
) -> None:
    """There may be no other: qemu-nbd up to 3.0 may serve one, and then end."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, personality=personality)
        without = Terms(NAMES[0], structured=True)
        told, _dialect, _quirks = await house.negotiation.describe(without)
        assert told.contexts == ()
        terms = replace(without, queries=(BASE_ALLOCATION,))
        [selected] = await house.negotiation.contexts(terms)
        told, _dialect, quirks = await house.negotiation.describe(terms)
        link = await house.negotiation.go(terms)
        assert told.contexts == link.export.contexts == (selected,)
        assert (link.export.size, link.quirks) == (SIZES[NAMES[0]], quirks)
        link.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        [tap] = house.taps
        assert understood(tap.sent).count(Opt.SET_META_CONTEXT) == 1
        nursery.cancel_scope.cancel()


async def test_a_connection_in_place_of_one_that_was_left_has_a_place_again() -> None:
    """Who was given one may need another connection for it."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, Faults(cut_at_option=1))
        server = house.upstream
        negotiation = Negotiation(server, slot=await server.slot())
        link = await negotiation.go(Terms(NAMES[0], structured=True))
        assert len(house.taps) == 2
        assert server.slots.limiter.borrowed_tokens == 1
        link.close()
        assert server.slots.limiter.borrowed_tokens == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("name", ["plain", "qemu-3.0", "nbd-server-3.24", "qemu-2.5", "oldstyle"])
async def test_who_asks_for_a_list_first_needs_one_connection(name: str, structured: bool) -> None:
    """There may be no other; qemu's client before 2.10 always begins with a list."""
    is_old = name in ("qemu-2.5", "oldstyle")
    personality = replace(PLAIN, oldstyle=True) if name == "oldstyle" else PERSONALITIES[name]
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        house.server = Server({"": MemoryDisk(512), "b": MemoryDisk(1024)}, personality)
        listed = await house.negotiation.list_exports()
        assert [each.name for each in listed] == (["", "b"] if name != "oldstyle" else [""])
        if (
            name == "qemu-2.5"
        ):  # which loses its way at what it does not know; that is its whole ladder
            house.upstream.ladder.answered(Rung.EXPORT_NAME, Rung.EXPORT_NAME, trio.current_time())
        terms = Terms("", structured=structured)
        if structured and not is_old:
            assert (await house.negotiation.describe(terms))[0].size == 512
        link = await house.negotiation.go(terms)
        assert link.export.size == 512
        assert link.export.structured == (structured and name in ("plain", "qemu-3.0"))
        assert len(house.taps) == 1
        link.close()
        nursery.cancel_scope.cancel()


async def test_a_list_may_come_after_other_questions() -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        await house.look(NAMES[0])
        assert len(await house.negotiation.list_exports()) == len(NAMES)
        terms = Terms(NAMES[0], structured=True, queries=(BASE_ALLOCATION,))
        [selected] = await house.negotiation.contexts(terms)
        assert len(await house.negotiation.list_exports()) == len(NAMES)
        link = await house.negotiation.go(terms)
        assert link.export.contexts == (selected,)
        assert len(house.taps) == 1
        link.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("full", [False, True])
async def test_a_list_of_a_server_whose_export_is_open_is_asked_for_on_another_connection(
    full: bool,
) -> None:
    """Without INFO only what was opened is known, and nothing else can be asked there."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, personality=PERSONALITIES["qemu-2.8"])
        if full:
            house.upstream.slots.limiter.total_tokens = 1
        terms = Terms(NAMES[0], structured=False)
        await house.negotiation.describe(terms)
        assert len(await house.negotiation.list_exports()) == len(NAMES)
        link = await house.negotiation.go(terms)
        assert link.export.size == SIZES[NAMES[0]]
        assert len(house.taps) == 2
        link.close()
        nursery.cancel_scope.cancel()


async def test_who_is_told_a_list_looks_at_all_of_it_over_one_connection() -> None:
    """The list itself makes room there for all that is on it."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, personality=replace(PLAIN, most_options=MOST_OPTIONS))
        for listed in await house.negotiation.list_exports():
            await house.look(listed.name)
        await house.negotiation.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        [tap] = house.taps
        assert understood(tap.sent).count(Opt.LIST) == 1
        nursery.cancel_scope.cancel()


async def test_a_server_that_loses_its_way_at_a_list_says_so_and_is_asked_anew() -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery, Faults(cut_at_option=1))
        with pytest.raises(Unreachable):
            await house.negotiation.list_exports()
        await house.look(NAMES[0])
        assert len(house.taps) == 2
        await house.negotiation.aclose()
        nursery.cancel_scope.cancel()


async def test_a_list_is_asked_for_anew_where_the_server_has_hung_up_meanwhile() -> None:
    """As qemu does after some seconds, and as any other question is."""
    async with trio.open_nursery() as nursery:
        house = House(nursery, Faults(cut_at_option=4))
        await house.look(NAMES[0])
        assert len(await house.negotiation.list_exports()) == len(NAMES)
        assert len(house.taps) == 2
        await house.negotiation.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["lists", "looks"])
async def test_an_oldstyle_server_is_asked_for_all_that_it_has_on_one_connection(
    first: str,
) -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        house.server = Server({"": MemoryDisk(512)}, replace(PLAIN, oldstyle=True))
        terms = Terms("", structured=True)
        if first == "looks":
            await house.negotiation.describe(terms)
        assert [each.name for each in await house.negotiation.list_exports()] == [""]
        (await house.negotiation.go(terms)).close()
        assert len(house.taps) == 1
        nursery.cancel_scope.cancel()


async def test_an_oldstyle_server_that_has_not_what_was_asked_for_has_what_it_has() -> None:
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        house.server = Server({"": MemoryDisk(512)}, replace(PLAIN, oldstyle=True))
        with pytest.raises(Refusal, match="default export alone"):
            await house.negotiation.describe(Terms("x", structured=True))
        export, _dialect, _quirks = await house.negotiation.describe(Terms("", structured=True))
        assert export.size == 512
        await house.negotiation.aclose()
        nursery.cancel_scope.cancel()
