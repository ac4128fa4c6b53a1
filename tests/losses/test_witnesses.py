"""What may bear witness to a disk, and what it says; by hand, and held against a disk by chance."""

from __future__ import annotations

import struct
from random import Random

import pytest

from gateway.hub.crowd import READ
from gateway.losses.rule import Losses
from gateway.losses.unflushed import SAMPLED_ERAS
from gateway.losses.witnesses import (
    MOST_OVER,
    MOST_UNKNOWN,
    MOST_WITNESSES,
    NEWEST,
    PIECE_BYTES,
    Data,
    Flushed,
    Sample,
    Witness,
    Witnesses,
    is_another,
    sample_of,
)
from gateway.scan.memory import Memory
from gateway.wire.constants import Cmd, CmdFlag, Errno
from tests.hub.wires import Wires
from tests.scan.peers import Request, traffic

DATA = b"data" * 16
SIZE = len(DATA)


def flushed(witnesses: Witnesses, start: int, data: bytes = DATA, scope: object = None) -> None:
    sample = Sample(start, data, witnesses.gone_over)
    witnesses.flushed([Flushed([(start, start + len(data))], sample, scope)])


def starts(witnesses: Witnesses, scope: object = None) -> list[int]:
    return [each.start for each in witnesses.of(scope)]


def test_what_was_flushed_is_known_again() -> None:
    witnesses = Witnesses()
    flushed(witnesses, 100)
    [witness] = witnesses.of(None)
    assert (witness.start, witness.end) == (100, 100 + SIZE)
    assert witness.says(DATA)
    assert not witness.says(DATA[:-1] + b"?")


def test_zeros_are_no_witness() -> None:
    witnesses = Witnesses()
    flushed(witnesses, 0, bytes(PIECE_BYTES))
    flushed(witnesses, 0, bytes(7))
    assert not starts(witnesses)


def test_a_sample_is_the_first_bytes() -> None:
    for kind in (bytes, bytearray, memoryview):
        sample = sample_of(5, kind(b"x" * 2 * PIECE_BYTES), 0)
        assert (sample.start, sample.end) == (5, 5 + PIECE_BYTES)
    buffer = bytearray(b"x" * 9)
    sample = sample_of(0, memoryview(buffer), 0)
    buffer[:] = b"y" * 9  # it is received into again
    assert sample.data == b"x" * 9


@pytest.mark.parametrize(
    ("over", "left"),
    [
        ((0, 100), [100, 300]),
        ((0, 101), [300]),
        ((100 + SIZE, 300), [100, 300]),
        ((99 + SIZE, 301), []),
        ((110, 111), [300]),
        ((0, 10**9), []),
        ((300 + SIZE, 10**9), [100, 300]),
    ],
)
def test_what_goes_over_a_witness_takes_it_along(over: tuple[int, int], left: list[int]) -> None:
    witnesses = Witnesses()
    flushed(witnesses, 300)
    flushed(witnesses, 100)
    witnesses.over([(10**9, 10**9 + 1), over])
    assert sorted(starts(witnesses)) == left
    assert len(witnesses) == len(left)


def test_the_newest_come_first_and_are_kept() -> None:
    witnesses = Witnesses()
    for number in range(MOST_WITNESSES + 3):
        flushed(witnesses, (number * 7919 % 1000) * SIZE)
    newest = [(n * 7919 % 1000) * SIZE for n in range(MOST_WITNESSES + 3)][::-1]
    assert starts(witnesses) == newest[:MOST_WITNESSES]
    witnesses.over([(start, start + 1) for start in newest])
    assert not len(witnesses)


def test_two_that_one_flush_covers_say_nothing_where_they_meet() -> None:
    witnesses = Witnesses()
    one, other = Sample(0, DATA, 0), Sample(SIZE - 1, DATA, 0)
    here, there = (0, SIZE), (SIZE - 1, 2 * SIZE - 1)
    witnesses.flushed([Flushed([here], one, None), Flushed([there], other, None)])
    assert not starts(witnesses)


