"""The ladder: what is asked of servers that lose their way at what they do not know.

The servers are our embedded ones, which can be as old as those that the rungs are there for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Personality, Server
from gateway.embedded.faults import CLOSES_BEFORE_GREETING, Faults
from gateway.embedded.faults import NONE as NO_FAULTS
from gateway.embedded.personality import EXPORT_NAME_ONLY, WITHOUT_STRUCTURED_REPLIES
from gateway.net.dial import DialError
from gateway.protocol.errors import Refusal
from gateway.upstream import server as upstream
from gateway.upstream.backends import Connect
from gateway.upstream.errors import Unreachable
from gateway.upstream.ladder import RUNG_SECONDS, Climb, Ladder, Next, Rung, next_rung, shown_by
from gateway.upstream.link import Terms
from gateway.upstream.listing import exports_of
from gateway.upstream.negotiation import Negotiation
from gateway.wire import limits
from gateway.wire.constants import HandshakeFlag, Rep
from tests.embedded.peers import socket_pair
from tests.upstream.servers import server_to

PLAIN = PERSONALITIES["plain"]
SIZE = limits.MIB
STRUCTURED = Terms("", structured=True, queries=("base:allocation",))
SIMPLE = Terms("", structured=False)
EVERYTHING = replace(STRUCTURED, extended=True)


@dataclass
class Upstream:
    """One of ours, and how often it was connected to."""

    server: upstream.Server
    ours: Server
    connections: int = 0
    refuse: int = 0
    """So many of the next attempts are refused; and one after each of these numbers of connections."""
    refuse_after: set[int] = field(default_factory=set)
    connect: Connect = field(init=False)


@asynccontextmanager
async def upstream_of(
    personality: Personality, *, faults: Callable[[int], Faults] = lambda _number: NO_FAULTS
) -> AsyncIterator[Upstream]:
    """An upstream, with these faults of each connection by its number."""
    async with trio.open_nursery() as nursery:
        disks = {"": MemoryDisk(SIZE), "other": MemoryDisk(SIZE)}
        ours = Server(disks, personality, faults=faults)

        async def connect() -> trio.SocketStream:
            if it.refuse or it.connections in it.refuse_after:
                it.refuse = max(0, it.refuse - 1)
                it.refuse_after.discard(it.connections)
                raise DialError("nobody listens", down=True)
            near, far = socket_pair()
            it.connections += 1
            nursery.start_soon(ours.serve, far)
            return near

        it = Upstream(server_to("main", connect, negotiate_seconds=5), ours)
        it.connect = connect
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
        4,
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
        assert it.server.ladder.first(trio.current_time()) == Rung.EXPORT_NAME
        await trio.sleep(RUNG_SECONDS + 1)
        later: Rung = it.server.ladder.first(trio.current_time())
        assert later == Rung.FULL


async def test_connections_that_close_before_their_greeting_say_nothing_about_options(
    autojump_clock: trio.testing.MockClock,
) -> None:
    faults = dict.fromkeys(range(3), CLOSES_BEFORE_GREETING)
    async with upstream_of(PLAIN, faults=nth(faults)) as it:
        assert await opened(it.server, STRUCTURED) == (Rung.FULL, True, ("base:allocation",))
        assert it.connections == 4


async def test_a_name_that_export_name_does_not_find_is_unknown_and_costs_no_rung() -> None:
    old = replace(PLAIN, handshake_flags=HandshakeFlag.NO_ZEROES)
    async with upstream_of(old) as it:
        with pytest.raises(Refusal) as refused:
            await opened(it.server, Terms("none", structured=False))
        assert refused.value.reply == Rep.ERR_UNKNOWN
        assert it.server.ladder.first(trio.current_time()) == Rung.FULL


async def test_a_list_is_asked_for_once_by_all_who_want_it_together() -> None:
    async with upstream_of(PLAIN) as it:
        answers: list[list[str]] = []

        async def ask() -> None:
            listed = await exports_of(it.server)
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
                await exports_of(it.server)
            assert refused.value.reply == Rep.ERR_UNSUP
        assert it.connections == 1


# --- What dies looks old


def nth(faults: Mapping[int, Faults], others: Faults = NO_FAULTS) -> Callable[[int], Faults]:
    """The faults of each connection by its number, from 0."""
    return lambda number: faults.get(number, others)


CUT = Faults(cut_at_option=1)


@pytest.mark.parametrize("option", [1, 2, 3, 4, 5])
async def test_a_death_at_any_option_of_a_first_client_costs_nothing(
    option: int, autojump_clock: trio.testing.MockClock
) -> None:
    cut = Faults(cut_at_option=option)
    async with upstream_of(PLAIN, faults=nth({0: cut})) as it:
        found = await opened(it.server, EVERYTHING)
        assert found == (Rung.FULL, True, ("base:allocation",))


@pytest.mark.parametrize("terms", [EVERYTHING, STRUCTURED, SIMPLE], ids=["all", "some", "none"])
async def test_who_has_spoken_is_not_asked_for_less_however_often_it_dies(
    terms: Terms, autojump_clock: trio.testing.MockClock
) -> None:
    async with upstream_of(PLAIN, faults=nth(dict.fromkeys(range(1, 7), CUT))) as it:
        await opened(it.server, EVERYTHING)
        assert (await opened(it.server, terms))[0] is Rung.FULL
        assert it.connections == 8
        assert await opened(it.server, EVERYTHING) == (Rung.FULL, True, ("base:allocation",))


async def test_it_is_given_up_when_the_time_for_opening_is_over_and_the_text_says_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN, faults=nth({0: NO_FAULTS}, CUT)) as it:
        await opened(it.server, STRUCTURED)
        began = trio.current_time()
        with pytest.raises(Unreachable) as caught:
            await opened(it.server, STRUCTURED)
        assert trio.current_time() - began == 5
        assert caught.value.text == (
            "upstream 'main' has lost its way at an option on every connection for 5 s, and is not asked for"
            " less than it has spoken before: the peer closed the connection"
        )
        assert it.connections < 12  # there are pauses between them


async def test_a_link_in_place_of_another_goes_no_lower_than_that(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN, faults=nth(dict.fromkeys(range(6), CUT))) as it:
        negotiation = Negotiation(it.server, lowest=Rung.FULL)
        link = await negotiation.go(STRUCTURED)
        link.close()
        assert link.rung is Rung.FULL
        assert it.connections == 7


async def test_an_old_server_that_was_not_known_is_climbed_down_to_and_others_begin_there() -> None:
    for name in ("qemu-2.5", "nbd-server-3.14"):
        async with upstream_of(PERSONALITIES[name]) as it:
            assert (await opened(it.server, EVERYTHING))[0] is Rung.EXPORT_NAME
            assert it.connections == 5
            assert (await opened(it.server, EVERYTHING))[0] is Rung.EXPORT_NAME
            assert it.connections == 6


async def test_a_server_that_was_exchanged_for_an_old_one_is_found_out_when_it_was_seen_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN) as it:
        assert (await opened(it.server, EVERYTHING))[0] is Rung.FULL
        it.ours.personality = PERSONALITIES["qemu-2.5"]
        it.refuse = 1
        assert (await opened(it.server, EVERYTHING))[0] is Rung.EXPORT_NAME
        it.ours.personality = PLAIN
        it.refuse = 1
        assert (await opened(it.server, EVERYTHING))[0] is Rung.FULL


async def test_a_server_that_was_exchanged_unseen_is_found_out_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN) as it:
        await opened(it.server, EVERYTHING)
        it.ours.personality = PERSONALITIES["qemu-2.5"]
        with pytest.raises(Unreachable, match="less than it has spoken before"):
            await opened(it.server, EVERYTHING)
        await trio.sleep(RUNG_SECONDS)
        assert (await opened(it.server, EVERYTHING))[0] is Rung.EXPORT_NAME


@pytest.mark.parametrize("down", ["refused", "closed before its greeting"])
async def test_a_climb_begins_again_when_the_server_is_seen_down(
    down: str, autojump_clock: trio.testing.MockClock
) -> None:
    """It dies twice, at an option of a first client, and is seen down between."""
    faults = {0: CUT, 1: CUT, 2: CUT}
    if down != "refused":
        faults = {0: CUT, 1: CLOSES_BEFORE_GREETING, 2: CUT, 3: CLOSES_BEFORE_GREETING, 4: CUT}
    async with upstream_of(PLAIN, faults=nth(faults)) as it:
        it.refuse_after = {1, 2, 3} if down == "refused" else set()
        assert await opened(it.server, EVERYTHING) == (Rung.FULL, True, ("base:allocation",))


@pytest.mark.parametrize("sent", [1, 17])
async def test_a_death_in_the_middle_of_the_greeting_is_no_fault_of_an_option(
    sent: int, autojump_clock: trio.testing.MockClock
) -> None:
    faults = dict.fromkeys(range(5), Faults(cut_after_bytes=sent))
    async with upstream_of(PLAIN, faults=nth(faults)) as it:
        assert await opened(it.server, EVERYTHING) == (Rung.FULL, True, ("base:allocation",))
        assert it.connections == 6


async def test_what_greets_and_closes_for_ever_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN, faults=lambda _number: Faults(cut_after_bytes=17)) as it:
        began = trio.current_time()
        with pytest.raises(Unreachable, match="at its greeting: the peer closed"):
            await opened(it.server, EVERYTHING)
        assert trio.current_time() - began == 5


async def test_a_contexts_question_dies_and_the_answer_is_that_of_the_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN, faults=nth({0: Faults(cut_at_option=2)})) as it:
        negotiation = Negotiation(it.server)
        names = [each.name for each in await negotiation.contexts(EVERYTHING)]
        await negotiation.aclose()
        assert names == ["base:allocation"]


async def test_that_there_are_no_contexts_is_told_of_a_server_that_answers_on_its_rung(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Three connections die, and the fourth as soon as it is asked for anything; there is nothing to be asked
    of contexts on its rung.
    """
    async with upstream_of(PLAIN, faults=nth(dict.fromkeys(range(4), CUT))) as it:
        negotiation = Negotiation(it.server)
        with pytest.raises(Refusal) as refused:
            await negotiation.contexts(EVERYTHING)
        await negotiation.aclose()
        assert refused.value.reply == Rep.ERR_UNSUP
        assert it.connections == 5
        assert it.server.ladder.lowest(trio.current_time()) is Rung.EXPORT_NAME


