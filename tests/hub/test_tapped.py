"""Somebody looks on at a session, from some moment up to another: that changes nothing for either side."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from gateway.hub import pump
from gateway.hub.tapped import Tapped
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.plan import plan
from gateway.sessions.taps import SessionTap
from gateway.trace.message import Kind, Message
from gateway.trace.words import in_words
from gateway.wire.constants import Cmd, Errno
from gateway.wire.framing import SIMPLE
from gateway.wire.transmission import encode_simple_reply
from tests.hub.races import FLAGS, SIZE, Race, racer, some_plan
from tests.hub.wires import Wires

RACES = 240
PIECES = 8


class Looks:
    """What a tap needs of a trace."""

    payloads = 0

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.bugs: list[BaseException] = []
        self.connections = 0

    def say(self, message: Message) -> None:
        self.seen.append(message)

    def failed(self, error: BaseException) -> None:
        self.bugs.append(error)

    def clock(self) -> float:
        return 0.0

    def new_connection(self) -> int:
        self.connections += 1
        return self.connections


def tap(wires: Wires, looks: Looks) -> SessionTap:
    session = wires.session
    promised = session.traffic.plan.offer
    relayed = SimpleNamespace(
        name="x",
        membership=SimpleNamespace(session=SimpleNamespace(client=SimpleNamespace(id="a-1"))),
        opened=SimpleNamespace(offer=promised),
        traffic=session.traffic,
        relaying=session,
    )
    made = SessionTap(looks, relayed)  # type: ignore[arg-type]
    session.be_tapped(made.sockets)
    return made


class LookedAt(Race):
    """One of both is looked at now and then; that with the pump has it again afterwards."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.looks = Looks()
        self.looked_at = random.choice(self.racers)
        self.tap: SessionTap | None = None
        self.ended: list[list[Message]] = []

    def _act(self) -> None:
        if not self.random.randrange(8):
            self._look()
        super()._act()

    def _look(self) -> None:
        session = self.looked_at.wires.session
        if self.tap is None:
            self.tap = tap(self.looked_at.wires, self.looks)
        else:
            session.be_tapped(None)
            self.tap.end()
            self.tap = None
            self.ended.append(self.looks.seen[:])
            self.looks.seen.clear()
            if self.looked_at is self.plain:
                session._pump = None
            assert not isinstance(session._requests_lane.source, Tapped)
            assert not isinstance(session._replies_lane.source, Tapped)

    @property
    def well_behaved(self) -> bool:
        return not self.odd and not self.wrong

    def check(self) -> None:
        assert not self.looks.bugs
        for seen in (*self.ended, self.looks.seen):
            assert all(in_words(each).isprintable() for each in seen)
            directions = {each.direction for each in seen}
            for direction in directions:
                at = -1
                whole = [each for each in seen if each.kind is not Kind.CUT]
                for each in [each for each in whole if each.direction is direction]:
                    assert at in (-1, each.at) or not self.well_behaved, in_words(each)
                    at = each.at + each.length
            if self.well_behaved and self.plan.offer.framing is not SIMPLE:
                strange = [in_words(each) for each in seen if each.kind is Kind.STRANGE]
                assert not strange


@pytest.mark.parametrize("piece", range(PIECES))
def test_who_looks_on_changes_nothing(piece: int) -> None:
    for seed in range(piece, RACES, PIECES):
        race = LookedAt(Random(seed))
        race.run(range(60))
        race.check()


def test_all_that_is_said_is_seen_from_the_beginning() -> None:
    random = Random(1)
    for _ in range(20):
        its = some_plan(random)
        looked_at, looks = racer(its), Looks()
        made = tap(looked_at.wires, looks)
        framing = its.offer.framing
        request = framing.encode_request(Cmd.READ, 0, 99, 0, 4096)
        for byte in request:
            looked_at.wires.client.send(bytes([byte]))
            looked_at.settle()
        looked_at.wires.upstream.send(
            its.link.data_head(1, its.offer.base, its.offer.base, 4096, done=True) + bytes(4096)
        )
        looked_at.settle()
        looked_at.wires.session.be_tapped(None)
        made.end()
        looked_at.wires.close()
        words = [in_words(each) for each in looks.seen]
        assert words[0] == "READ 0+4096 cookie 99"
        assert words[1].startswith("READ ")
        assert "cookie 1 (the " in words[1]
        assert len(words) >= 4 or its.offer.base
        assert not looks.bugs


def test_the_pump_comes_back() -> None:
    if not pump.is_compiled():
        pytest.skip("the pump was not built")
    looked_at = racer(some_plan(Random(3)))
    session, looks = looked_at.wires.session, Looks()
    assert session._pump is not None
    made = tap(looked_at.wires, looks)
    assert session._pump is None
    session.be_tapped(None)
    made.end()
    assert session._pump is not None
    looked_at.wires.close()
    session.be_tapped(made.sockets)  # it has ended: nothing is begun any more
    assert session._pump is None


def test_a_bug_of_who_looks_on_ends_that_alone() -> None:
    class Broken(Looks):
        def say(self, message: Message) -> None:
            raise RuntimeError("a bug")

    looked_at, looks = racer(some_plan(Random(3))), Broken()
    tap(looked_at.wires, looks)
    framing = looked_at.wires.session.traffic.plan.offer.framing
    for _ in range(2):
        looked_at.wires.client.send(framing.encode_request(Cmd.READ, 0, 1, 0, 4096))
        looked_at.settle()
    assert [str(bug) for bug in looks.bugs] == ["a bug", "a bug"]  # one for each direction
    assert len(looked_at.wires.session.traffic.in_flight) == 2
    assert not looked_at.wires.session.ended.is_set()
    looked_at.wires.close()


def test_slices_are_seen_as_far_as_they_were_sent() -> None:
    class Sock:
        def sendmsg(self, _slices: object) -> int:
            return 20

        def send(self, _data: object) -> int:
            return 3

    seen = bytearray()

    def show(data: bytes | memoryview) -> None:
        seen.extend(data)

    tapped = Tapped(Sock(), show, show, print)  # type: ignore[arg-type]
    reply = encode_simple_reply(1)
    assert tapped.sendmsg([reply, b"", b"data that", b"is not"]) == 20
    assert tapped.send(b"abcdef") == 3
    assert bytes(seen) == reply + b"data" + b"abc"


@pytest.mark.parametrize("extended", [False, True])
def test_one_may_begin_inside_a_chunk_that_is_judged_as_a_whole(*, extended: bool) -> None:
    export = Export(SIZE, int(FLAGS), None, structured=True, extended=extended)
    plain = racer(plan(offer(view_of(export), structured=True, extended=extended), export))
    framing, looks = plain.wires.session.traffic.plan.link, Looks()
    for cookie in (8, 9):
        request = framing.encode_request(Cmd.READ, 0, cookie, 0, 4096)
        plain.wires.client.send(request)
    plain.settle()
    chunk = framing.failure(1, 0, Errno.EIO, "a text that comes in two pieces", offset=512)
    plain.wires.upstream.send(chunk[:-20])
    plain.settle()
    made = tap(plain.wires, looks)
    plain.wires.upstream.send(chunk[-20:] + framing.failure(2, 0, Errno.ENOMEM))
    plain.settle()
    made.end()
    assert [in_words(each).partition(" cookie")[0] for each in looks.seen] == [
        "ERROR ENOMEM",
        "ERROR_OFFSET EIO at 512: a text that comes in two pieces",
        "ERROR ENOMEM",
    ]
    plain.wires.close()
