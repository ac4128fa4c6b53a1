"""For each check on docs/performance.md ("What the pump checks") examples in which it alone is violated.

This is longer than other modules of tests: there are many checks, and each has its example here.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

from gateway.hub import pump
from gateway.hub.crowd import READ, WRITE, Crowd
from gateway.hub.lane import BUFFER_BYTES, BufferPool, Segment
from gateway.hub.pump import NOT_MINE, RECEIVE_FAILED, SCANNED, SEND_FAILED
from gateway.jobs.fences import Late
from gateway.jobs.jobs import MAX_JOB_BYTES
from gateway.jobs.locks import Held
from gateway.net.options import RelaySocket
from gateway.peer import UNKNOWN
from gateway.protocol.table import Table
from gateway.scan.memory import MAX_KEPT_BYTES, Memory
from gateway.scan.plan import Plan, Shadow
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.framing import EXTENDED
from gateway.wire.limits import KIB
from gateway.wire.transmission import SIMPLE_REPLY
from tests.hub.checks import (
    Arrange,
    Cut,
    Example,
    Noting,
    data_chunk,
    feed,
    in_turn,
    put,
    request,
    settle,
    terms,
)
from tests.hub.races import SIZE, Racer, racer
from tests.hub.wires import Wires

SIMPLE, STRUCTURED, WIDE = (False, False), (True, False), (True, True)
DIALECTS = (SIMPLE, STRUCTURED, WIDE)
ANY = [terms(client, link) for client, link in product(DIALECTS, DIALECTS)]
CHUNKS = [terms(client, link) for client, link in product((STRUCTURED, WIDE), (STRUCTURED, WIDE))]
ONE = terms(SIMPLE, SIMPLE)
TWO = terms(STRUCTURED, STRUCTURED)
HUGE = 1 << 40
TEXT = "it is refused"


class Checked(Protocol):
    """An example of a row."""

    @property
    def says(self) -> int:
        """What the pump says, where it does not do all."""

    def check(self) -> None: ...


# --- Requests that are handed over


def each(bad: Callable[[Plan], bytes], all_terms: list[Plan] = ANY, **more: Any) -> list[Checked]:
    """A TRIM, and another request behind it."""
    return [Example(terms=its, good=request(its), bad=bad(its), **more) for its in all_terms]


def restricted(say: Callable[[Table], object]) -> list[Plan]:
    table = Table(SIZE)
    say(table)
    return [terms(client, link, table=table) for client, link in product(DIALECTS, DIALECTS)]


def longest() -> Iterator[Checked]:
    for client, link in product(DIALECTS, DIALECTS):
        its = terms(client, link, size=HUGE)
        word = Cmd.READ if Cmd.READ in its.fast else Cmd.TRIM
        most = its.fast[word][0]
        if most + 4096 < min(its.offer.size, its.offer.framing.max_length):
            good, bad = request(its, word, length=most), request(its, word, length=most + 4096)
            yield Example(terms=its, good=good, bad=bad)


def narrow() -> Iterator[Checked]:
    for link in (SIMPLE, STRUCTURED):
        its = terms(WIDE, link, size=HUGE)
        its = replace(its, fast={int(Cmd.TRIM): (HUGE, int(Cmd.TRIM), None)})
        good, bad = request(its, length=1 << 31), request(its, length=1 << 32)
        yield Example(terms=its, good=good, bad=bad, before=b"")  # Python fails on it


def aligned() -> Iterator[Checked]:
    for client, link in product(DIALECTS, DIALECTS):
        its = terms(client, link, minimum=4096)
        for offset, length in ((8192 + 512, 4096), (8192, 512)):
            yield Example(
                terms=its, good=request(its), bad=request(its, offset=offset, length=length)
            )
        amid, well = (terms(client, link, minimum=4096, base=base) for base in (512, 4096))
        yield Example(terms=amid, well=well, good=request(well), before=b"")


def protected() -> Iterator[Checked]:
    def say(table: Table) -> None:
        table.protect(1 << 20, 2 << 20, text=TEXT)
        table.protect(3 << 20, (3 << 20) + 512, text=TEXT)

    for its in restricted(say):
        for good, bad in (
            (((1 << 20) - 4096, 4096), ((1 << 20) - 4095, 4096)),
            ((2 << 20, 4096), ((2 << 20) - 1, 1)),
            (((3 << 20) - 512, 512), ((3 << 20) - 512, 4096)),  # around all of it
        ):
            yield Example(
                terms=its, good=request(its, Cmd.TRIM, *good), bad=request(its, Cmd.TRIM, *bad)
            )


def many_ranges() -> Iterator[Checked]:
    table = Table(SIZE)
    for start in range(0, 66 << 12, 2 << 12):  # one more than there is room for
        table.protect(start, start + 512, text=TEXT)
    its, well = terms(SIMPLE, SIMPLE, table=table), terms(SIMPLE, SIMPLE)
    for offset in (4096, 8192):  # outside of them, and in one
        yield Example(
            terms=its, well=well, good=request(its, offset=offset, length=512), before=b""
        )


def observed() -> Iterator[Checked]:
    table = Table(SIZE)
    table.protect(1 << 20, 2 << 20, text=TEXT)
    well = terms(SIMPLE, SIMPLE)
    its = terms(SIMPLE, SIMPLE, shadow=Shadow(well.offer, table))
    yield Example(terms=its, well=well, good=request(its, offset=1 << 20), before=b"")


def hooked() -> list[Checked]:
    its = terms(SIMPLE, SIMPLE, hooked={Cmd.TRIM: "a policy"})
    read = request(its, Cmd.READ)

    def nobody(it: Racer) -> None:
        it.wires.session.traffic.jobs.outside = lambda _running, _outside: None

    return [Example(terms=its, good=read, bad=request(its), unusual=nobody)]


def under_way() -> Iterator[Checked]:
    most = put("traffic.most_in_flight", 2)
    for its in ANY:
        one = request(its)
        yield Example(terms=its, good=one, before=one * 2, bad=one, unusual=most)
        yield Example(
            terms=its, good=one, unusual=in_turn(most, feed("client", one * 2)), says=NOT_MINE
        )
        # It may be made less at any time.
        yield Example(
            terms=its, good=one, unusual=in_turn(feed("client", one * 3), most), says=NOT_MINE
        )


def many_words() -> list[Checked]:
    well = terms(SIMPLE, SIMPLE)
    unknown = {(0x100 + n) << 16: (1, 0, None) for n in range(64)}
    its = replace(well, fast={**unknown, **well.fast})
    return [Example(terms=its, well=well, good=request(its), before=b"")]


# --- Both ways


def clock(seconds: float) -> Arrange:
    """Each look at it takes so long."""
    now = 0.0

    def later() -> float:
        nonlocal now
        now += seconds
        return now

    def arrange(it: Racer) -> None:
        nonlocal now
        now = 1.0
        it.wires.session.traffic.turn._clock = later

    return arrange


def success(its: Plan, ours: int) -> bytes:
    return its.link.success(ours, 8192, read=False)


def turns() -> Iterator[Checked]:
    for its in ANY:
        one = request(its)
        yield Example(
            terms=its, good=one, before=one * 64, bad=one, unusual=clock(1.0), says=SCANNED
        )
    for its, command in ((ONE, Cmd.TRIM), (ONE, Cmd.READ), (TWO, Cmd.TRIM), (TWO, Cmd.READ)):
        said = [answer(its, command, ours) for ours in range(1, 67)]
        yield Example(
            terms=its,
            asked=request(its, command, length=16) * 66,
            good=said[0],
            before=b"".join(said[:64]),
            bad=said[64],
            unusual=clock(1.0),
            says=SCANNED,
        )


def answer(its: Plan, command: Cmd, ours: int, length: int = 16) -> bytes:
    if command is Cmd.READ:
        head = its.link.data_head(ours, 8192, 8192, length, done=True)
        return head + bytes(length)
    return success(its, ours)


def many_pieces() -> Iterator[Checked]:
    more = in_turn(put("traffic._most_in_flight", 600), clock(0.0))
    its = terms(SIMPLE, WIDE)
    one = request(its, Cmd.WRITE, length=1)
    yield Example(terms=its, good=one, before=one * 255, bad=one, unusual=more)
    for its in (terms(STRUCTURED, SIMPLE), terms(WIDE, STRUCTURED)):
        asked = feed("client", request(its, Cmd.READ, length=1) * 300)
        said = [answer(its, Cmd.READ, ours, 1) for ours in range(1, 257)]
        yield Example(
            terms=its,
            far="upstream",
            usual=in_turn(more, asked),
            unusual=in_turn(more, asked),
            good=said[0],
            before=b"".join(said[:255]),
            bad=said[255],
        )


def cut() -> Iterator[Checked]:
    for its in ANY:
        yield Cut(its, request(its) + request(its, Cmd.WRITE, length=5) + request(its))
        asked = request(its) + request(its, Cmd.TRIM)
        yield Cut(its, success(its, 1) + success(its, 2), asked)
        if Cmd.READ in its.fast:
            both = [answer(its, Cmd.READ, ours, 5) for ours in (1, 2)]
            yield Cut(its, b"".join(both), request(its, Cmd.READ, length=5) * 2)
    yield Cut(TWO, none(1)(TWO) + none(2)(TWO), request(TWO) * 2)


# --- Replies that are handed over


def simple(its: Plan, ours: int, *, error: int = 0, magic: int = 0x67446698) -> bytes:
    del its
    return SIMPLE_REPLY.pack(magic, error, ours)


def replies(
    good: Callable[[Plan], bytes],
    bad: Callable[[Plan], bytes],
    all_terms: list[Plan],
    *commands: Cmd,
    **more: Any,
) -> list[Checked]:
    """Of two commands, one after the other."""
    first, then = commands * 2 if len(commands) == 1 else commands
    return [
        Example(
            terms=its,
            asked=request(its, first) + request(its, then),
            good=good(its),
            bad=bad(its),
            **more,
        )
        for its in all_terms
    ]


SHORT = [each for each in ANY if each.link is not EXTENDED and each.offer.framing is not EXTENDED]
"""Where a simple reply goes on as it is."""

TO_SIMPLE = [terms(client, SIMPLE) for client in DIALECTS]


def data_of(ours: int, **wrong: Any) -> Callable[[Plan], bytes]:
    return lambda its: data_chunk(its.link, ours, **wrong)


def data_but(**wrong: Any) -> list[Checked]:
    return replies(data_of(1), data_of(2, **wrong), CHUNKS, Cmd.READ)


def short(ours: int, **wrong: Any) -> Callable[[Plan], bytes]:
    return lambda its: simple(its, ours, **wrong)


def none(ours: int, length: int = 0, *, word: int = 0x10000) -> Callable[[Plan], bytes]:
    """A NONE chunk of structured replies, or what is none, with a payload."""
    return lambda _its: struct.pack(">IIQI", 0x668E33EF, word, ours, length) + bytes(length)


def end(its: Plan) -> bytes:
    return its.link.end(2, 8192)


def plain_end(its: Plan) -> bytes:
    return simple(its, 2)


def early() -> Iterator[Checked]:
    for its in SHORT:
        half = request(its, Cmd.WRITE)[:2048]
        asked = request(its) + half
        yield Example(terms=its, asked=asked, good=simple(its, 1), bad=simple(its, 2))
    asked = request(TWO) + request(TWO, Cmd.WRITE)[:2048]
    yield Example(terms=TWO, asked=asked, good=none(1)(TWO), bad=none(2)(TWO))
    # Data of a READ is taken at any time.
    for its in (ONE, TWO):
        asked = request(its, Cmd.READ) + request(its, Cmd.WRITE)[:2048]
        good = answer(its, Cmd.READ, 1, 4096)
        yield Example(terms=its, asked=asked, good=good, bad=simple(its, 2))


def own() -> Iterator[Checked]:
    for its in SHORT:
        asked = request(its) + request(its, Cmd.FLUSH, 0, 0)
        yield Example(terms=its, asked=asked, good=simple(its, 1), bad=simple(its, 2))
    its = terms(SIMPLE, STRUCTURED)
    asked = request(its) + request(its, Cmd.READ)
    yield Example(terms=its, asked=asked, good=simple(its, 1), bad=data_chunk(its.link, 2))


def block_status(after: int) -> Arrange:
    """One is under way, with the cookie after that."""

    def arrange(it: Racer) -> None:
        traffic = it.wires.session.traffic
        traffic.last_cookie = after + 1
        traffic.in_flight[after + 1] = (7, int(Cmd.BLOCK_STATUS), 8192, 4096)

    return arrange


def other_end() -> Iterator[Checked]:
    """An end that has to be said anew: Python does that."""
    for client, link in ((SIMPLE, STRUCTURED), (WIDE, STRUCTURED), (WIDE, WIDE)):
        its = terms(client, link)
        yield Example(
            terms=its,
            well=TWO,
            asked=request(its) if client is not WIDE else b"",
            far="upstream",
            usual=feed("client", *([request(TWO)] if client is WIDE else [])),
            unusual=feed("client", *([request(its)] if client is WIDE else [])),
            good=none(1)(TWO),
            bad=its.link.end(1, 8192),
            before=b"",
        )
    its = terms(WIDE, STRUCTURED)
    yield Example(
        terms=its,
        well=TWO,
        far="upstream",
        usual=feed("client", request(TWO)),
        unusual=feed("client", request(its)),
        good=simple(its, 1),
        before=b"",
    )


def offset_missing() -> Iterator[Checked]:
    for its in CHUNKS:
        for here in (20, 27) if its.link is not EXTENDED else (32, 39):
            yield Example(
                terms=its,
                asked=request(its, Cmd.READ) * 2,
                good=data_chunk(its.link, 1),
                bad=data_chunk(its.link, 2)[:here],
            )


def with_text() -> Iterator[Checked]:
    """A chunk that says DONE too early, which is known while its data is half here."""
    for its in CHUNKS:
        whole, early = data_chunk(its.link, 1), data_chunk(its.link, 1, length=2048)
        asked = feed("client", request(its, Cmd.READ))
        yield Example(
            terms=its,
            far="upstream",
            usual=in_turn(asked, feed("upstream", whole[:-1024])),
            unusual=in_turn(asked, feed("upstream", early[:-1024])),
            good=bytes(1024),
            before=b"",
        )


# --- Where the pump is not used


def unused(arrange: Arrange, its: Plan = ONE, **more: Any) -> list[Checked]:
    """For the requests of a client, and for replies."""
    return [
        Example(terms=its, good=request(its), unusual=arrange, says=NOT_MINE, **more),
        Example(
            terms=its,
            asked=request(its, Cmd.READ),
            good=answer(its, Cmd.READ, 1, 4096),
            unusual=arrange,
            says=NOT_MINE,
            **more,
        ),
    ]


def only(far: str, arrange: Arrange, its: Plan = ONE, **more: Any) -> list[Checked]:
    """For one of both."""
    return [unused(arrange, its, **more)[far == "upstream"]]


def finish(it: Racer) -> None:
    it.wires.session.finish("it is to end", 9.0)


def pause(it: Racer) -> None:
    it.wires.session.hold()


class Open:
    """A gate that lets all through."""

    def take(self, length: int) -> bool:
        del length
        return True


def claim(it: Racer) -> None:
    it.wires.session.traffic.locks.claim(Held(0, 4096, lambda: None))


def fence(it: Racer) -> None:
    it.wires.session.traffic.fences.add(0, 4096, Late(9.0, UNKNOWN))


def link_comes_up(it: Racer) -> None:
    losses = it.wires.session.traffic.debt.losses
    losses.came_up(losses.trail(losses.open()))


def flush_fails(it: Racer) -> None:
    it.wires.session.traffic.debt.losses.witnesses.over([(0, 4096)])


class Other(Memory):
    """Another memory than a session has."""


def other_memory(it: Racer) -> None:
    traffic = it.wires.session.traffic
    assert traffic.trail is not None
    traffic.memory = Other(traffic.trail)


def goes(it: Racer) -> None:
    its = it.wires.session.traffic
    its.going.heed(lambda: None)
    feed("client", request(its.plan) * 2)(it)
    feed("upstream", its.plan.link.failure(1, 8192, Errno.ESHUTDOWN))(it)


def half_write(offset: int, length: int) -> Callable[[Plan], Arrange]:
    return lambda its: feed("client", request(its, Cmd.WRITE, offset, length)[:-256])


def rest_of_write(spoilt: Callable[[Plan], Arrange], its: Plan) -> list[Checked]:
    """What follows a WRITE that is half sent."""
    good = bytes(256) + request(its)
    usual, unusual = half_write(8192, 4096)(its), spoilt(its)
    return [Example(terms=its, good=good, usual=usual, unusual=unusual, says=NOT_MINE)]


def half_read_of_a_job() -> Iterator[Checked]:
    its = terms(SIMPLE, STRUCTURED)
    half = data_chunk(its.link, 1)
    begun = in_turn(feed("client", request(its, Cmd.READ)), feed("upstream", half[:-1024]))
    yield Example(
        terms=its,
        well=TWO,
        far="upstream",
        usual=begun,
        unusual=begun,
        good=half[-1024:],
        says=NOT_MINE,
    )
    its = terms(SIMPLE, SIMPLE, minimum=4096)
    aligned, other = (request(its, Cmd.READ, *at) for at in ((0, 4096), (512, 512)))
    half = answer(its, Cmd.READ, 1, 4096)
    yield Example(
        terms=its,
        far="upstream",
        usual=in_turn(feed("client", aligned), feed("upstream", half[:-1024])),
        unusual=in_turn(feed("client", other), feed("upstream", half[:-1024])),
        good=half[-1024:],
        says=NOT_MINE,
    )


def early_held() -> list[Checked]:
    half = half_write(8192, 4096)(ONE)
    said = feed("upstream", ONE.link.failure(1, 8192, Errno.EIO))
    good = bytes(256) + request(ONE)
    return [
        Example(terms=ONE, good=good, usual=half, unusual=in_turn(half, said), says=NOT_MINE),
    ]


def several_chunks() -> Iterator[Checked]:
    for its in CHUNKS:
        asked = feed("client", request(its, Cmd.READ) * 2)
        first = data_chunk(its.link, 1, word=1, length=2048)
        good = data_chunk(its.link, 2)
        yield Example(
            terms=its,
            far="upstream",
            usual=asked,
            unusual=in_turn(asked, feed("upstream", first)),
            good=good,
            says=NOT_MINE,
        )


def half_a_chunk() -> Iterator[Checked]:
    for its in CHUNKS:
        asked = feed("client", request(its, Cmd.READ) * 2)
        error = its.link.failure(1, 8192, Errno.EIO, TEXT)
        yield Example(
            terms=its,
            far="upstream",
            usual=asked,
            unusual=in_turn(asked, feed("upstream", error[:-4])),
            good=data_chunk(its.link, 2),
            bad=error[-4:],
            says=NOT_MINE,
        )


def oldest_is_a_map() -> list[Checked]:
    trim = feed("client", request(ONE))
    return [
        Example(
            terms=ONE,
            far="upstream",
            usual=in_turn(trim, block_status(1)),
            unusual=in_turn(block_status(0), trim),
            good=simple(ONE, 1),
            bad=simple(ONE, 2),
            says=NOT_MINE,
        )
    ]


def full(start: int, pins: int) -> Arrange:
    """The buffer of the requests' lane is received up to there, and scanned."""

    def arrange(it: Racer) -> None:
        lane = it.wires.session._requests_lane
        lane._segment = it.wires.pool.take()
        lane._segment.pins = pins
        lane._start = lane._end = start

    return arrange