@pytest.mark.parametrize("over", [[(0, 1)], [(SIZE - 1, SIZE)]])
def test_a_sample_over_which_something_went_since_is_no_witness(
    over: list[tuple[int, int]],
) -> None:
    witnesses = Witnesses()
    sample = Sample(0, DATA, witnesses.gone_over)
    witnesses.over([(SIZE, 2 * SIZE)])
    witnesses.over(over)
    witnesses.over([(SIZE, 2 * SIZE)])
    witnesses.flushed([Flushed([(0, SIZE)], sample, None)])
    assert not starts(witnesses)


def test_a_sample_from_before_what_is_remembered_is_no_witness() -> None:
    for count, known in ((MOST_OVER, True), (MOST_OVER + 1, False)):
        witnesses = Witnesses()
        sample = Sample(0, DATA, witnesses.gone_over)
        for number in range(count):
            witnesses.over([((number + 1) * SIZE, (number + 2) * SIZE)])
        witnesses.flushed([Flushed([(0, SIZE)], sample, None)])
        assert bool(starts(witnesses)) == known


def test_where_a_write_may_come_late_there_is_no_witness() -> None:
    witnesses = Witnesses()
    flushed(witnesses, 0)
    witnesses.unknown(0, 1)
    assert not starts(witnesses)
    flushed(witnesses, 0)
    flushed(witnesses, SIZE)
    assert starts(witnesses) == [SIZE]
    for number in range(2 * MOST_UNKNOWN):
        witnesses.unknown(10**6 + 2 * number, 10**6 + 2 * number + 1)
    assert len(witnesses._unknown) == MOST_UNKNOWN


def test_each_scope_has_its_own() -> None:
    witnesses, one, other = Witnesses(), object(), object()
    flushed(witnesses, 0, scope=one)
    flushed(witnesses, SIZE, scope=other)
    assert (starts(witnesses, one), starts(witnesses, other)) == ([0], [SIZE])
    assert not starts(witnesses)
    witnesses.forget(one)
    assert (starts(witnesses, one), starts(witnesses, other)) == ([], [SIZE])
    witnesses.over([(SIZE, SIZE + 1)])
    assert not starts(witnesses, other)


def test_nothing_is_known_after_clearing() -> None:
    witnesses = Witnesses()
    before = Sample(SIZE, DATA, witnesses.gone_over)
    flushed(witnesses, 0)
    witnesses.clear()
    witnesses.flushed([Flushed([(SIZE, 2 * SIZE)], before, None)])
    assert not starts(witnesses)
    flushed(witnesses, 0)
    assert starts(witnesses) == [0]
    witnesses.look_away()
    flushed(witnesses, 0)
    assert not starts(witnesses)


def _some(count: int) -> list[Witness]:
    return [Witness(at * 10, at * 10 + 5, b"", None) for at in range(count)]


def test_one_difference_is_enough_where_nobody_else_writes() -> None:
    there = _some(9)
    assert is_another(there, there[-1:], strict=True)
    assert not is_another(there, [], strict=True)


@pytest.mark.parametrize(
    ("differ", "another"),
    [([], False), ([0], False), ([0, 1], False), ([0, 1, 3], True), ([1, 2, 3], True)],
)
def test_with_others_most_of_the_newest_have_to_differ(differ: list[int], another: bool) -> None:
    there = _some(9)
    assert NEWEST == 4
    older = there[NEWEST:]
    assert is_another(there, [*(there[at] for at in differ), *older], strict=False) == another


def test_a_single_one_never_ends_what_has_others() -> None:
    for count, differ, another in ((1, 1, False), (2, 1, False), (2, 2, True), (3, 2, True)):
        there = _some(count)
        assert is_another(there, there[:differ], strict=False) == another


# --- Through the books