async def test_structured_replies_that_are_refused_show_nothing_of_other_options() -> None:
    """STRUCTURED_REPLY has no data that could be taken for an option; INFO has."""
    async with upstream_of(PERSONALITIES["nbd-server-3.14"]) as it:
        negotiation = Negotiation(it.server)
        with pytest.raises(Refusal):
            await negotiation.contexts(EVERYTHING)
        link = await negotiation.go(EVERYTHING)
        link.close()
        assert link.rung is Rung.EXPORT_NAME


async def test_what_one_of_several_servers_bears_says_nothing_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with upstream_of(PLAIN) as new, upstream_of(PERSONALITIES["qemu-2.5"]) as old:
        both = server_to("both", new.connect, old.connect, negotiate_seconds=5)
        new.refuse = 1
        assert (await opened(both, EVERYTHING))[0] is Rung.EXPORT_NAME
        await trio.sleep(1)
        assert (await opened(both, EVERYTHING))[0] is Rung.FULL
        new.refuse = 100
        assert (await opened(both, EVERYTHING))[0] is Rung.EXPORT_NAME


# --- The rule alone

WANTS_ALL = {"structured": True, "extended": True}
WANTS_SOME = {"structured": True, "extended": False}
WANTS_NONE = {"structured": False, "extended": False}