def takes_nothing(it: Racer) -> None:
    """The client takes little, and reads nothing."""
    near = it.wires._near[0]
    assert isinstance(near, socket.socket)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)


def leave_unread(it: Racer) -> None:
    """The upstream goes with a request unread, which is a reset."""
    it.wires.client.send(request(ONE))
    while it.step():
        pass
    it.wires.upstream.close()


def write_all(it: Racer) -> None:
    """The client closes its end for what it sends."""
    it.wires.client.shutdown(socket.SHUT_WR)


def hang_up(far: str) -> Arrange:
    return lambda it: getattr(it.wires, far).close()


class WithoutPump:
    """Sessions for which none is made."""

    says = NOT_MINE

    def check(self) -> None:
        with_link = Wires(Traffic(ONE))
        session = with_link.session
        session.begin()
        assert session._pump is not None
        near, link = with_link._near

        class Tls:  # all that is asked is whether it is a socket
            def __getattr__(self, name: str) -> object:
                return getattr(near, name)

        tls: Any = Tls()
        ways: tuple[tuple[RelaySocket, RelaySocket | None], ...] = (
            (tls, link),
            (near, tls),
            (near, None),
        )
        for client, upstream in ways:
            session.client, session.link = client, upstream
            session._have_pumped()
            assert session._pump is None
        with_link.close()