class Link:
    """A session with a link of its own, and what its memory makes of the replies."""

    def __init__(self, losses: Losses, *, own: bool = False) -> None:
        self.losses = losses
        self.debt = losses.open()
        self.trail = self.debt.trail = losses.trail(self.debt if own else None)
        losses.came_up(self.trail)
        self.memory = Memory(self.trail)
        self.cookie = 0
        self.in_flight: dict[int, tuple[int, int, int, int]] = {}
        self.trail.under_way = lambda: [(at, at + n) for _, _, at, n in self.in_flight.values()]

    def ask(self, offset: int, data: bytes = DATA, flags: int = 0, command: int = Cmd.WRITE) -> int:
        self.memory.look_for_news(self.cookie)
        self.cookie += 1
        self.in_flight[self.cookie] = (0, flags << 16 | command, offset, len(data))
        if command == Cmd.WRITE:
            self.memory.kept[self.cookie] = bytearray(data)
        return self.cookie

    def answered(self, *cookies: int, error: int = 0) -> None:
        for cookie in cookies:
            entry = self.in_flight.pop(cookie)
            if error:
                self.memory.failed(cookie, entry[1], entry[2], entry[3])
            else:
                self.memory.answered.append((cookie, entry))
        self.memory.remember(self.cookie)

    def write(self, offset: int, data: bytes = DATA, flags: int = 0) -> None:
        self.answered(self.ask(offset, data, flags))

    def flush(self) -> None:
        sent = self.losses.sent()
        self.losses.answered(self.trail, sent, 0, "")

    @property
    def expects(self) -> list[int]:
        return sorted(each.start for each in self.losses.to_look_for(self.trail))


@pytest.fixture
def losses() -> Losses:
    return Losses()


def test_the_last_write_before_a_flush_bears_witness(losses: Losses) -> None:
    link = Link(losses)
    link.write(0)
    link.write(SIZE)
    assert not link.expects
    link.flush()
    assert link.expects == [SIZE]
    link.write(5 * SIZE, flags=CmdFlag.FUA)
    assert link.expects == [SIZE, 5 * SIZE]