def failing(climb: Climb, now: float, wanted: dict[str, bool]) -> tuple[Rung, Next]:
    """A connection that is made and loses its way: on which rung, and what is to be done."""
    rung = climb.rung(now)
    return rung, climb.failed(now, **wanted)


def test_no_rung_is_tried_that_asks_the_same_again() -> None:
    assert next_rung(Rung.FULL, **WANTS_ALL) is Rung.STRUCTURED
    assert next_rung(Rung.STRUCTURED, **WANTS_ALL) is Rung.SIMPLE
    assert next_rung(Rung.FULL, **WANTS_SOME) is Rung.SIMPLE
    assert next_rung(Rung.FULL, **WANTS_NONE) is Rung.EXPORT_NAME
    assert next_rung(Rung.SIMPLE, **WANTS_SOME) is Rung.EXPORT_NAME
    assert next_rung(Rung.EXPORT_NAME, **WANTS_SOME) is None


def test_nothing_is_shown_of_what_was_not_asked() -> None:
    assert shown_by(Rung.FULL, **WANTS_ALL) is Rung.FULL
    assert shown_by(Rung.FULL, **WANTS_SOME) is Rung.STRUCTURED
    assert shown_by(Rung.FULL, **WANTS_NONE) is Rung.SIMPLE
    assert shown_by(Rung.SIMPLE, **WANTS_ALL) is Rung.SIMPLE
    assert shown_by(Rung.EXPORT_NAME, **WANTS_NONE) is Rung.EXPORT_NAME


def test_the_first_rung_fails_twice_and_each_below_it_once() -> None:
    climb = Ladder().climb()
    assert [failing(climb, 0, WANTS_ALL) for _ in range(5)] == [
        (Rung.FULL, Next.AT_ONCE),
        (Rung.FULL, Next.AT_ONCE),
        (Rung.STRUCTURED, Next.AT_ONCE),
        (Rung.SIMPLE, Next.AT_ONCE),
        (Rung.EXPORT_NAME, Next.NOTHING),
    ]