class OtherEvents:
    """The hub calls for something else than that there is something to read."""

    says = NOT_MINE

    def check(self) -> None:
        for ready, message in (("client", request(ONE)), ("upstream", answer(ONE, Cmd.READ, 1))):
            both = [racer(ONE) for _ in range(2)]
            said = []
            for it in both:
                session = it.wires.session
                assert session._pump is not None
                noting = session._pump = Noting(session._pump, session)
                feed("client", request(ONE, Cmd.READ, length=16))(it)
                noting.said.clear()
                getattr(it.wires, ready).send(message)
                events = READ if it is both[0] else READ | WRITE
                (session.client_ready if ready == "client" else session.link_ready)(events)
                said.append(len(noting.said))
                settle(it)
            assert said == [1, 0]
            states = [it.state() for it in both]
            assert states[0] == states[1]
            for it in both:
                it.wires.close()


@dataclass
class Curious(BufferPool):
    """A pool whose user calls the pump while it is at work."""

    said: int = 0
    its: pump.Pump | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def take(self) -> Segment:
        if self.its is not None:
            self.said = self.its.requests()
        return super().take()


class AtWork:
    """It is called within itself; or was not made."""

    says = NOT_MINE

    def check(self) -> None:
        from gateway.hub import _pump as compiled

        made = compiled.Pump.__new__(compiled.Pump)
        assert made.requests() == made.replies() == NOT_MINE
        pool = Curious()
        wires = Wires(Traffic(ONE), pool)
        wires.session.begin()
        pool.its = wires.session._pump
        assert pool.its is not None
        wires.client.send(request(ONE))
        assert pool.its.requests() >= Crowd.CALM
        assert pool.said == NOT_MINE
        wires.close()