def test_of_many_writes_one_of_the_latter_half_does(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And few are looked at."""
    taken: list[int] = []

    def counted(start: int, data: Data, at: int) -> Sample:
        taken.append(start)
        return sample_of(start, data, at)

    monkeypatch.setattr("gateway.scan.memory.sample_of", counted)
    link = Link(losses)
    for number in range(200):
        link.write(number * SIZE)
    link.flush()
    assert taken == [0, SIZE, 3 * SIZE, 7 * SIZE, 15 * SIZE, 31 * SIZE, 63 * SIZE, 127 * SIZE]
    assert link.expects == [127 * SIZE]


def test_a_write_whose_data_came_behind_its_header_does(losses: Losses) -> None:
    link = Link(losses)
    made = traffic(client_structured=True, link_structured=True)
    made.memory, made.trail = link.memory, link.trail
    wires = Wires(made)
    wires.session.begin()
    wires.client.send(Request(Cmd.WRITE, 0, 5, SIZE, len(DATA)).bytes)
    wires.step()
    wires.client.send(DATA)
    wires.step()
    cookie = wires.upstream.recv(1000)[8:16]
    wires.upstream.send(struct.pack(">II", 0x67446698, 0) + cookie)
    wires.step()
    link.flush()
    assert link.expects == [SIZE]
    wires.close()


def test_what_is_answered_is_noted_also_if_the_answer_reaches_nobody(losses: Losses) -> None:
    """It is noted once the client has its replies; and where that cannot be, all the same."""
    link = Link(losses)
    made = traffic(client_structured=True, link_structured=True)
    made.memory, made.trail = link.memory, link.trail
    wires = Wires(made)
    wires.session.begin()
    wires.client.send(Request(Cmd.WRITE, 0, 5, SIZE, len(DATA), DATA).bytes)
    wires.step()
    cookie = wires.upstream.recv(1000)[8:16]
    wires.client.close()
    wires.upstream.send(struct.pack(">II", 0x67446698, 0) + cookie)
    wires.session.link_ready(READ)
    assert link.trail.unflushed.ranges == [(SIZE, SIZE + len(DATA))]
    wires.close()


def test_what_is_lost_bears_no_witness(losses: Losses) -> None:
    link = Link(losses)
    link.write(0)
    losses.died(link.trail, "it died")
    losses.came_up(link.trail)
    link.flush()
    assert not link.expects


def test_what_is_under_way_or_unflushed_is_not_looked_for(losses: Losses) -> None:
    link, other = Link(losses, own=True), Link(losses, own=True)
    for offset in (0, SIZE, 2 * SIZE):
        link.write(offset)
        link.flush()
    other.ask(0)
    other.write(SIZE)
    assert link.expects == [2 * SIZE]


@pytest.mark.parametrize("flags", [0, CmdFlag.FUA])
def test_writes_that_were_under_way_together_say_nothing(flags: int, losses: Losses) -> None:
    """Which of them is on the disk is the server's affair, whichever is answered first; also with a FLUSH in
    between.
    """
    link, other = Link(losses), Link(losses)
    one, two = link.ask(0), other.ask(0, b"else" * 16, flags)
    other.answered(two)
    other.flush()
    link.answered(one)
    link.flush()
    assert not link.expects


def test_a_write_that_failed_may_be_there(losses: Losses) -> None:
    link = Link(losses)
    link.write(0)
    link.flush()
    link.answered(link.ask(SIZE - 1), error=Errno.EIO)
    assert not link.expects


def test_samples_are_few(losses: Losses) -> None:
    link = Link(losses)
    for number in range(3 * SAMPLED_ERAS):
        losses.order.tick()
        link.write(number * SIZE)
    assert sum(era.sample is not None for era in link.trail.unflushed.eras) == SAMPLED_ERAS


def test_who_has_ended_leaves_nothing_behind(losses: Losses) -> None:
    link, other = Link(losses, own=True), Link(losses, own=True)
    link.write(0)
    link.flush()
    losses.end(link.debt)
    assert not losses.witnesses.of(link.debt)
    other.write(SIZE)
    other.flush()
    losses.end(other.debt)
    assert not len(losses.witnesses)


BLOCKS, BLOCK = 24, 16


class World:
    """Sessions that write to a few blocks of one disk, whose server does what it is asked in any order."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.losses = Losses()
        own = random.random() < 0.5
        self.links = [Link(self.losses, own=own) for _ in range(random.randint(1, 3))]
        self.disk = bytearray(BLOCKS * BLOCK)
        self.under_way: list[tuple[Link, int, bytes]] = []
        self.done: set[tuple[Link, int]] = set()
        self.value = 0
        self.found = 0

    def step(self) -> None:
        random, link = self.random, self.random.choice(self.links)
        what = random.random()
        if what < 0.35:
            self._ask(link)
        elif what < 0.5 and self.under_way:
            self._do(random.choice(self.under_way))
        elif what < 0.8:
            self._answer(link)
        elif what < 0.95:
            link.flush()
        self._look(link)

    def _ask(self, link: Link) -> None:
        random = self.random
        self.value += 1
        start = random.randrange(BLOCKS)
        count = min(random.choice((1, 1, 2, 4)), BLOCKS - start)
        command = random.choice((Cmd.WRITE, Cmd.WRITE, Cmd.WRITE, Cmd.WRITE_ZEROES))
        content = self.value.to_bytes(4) * (BLOCK // 4 * count)
        data = content if command is Cmd.WRITE else bytes(len(content))
        flags = CmdFlag.FUA if random.random() < 0.2 else 0
        cookie = link.ask(start * BLOCK, data, flags, command)
        self.under_way.append((link, cookie, data))

    def _do(self, asked: tuple[Link, int, bytes]) -> None:
        link, cookie, data = asked
        if (link, cookie) not in self.done:
            self.done.add((link, cookie))
            start = link.in_flight[cookie][2]
            self.disk[start : start + len(data)] = data

    def _answer(self, link: Link) -> None:
        asked = [each for each in self.under_way if each[0] is link]
        chosen = [each for each in asked if self.random.random() < 0.6]
        for each in chosen:
            self._do(each)
            self.under_way.remove(each)
        failed = self.random.random() < 0.1
        if chosen:
            link.answered(*(each[1] for each in chosen), error=Errno.EIO if failed else 0)

    def _look(self, link: Link) -> None:
        for witness in self.losses.to_look_for(link.trail):
            self.found += 1
            assert witness.says(self.disk[witness.start : witness.end]), witness


def test_a_witness_is_always_right() -> None:
    found = 0
    for seed in range(300):
        world = World(seed)
        for _ in range(120):
            world.step()
        found += world.found
    assert found > 1000, "hardly any witness: nothing was tried"


@pytest.mark.parametrize(
    "without",
    [
        pytest.param((Witnesses, "over", lambda self, ranges: None), id="what goes over"),
        pytest.param((Witnesses, "drop_touched", lambda self, ranges: None), id="the books"),
        pytest.param((Witnesses, "_stands", lambda self, sample, eras: True), id="samples"),
        pytest.param(
            (Memory, "failed", lambda self, ours, word, at, n: self.forget(ours, n)), id="failures"
        ),
    ],
)
def test_each_part_of_that_is_needed(
    without: tuple[type, str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, made = without
    monkeypatch.setattr(owner, name, made)
    with pytest.raises(AssertionError, match="Witness"):
        test_a_witness_is_always_right()


def test_a_witness_is_right_also_of_more_writes_than_are_told_apart() -> None:
    for seed in range(10):
        random, losses = Random(seed), Losses()
        link, disk = Link(losses), dict[int, bytes]()
        for number in range(random.randrange(1500, 6000)):
            hot = random.random() < 0.3
            offset = random.randrange(8 if hot else 1 << 22) * 4096
            disk[offset] = number.to_bytes(4) * 16
            link.write(offset, disk[offset])
        link.flush()
        for witness in losses.to_look_for(link.trail):
            assert witness.says(disk[witness.start])


def test_old_samples_go_though_some_eras_have_none(losses: Losses) -> None:
    link = Link(losses)
    for number in range(4 * SAMPLED_ERAS):
        losses.order.tick()
        if number % 3:
            link.write(number * SIZE)
        else:
            link.answered(link.ask(number * SIZE, command=Cmd.TRIM))
    sampled = [era.sample is not None for era in link.trail.unflushed.eras]
    assert sum(sampled) <= SAMPLED_ERAS


def test_what_may_be_written_when_nobody_hears_bears_no_witness(losses: Losses) -> None:
    """The client has gone, and with it the link, under a WRITE: that may be done at any time from now on."""
    link = Link(losses)
    made = traffic(client_structured=True, link_structured=True)
    made.trail = link.trail
    wires = Wires(made)
    wires.session.begin()
    wires.client.send(Request(Cmd.WRITE, 0, 5, SIZE, len(DATA), DATA).bytes)
    wires.step()
    wires.session.close()
    wires.close()
    link.write(SIZE)
    link.flush()
    assert not link.expects


def test_of_who_has_ended_nothing_bears_witness_that_is_flushed_later(losses: Losses) -> None:
    link, other = Link(losses, own=True), Link(losses)
    link.write(0)
    losses.end(link.debt)
    link.flush()
    assert not losses.witnesses.of(link.debt)
    assert not other.expects


def test_a_bug_in_what_is_noted_ends_that_session_alone(losses: Losses) -> None:
    link = Link(losses)
    made = traffic(client_structured=True, link_structured=True)
    made.memory, made.trail = link.memory, link.trail
    wires = Wires(made)
    wires.session.begin()
    wires.client.send(Request(Cmd.WRITE, 0, 5, SIZE, len(DATA), DATA).bytes)
    wires.step()
    cookie = wires.upstream.recv(1000)[8:16]
    link.memory.kept.clear()
    wires.upstream.send(struct.pack(">II", 0x67446698, 0) + cookie)
    wires.session.link_ready(READ)
    assert isinstance(wires.session.bug, KeyError)
    assert wires.session.ended.is_set()
    wires.close()