def test_what_was_spoken_bounds_the_way_down_for_a_while() -> None:
    ladder = Ladder()
    assert ladder.climb().answered(Rung.FULL, 0, **WANTS_SOME)
    climb = ladder.climb()
    assert [failing(climb, 1, WANTS_ALL)[0] for _ in range(4)] == [
        *(Rung.FULL, Rung.FULL),
        *(Rung.STRUCTURED, Rung.STRUCTURED),  # SIMPLE would be less than it has spoken
    ]
    assert failing(climb, 2, WANTS_ALL)[1] is Next.AFTER_A_PAUSE
    assert failing(climb, RUNG_SECONDS, WANTS_ALL)[1] is Next.AT_ONCE
    assert climb.rung(RUNG_SECONDS) is Rung.SIMPLE


def test_who_wants_little_does_not_make_little_of_what_was_spoken() -> None:
    ladder = Ladder()
    ladder.climb().answered(Rung.FULL, 0, **WANTS_ALL)
    ladder.climb().answered(Rung.FULL, 1, **WANTS_NONE)
    assert ladder.lowest(2) is Rung.FULL


def test_being_seen_down_forgets_all_of_it() -> None:
    ladder = Ladder()
    ladder.climb().answered(Rung.FULL, 0, **WANTS_ALL)
    ladder.seen_down()
    assert ladder.lowest(1) is Rung.EXPORT_NAME
    ladder.climb().answered(Rung.SIMPLE, 1, **WANTS_ALL)
    assert (ladder.first(2), ladder.lowest(2)) == (Rung.SIMPLE, Rung.SIMPLE)
    ladder.seen_down()
    assert (ladder.first(3), ladder.lowest(3)) == (Rung.FULL, Rung.EXPORT_NAME)


def test_an_answer_from_before_it_was_seen_down_is_believed_on_the_full_rung_alone() -> None:
    ladder = Ladder()
    high, low = ladder.climb(), ladder.climb()
    for climb in (high, low):
        climb.rung(0)
    ladder.seen_down()
    assert not low.answered(Rung.SIMPLE, 1, **WANTS_ALL)
    assert low.rung(1) is Rung.FULL
    assert high.answered(Rung.FULL, 1, **WANTS_ALL)
    assert (ladder.first(2), ladder.lowest(2)) == (Rung.FULL, Rung.EXPORT_NAME)


def test_failures_from_before_it_was_seen_down_do_not_count() -> None:
    ladder = Ladder()
    climb = ladder.climb()
    for _ in range(10):
        assert failing(climb, 0, WANTS_ALL) == (Rung.FULL, Next.AT_ONCE)
        ladder.seen_down()
    climb.rung(0)
    ladder.seen_down()  # while the connection was there: that was its end
    assert climb.failed(0, **WANTS_ALL) is Next.AT_ONCE
    assert failing(climb, 0, WANTS_ALL) == (Rung.FULL, Next.AT_ONCE)
    assert climb.rung(0) is Rung.FULL


def test_a_session_is_the_bound_of_its_own_climbs_alone() -> None:
    ladder = Ladder()
    ladder.climb().answered(Rung.EXPORT_NAME, 0, **WANTS_ALL)
    climb = ladder.climb(Rung.STRUCTURED)
    assert failing(climb, 1, WANTS_ALL) == (Rung.STRUCTURED, Next.AT_ONCE)
    assert failing(climb, 1, WANTS_ALL) == (Rung.STRUCTURED, Next.AFTER_A_PAUSE)
    assert ladder.climb().rung(1) is Rung.EXPORT_NAME


def test_a_server_that_answers_higher_up_is_not_believed_to_be_old_any_more() -> None:
    ladder = Ladder()
    ladder.climb().answered(Rung.EXPORT_NAME, 0, **WANTS_ALL)
    ladder.climb(Rung.FULL).answered(Rung.FULL, 1, **WANTS_ALL)
    assert ladder.first(2) is Rung.FULL


def test_a_lower_rung_is_forgotten_in_time() -> None:
    ladder = Ladder()
    ladder.climb().answered(Rung.EXPORT_NAME, 0, **WANTS_ALL)
    ladder.climb().answered(Rung.EXPORT_NAME, 200, **WANTS_ALL)
    assert ladder.first(RUNG_SECONDS - 1) is Rung.EXPORT_NAME
    assert ladder.first(RUNG_SECONDS) is Rung.FULL