UNKNOWN_FLAG = 1 << 9

EXAMPLES: dict[str, list[Checked]] = {
    # Requests that are handed over
    "magic of a request": each(lambda its: request(its, magic=0x25609514)),
    "command": [
        *each(lambda its: request(its, 99)),
        *each(
            lambda its: request(its, Cmd.WRITE_ZEROES),
            restricted(lambda table: table.refuse(Cmd.WRITE_ZEROES, text=TEXT)),
        ),
    ],
    "command flags": [
        *each(lambda its: request(its, flags=UNKNOWN_FLAG)),
        *each(
            lambda its: request(its, flags=CmdFlag.FUA),
            restricted(
                lambda table: table.refuse_flag(Cmd.TRIM, CmdFlag.FUA, error=Errno.EPERM, text=TEXT)
            ),
        ),
    ],
    "a command that takes a job": [
        *each(lambda its: request(its, Cmd.FLUSH, 0, 0)),
        *each(lambda its: request(its, Cmd.DISC, 0, 0)),
        *each(
            lambda its: request(its, Cmd.READ),
            [its for its in ANY if Cmd.READ not in its.fast],
        ),
    ],
    "a command that hooks see": hooked(),
    "ranges that are protected": list(protected()),
    "more ranges than the pump keeps": list(many_ranges()),
    "what is only observed": list(observed()),
    "more words than the pump keeps": many_words(),
    "a length of nothing": each(lambda its: request(its, length=0)),
    "longest length": [
        *longest(),
        *each(
            lambda its: request(its, length=8192),
            restricted(lambda table: table.limit_length(Cmd.TRIM, 4096, text=TEXT)),
        ),
    ],
    "a length of more than 32 bits": list(narrow()),
    "an offset behind the end": [
        *each(lambda its: request(its, offset=SIZE + 4096)),
        *each(lambda its: request(its, offset=(1 << 64) - 4096)),
    ],
    "an end behind the end": each(lambda its: request(its, offset=SIZE - 4096, length=8192)),
    "alignment": list(aligned()),
    "commands under way": list(under_way()),
    # Both ways
    "a message that is cut": list(cut()),
    "the turn's end": list(turns()),
    "pieces of one send": list(many_pieces()),
    "the other side takes no more": [
        Example(
            terms=ONE,
            asked=request(ONE, Cmd.READ, length=64 * KIB),
            good=answer(ONE, Cmd.READ, 1, 64 * KIB),
            unusual=takes_nothing,
            before=b"",
            says=SCANNED,
            left=0,
        )
    ],
    "a side that has closed": [
        Example(
            terms=ONE,
            good=request(ONE),
            bad=b"",
            before=b"",
            unusual=write_all,
            says=SCANNED,
            at_once=True,
        ),
        *only("client", put("_requests_lane.ended", True)),
        *only("upstream", put("_replies_lane.ended", True)),
    ],
    "a socket that fails": [
        Example(
            terms=ONE,
            asked=request(ONE, Cmd.READ, length=16),
            good=answer(ONE, Cmd.READ, 1),
            before=b"",
            unusual=hang_up("client"),
            says=SEND_FAILED,
            left=0,
            at_once=True,
        ),
        Example(
            terms=ONE,
            far="upstream",
            good=answer(ONE, Cmd.READ, 1),
            bad=b"",
            before=b"",
            usual=feed("client", request(ONE, Cmd.READ, length=16)),
            unusual=leave_unread,
            says=RECEIVE_FAILED,
            at_once=True,
        ),
    ],
    # Replies that are handed over
    "magic of a reply": [
        *replies(short(1), short(2, magic=0x67446699), [*TO_SIMPLE, *SHORT], Cmd.TRIM),
        *replies(
            data_of(1),
            lambda its: b"\x66\x8e\x33\xee" + data_chunk(its.link, 2)[4:],
            CHUNKS,
            Cmd.READ,
        ),
        *replies(none(1), lambda its: b"\x66\x8e\x33\xee" + none(2)(its)[4:], [TWO], Cmd.TRIM),
    ],
    "error": [
        *replies(short(1), short(2, error=5), [*TO_SIMPLE, *SHORT], Cmd.TRIM),
        *replies(data_of(1), lambda its: its.link.failure(2, 8192, 5, TEXT), CHUNKS, Cmd.READ),
        *replies(none(1), lambda its: its.link.failure(2, 8192, 5, TEXT), [TWO], Cmd.TRIM),
    ],
    "cookie": [
        *replies(short(1), short(3), [*TO_SIMPLE, *SHORT], Cmd.TRIM),
        *replies(data_of(1), data_of(3), CHUNKS, Cmd.READ),
        *replies(data_of(1), data_of(1), CHUNKS, Cmd.READ),  # it comes twice
        *replies(none(1), none(3), [TWO], Cmd.TRIM),
    ],
    "a command of our own": list(own()),
    "an early reply": list(early()),
    "an answer to BLOCK_STATUS": [
        Example(
            terms=its,
            asked=request(its),
            good=simple(its, 1),
            bad=bad,
            usual=block_status(1),
            unusual=block_status(1),
        )
        for its, bad in ((ONE, simple(ONE, 2)), (TWO, simple(TWO, 2)), (TWO, none(2)(TWO)))
    ],
    "a READ without data": [
        *replies(short(1), plain_end, [TWO], Cmd.TRIM, Cmd.READ),
        *replies(none(1), none(2), [TWO], Cmd.TRIM, Cmd.READ),
        *replies(data_of(1), end, CHUNKS, Cmd.READ),
    ],
    "data for what was no READ": replies(data_of(1), data_of(2), CHUNKS, Cmd.READ, Cmd.TRIM),
    "a chunk's type": [
        *data_but(word=0x10002),
        *data_but(word=0x10009),
        *replies(none(1), none(2, word=0x10009), [TWO], Cmd.TRIM),
        *replies(none(1), none(2, word=0x18001), [TWO], Cmd.TRIM),
    ],
    "a chunk's flags": [
        *data_but(word=1),
        *data_but(word=0x30001),
        *replies(none(1), none(2, word=0), [TWO], Cmd.TRIM),
        *replies(none(1), none(2, word=0x30000), [TWO], Cmd.TRIM),
    ],
    "a chunk's offset": [
        *data_but(offset=8191),
        *data_but(offset=8193, echo=8193),
        *data_but(offset=1 << 63),
    ],
    "the offset that a chunk repeats": replies(
        data_of(1), data_of(2, echo=4096), [its for its in CHUNKS if its.link is EXTENDED], Cmd.READ
    ),
    "a chunk's length": [
        *data_but(length=4095),
        *data_but(length=4097),
        *data_but(size=7),
        *data_but(size=0),
        *data_but(size=(1 << 32) - 1),
    ],
    "a NONE chunk with a payload": replies(none(1), none(2, 8), [TWO], Cmd.TRIM),
    "an end that the client is told in other words": list(other_end()),
    "a data chunk without its offset": list(offset_missing()),
    "an end that says what is missing": list(with_text()),
    # Where it is not used
    "TLS, or no link": [WithoutPump()],
    "another event than to read": [OtherEvents()],
    "a pump that is at work, or was not made": [AtWork()],
    "the session has ended": [
        *unused(lambda it: it.wires.session.close()),
        *unused(put("_over", True)),
    ],
    "the session comes to its end": [
        *unused(put("_stopping", True)),
        *only("client", in_turn(feed("client", request(ONE)), finish)),
    ],
    "a pause": [
        *unused(pause),
        *unused(put("_holds", {1})),
        *unused(put("_requests.stopped", True)),
    ],
    "a socket that takes nothing, or is not read": unused(put("_flowing", False)),
    "what the last turn has left": [
        *unused(put("_more_requests", True)),
        *unused(put("_more_replies", True)),
    ],
    "the client has gone": unused(put("_client_gone", True)),
    "the link has gone": [*unused(put("_link_mute", True)), *unused(put("_link_closed", True))],
    "rates: a gate looks at each request": only("client", put("traffic.gate", Open())),
    "a gate has held a request": unused(put("traffic.held", True)),
    "writes of a client that went while they waited": unused(put("traffic.stale", True)),
    "commands are postponed": unused(put("traffic.postponed", deque([lambda: None]))),
    "requests of our own": [
        *unused(put("traffic.to_upstream", [request(ONE)])),
        *unused(put("_requests.waiting", [request(ONE)])),
        *unused(put("_requests_lane.out", [request(ONE)])),
    ],
    "replies of our own": [
        *unused(put("traffic.to_client", [simple(ONE, 9)])),
        *unused(put("_requests.answers", [simple(ONE, 9)])),
        *unused(put("_replies.waiting", [simple(ONE, 9)])),
        *unused(put("_replies_lane.out", [simple(ONE, 9)])),
    ],
    "DISC has come": unused(put("_requests.disconnected", True)),
    "a payload that is dropped": rest_of_write(half_write(SIZE, 4096), ONE),
    "a payload that a job takes": rest_of_write(
        half_write(512, 4096), terms(SIMPLE, SIMPLE, minimum=4096)
    ),
    "data of a job's READ": list(half_read_of_a_job()),
    "an early reply is held": early_held(),
    "a WRITE that the link has not taken": only("upstream", put("traffic.early.unsent", {1})),
    "the server goes": [
        Example(
            terms=ONE,
            far="upstream",
            good=simple(ONE, 2),
            usual=feed("client", request(ONE) * 2),
            unusual=goes,
            says=NOT_MINE,
        ),
        *unused(put("traffic.going.begun", True)),
        *unused(put("traffic.going.refused", {9})),
    ],
    "claims": unused(claim),
    "fences": only("client", fence),
    "what is lost": only("client", put("traffic.debt.lost", [(0, 4096)])),
    "news of the disk: a link came up, a FLUSH failed": [
        *only("client", link_comes_up, remembers=True),
        *only("client", flush_fails, remembers=True),
    ],
    "a memory of another class": unused(other_memory, remembers=True),
    "bytes kept for another link": only(
        "client",
        put("traffic.memory.kept_bytes", MAX_KEPT_BYTES),
        usual=put("traffic.memory.kept_bytes", MAX_KEPT_BYTES - 1),
        remembers=True,
    ),
    "bytes of jobs, and of replies not taken": [
        *only(
            "client",
            put("traffic.jobs.bytes", MAX_JOB_BYTES),
            usual=put("traffic.jobs.bytes", MAX_JOB_BYTES - 1),
        ),
        *only(
            "client",
            put("traffic.backlog", MAX_JOB_BYTES),
            usual=put("traffic.backlog", MAX_JOB_BYTES - 1),
        ),
    ],
    "the oldest is a BLOCK_STATUS": oldest_is_a_map(),
    "a reply of several chunks": list(several_chunks()),
    "a chunk that is gathered": list(half_a_chunk()),
    "a buffer that is full, or of another kind": [
        *only("client", full(BUFFER_BYTES, 0), usual=full(1000, 0)),
        *only("client", full(BUFFER_BYTES - 1000, 1), usual=full(1000, 1)),
        *only("client", put("_requests_lane._left_over", bytearray())),
    ],
}
