"""What the model cannot see of a bundle's core: what is carried over, and bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from gateway.bundle.deadly import MOST_DEATHS, MOST_WRITE_DEATHS
from gateway.bundle.line import Line
from gateway.bundle.lines import State
from gateway.bundle.pieces import MOST_LOSSES
from gateway.bundle.ports import Port
from gateway.bundle.room import FIRST_PAUSE_SECONDS
from gateway.bundle.work import LINE_COMMANDS
from gateway.jobs.fences import Fences, Late
from gateway.losses.eras import KEPT
from gateway.losses.rule import MOST_TRIES, Losses
from gateway.losses.survival import Doubt, Survival
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.asks import Ask, Outcome
from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno, TransmissionFlag
from tests.bundle.model import FLAGS, Process
from tests.tools.defaults import SURVIVAL, bundle_of

EXPORT = Export(2**20, int(FLAGS))


def test_a_first_line_proves_nothing_about_what_was_brought_along() -> None:
    losses = Losses()
    debt = losses.open()
    trail = losses.trail(debt)
    losses.came_up(trail)
    bundle = bundle_of(EXPORT, 1, trail)
    trail.unflushed.note([(0, 10)])
    bundle.begin_without("it died")
    bundle.linked(Line(0, EXPORT, Dialect(), {}))
    bundle.push()
    assert debt.why
    assert debt.is_lost(9, 10)


def test_no_more_is_under_way_on_a_line_than_may_be() -> None:
    bundle = bundle_of(EXPORT, 1, Losses().trail(None))
    line = Line(0, EXPORT, Dialect(), {})
    bundle.linked(line)
    port = Port(None, lambda: None)
    for _ in range(3 * LINE_COMMANDS):
        bundle.ask(port, Ask(Cmd.READ, 0, 1), lambda _outcome: None)
    bundle.push()
    assert line.under_way == LINE_COMMANDS


def test_what_is_put_off_after_a_loss_keeps_nobody_else_waiting() -> None:
    bundle = bundle_of(EXPORT, 1, Losses().trail(None))
    line = Line(0, EXPORT, Dialect(), {})
    bundle.linked(line)
    writer, reader = Port(None, lambda: None), Port(None, lambda: None)
    for number in range(LINE_COMMANDS):
        zeroes = Ask(Cmd.WRITE_ZEROES, number, 1)  # whether these were done cannot be seen
        bundle.ask(writer, zeroes, lambda _outcome: None)
    bundle.push()
    bundle.lost(line, "it died")
    bundle.linked(again := Line(0, EXPORT, Dialect(), {}))
    bundle.push()
    before = again.under_way
    bundle.ask(reader, Ask(Cmd.READ, LINE_COMMANDS, 1), lambda _outcome: None)
    bundle.push()
    assert (before, again.under_way) == (0, 1)


def test_what_takes_the_server_down_fails_alone() -> None:
    bundle = bundle_of(EXPORT, 1, Losses().trail(None))
    outcomes: dict[str, int] = {}
    ports = {name: Port(None, lambda: None) for name in ("deadly", "innocent")}

    def ask(name: str, offset: int) -> None:
        def done(outcome: Outcome) -> None:
            outcomes[name] = outcome.error

        bundle.ask(ports[name], Ask(Cmd.READ, offset, 1), done)

    ask("innocent", 0)
    ask("deadly", 1)
    for _ in range(MOST_LOSSES):
        line = Line(0, EXPORT, Dialect(), {})
        bundle.linked(line)
        bundle.push()
        while asked := line.traffic.asks.take():
            if any(each.offset for each, _done in asked):
                bundle.lost(line, "it died")
                break
            for _each, done in asked:
                done(Outcome())
            bundle.push()
    for port in ports.values():
        bundle.answers(port)
    assert outcomes == {"deadly": int(Errno.EIO), "innocent": 0}


@pytest.mark.parametrize("flags", [0, CmdFlag.FUA])
@pytest.mark.parametrize("own", [True, False])
def test_what_is_under_way_when_a_flush_fails_counts_as_lost(own: bool, flags: int) -> None:
    """The server may have done it before; whoever's FLUSH that was. With FUA it is durable."""
    losses = Losses()
    debt, trail, other = losses.open(), losses.trail(None), losses.trail(None)
    losses.came_up(other)
    losses.came_up(trail)
    bundle = bundle_of(EXPORT, 1, trail)
    bundle.linked(line := Line(0, EXPORT, Dialect(), {}))
    port = Port(None, lambda: None)
    errors: list[int] = []
    for ask in (Ask(Cmd.WRITE, 0, 1, flags, b"x"), Ask(Cmd.FLUSH, 0, 0)):
        bundle.ask(port, ask, lambda outcome: errors.append(outcome.error))
    bundle.push()
    [(_write, write_done), (_flush, flush_done)] = line.traffic.asks.take()
    if own:
        flush_done(Outcome(Errno.EIO))
    else:
        losses.flush_failed(other, Errno.EIO)
        flush_done(Outcome())
    write_done(Outcome())
    bundle.push()
    bundle.answers(port)
    assert sorted(errors) == [0, Errno.EIO if own else 0]
    assert debt.is_lost(0, 1) is not bool(flags)
    assert not trail.unflushed


# --- Writes that may come late

LATE_SECONDS = SURVIVAL.late_write_seconds
DATA = b"x" * 16


@dataclass
class Losing:
    """A bundle that loses lines under WRITEs of `DATA`."""

    count: int = 1
    export: Export = EXPORT
    survival: Survival = SURVIVAL
    now: float = 0.0
    answers: dict[int, int] = field(default_factory=dict)
    """By the WRITE's number, the error."""
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        trail = self.losses.trail(None, KEPT[self.survival.unflushed])
        self.changes = 0
        self.bundle = bundle_of(
            *(self.export, self.count, trail),
            clock=lambda: self.now,
            survival=self.survival,
            changed=self._changed,
        )
        self.port = Port(None, lambda: None)
        self.lines: dict[int, Line] = {}

    def _changed(self) -> None:
        self.changes += 1

    def link(self, peer: Peer = UNKNOWN, number: int = 0) -> None:
        self.lines[number] = Line(number, self.export, Dialect(), {}, peer)
        self.bundle.linked(self.lines[number])
        self.bundle.push()

    def write(self, offset: int = 0, flags: int = 0) -> int:
        number = len(self.answers)
        self.answers[number] = -1

        def done(outcome: Outcome) -> None:
            self.answers[number] = outcome.error

        self.bundle.ask(self.port, Ask(Cmd.WRITE, offset, len(DATA), flags, DATA), done)
        self.bundle.push()
        return number

    def lose(self, number: int = 0, *, goes: bool = False) -> None:
        """`goes`: its server has said so before, which puts nobody under suspicion."""
        if goes:
            self.goes(number)
        self.bundle.lost(self.lines.pop(number), "it died")
        self.bundle.push()

    def goes(self, number: int = 0) -> None:
        """The server of a line has said that it goes."""
        going = self.lines[number].traffic.going
        going.refuse(min(self.lines[number].traffic.in_flight, default=0))

    def asked(self, number: int = 0) -> list[Cmd]:
        """What is under way on a line."""
        pieces = self.bundle.work.pieces.under_way
        return [piece.ask.command for piece in pieces if piece.line is self.lines[number]]

    def answer(self, found: bytes = b"", number: int = 0) -> None:
        """Answer what is under way on a line; a READ with what is `found`."""
        for ask, done in self.lines[number].traffic.asks.take():
            done(Outcome(data=bytearray(found if ask.command is Cmd.READ else b"")))
        self.bundle.push()
        self.bundle.answers(self.port)

    def tick(self, seconds: float = 0) -> None:
        self.now += seconds
        self.bundle.tick()
        self.bundle.push()

    @property
    def barred(self) -> bool:
        """Nobody may write there."""
        self.fences.look(self.now)
        return self.fences.bar(0, 1)

    @property
    def fences(self) -> Fences:
        return self.bundle.work.fences


@pytest.mark.parametrize("flags", [0, CmdFlag.FUA])
def test_what_is_found_is_answered_and_nobody_writes_over_it_for_a_while(flags: int) -> None:
    it = Losing()
    it.link()
    write = it.write(flags=flags)
    it.lose()
    it.now = 1
    it.link()
    it.answer(DATA)
    if flags:  # it has to be durable as well; the same bytes again do no harm
        assert it.asked() == [Cmd.WRITE]
        assert it.barred
        it.answer()
    assert it.answers[write] == 0
    assert it.bundle.state is State.UP
    it.now = LATE_SECONDS - 1
    assert it.barred
    it.now = LATE_SECONDS
    assert not it.barred


@pytest.mark.parametrize("asked", ["before the loss", "before the link", "before it is found"])
def test_a_write_that_waits_in_the_queue_waits_for_the_fence_as_well(asked: str) -> None:
    it = Losing()
    it.link()
    it.write()
    newer = -1
    if asked == "before the loss":
        for number in range(LINE_COMMANDS):
            it.write(offset=(1 + number) * len(DATA))
        newer = it.write()
        assert len(it.asked()) == LINE_COMMANDS
    it.lose()
    if asked == "before the link":
        newer = it.write()
    it.now = 1
    it.link()
    if asked == "before it is found":
        newer = it.write()
    elsewhere = it.write(offset=2**19)
    for _ in range(2 * LINE_COMMANDS):  # one after the other is looked for
        it.answer(DATA)
    assert it.barred
    assert it.answers[newer] == -1
    assert it.answers[elsewhere] == 0
    it.now = LATE_SECONDS
    it.tick()
    assert not it.barred
    it.answer()
    assert it.answers[newer] == 0


def test_whoever_looks_at_the_clock_hears_of_a_write_that_waits_for_others() -> None:
    it = Losing()
    it.link()
    it.fences.add(0, 1, Late(LATE_SECONDS, UNKNOWN))
    before = it.changes
    write = it.write()
    assert it.changes > before
    assert it.bundle.due == LATE_SECONDS
    it.now = LATE_SECONDS
    it.tick()
    it.answer()
    assert it.answers[write] == 0


def test_what_is_found_is_asked_again_where_no_other_flush_would_cover_it() -> None:
    """Without CAN_MULTI_CONN one covers what went over its own connection."""
    it = Losing(export=replace(EXPORT, flags=EXPORT.flags & ~TransmissionFlag.CAN_MULTI_CONN))
    it.link()
    write = it.write()
    it.lose()
    it.now = 1
    it.link()
    it.answer(DATA)
    assert it.asked() == [Cmd.WRITE]
    assert it.answers[write] == -1
    it.answer()
    assert it.answers[write] == 0


def test_what_is_not_found_is_asked_again_after_a_while() -> None:
    it = Losing()
    it.link()
    it.write()
    it.lose()
    it.now = 1
    it.link()
    it.answer(bytes(len(DATA)))
    assert it.barred
    assert (it.asked(), it.bundle.due, it.bundle.hopes) == ([], LATE_SECONDS, False)
    it.now = LATE_SECONDS
    it.tick()
    assert it.asked() == [Cmd.WRITE]


@pytest.mark.parametrize("found", [DATA, bytes(len(DATA))], ids=["found", "not found"])
def test_nothing_waits_for_a_process_that_has_ended(found: bytes) -> None:
    it = Losing()
    process = Process()
    it.link(process)
    write = it.write()
    it.lose()
    process.ended = True
    it.link()
    it.answer(found)
    assert not it.barred
    if found is not DATA:
        assert it.asked() == [Cmd.WRITE]
        it.answer()
    assert it.answers[write] == 0


@pytest.mark.parametrize("found", [DATA, bytes(len(DATA))], ids=["found", "not found"])
def test_a_wait_ends_with_the_process(found: bytes) -> None:
    it = Losing()
    process = Process()
    it.link(process)
    it.write()
    it.lose()
    it.link()
    it.answer(found)
    it.tick(2)
    if found is DATA:
        assert it.barred
    else:
        assert (it.asked(), it.bundle.hopes) == ([], True)
    process.ended = True
    it.tick()
    assert not it.barred
    assert found is DATA or it.asked() == [Cmd.WRITE]


def test_a_wait_is_for_each_link_that_has_died() -> None:
    """The first over which it was asked may do it yet, though the second cannot."""
    it = Losing()
    first, second = Process(), Process()
    it.link(first)
    it.write()
    it.lose(goes=True)
    it.link(second)
    it.answer(bytes(len(DATA)))
    it.tick(LATE_SECONDS)
    assert it.asked() == [Cmd.WRITE]
    it.lose()
    second.ended = True
    it.link()
    assert it.asked() == [Cmd.WRITE]  # the first is over by its time


def test_two_that_mend_do_not_wait_for_each_other() -> None:
    """What each has found to be written is flushed before either shows anything to anybody."""
    losses = Losses()
    one, other = (Losing(losses=losses) for _ in range(2))
    for it, offsets in ((one, (0,)), (other, (100, 200))):
        it.link()
        for offset in offsets:
            it.write(offset)
    for it in (one, other):
        it.lose()
    for it in (one, other):
        it.link()
    other.answer(DATA)  # the first of two
    one.answer(DATA)
    other.answer(DATA)
    for _ in range(4):
        for it in (one, other):
            it.tick()
            it.answer(DATA)
    assert [it.bundle.state for it in (one, other)] == [State.UP, State.UP]
    assert [set(it.answers.values()) for it in (one, other)] == [{0}, {0}]


def test_nothing_is_asked_over_a_line_whose_server_goes() -> None:
    """So nobody takes it for done, or waits for it when the line has died."""
    it = Losing()
    it.link()
    it.write()
    it.goes()
    kept = it.write(len(DATA))
    assert it.asked() == [Cmd.WRITE]
    it.lose()
    it.link()
    it.answer(DATA)
    assert it.asked() == [Cmd.WRITE]
    it.answer()
    assert it.answers[kept] == 0


def test_one_process_that_ends_says_nothing_of_another() -> None:
    it = Losing(2)
    ended, lives = Process(), Process()
    it.link(ended, 0)
    it.link(lives, 1)
    it.answer()
    stripe = it.bundle.lines.stripe_bytes
    it.write(0)
    it.write(stripe)
    it.lose(0)
    it.lose(1)
    ended.ended = True
    it.link()
    it.answer(DATA)
    it.answer(DATA)
    it.fences.look(it.now)
    assert not it.fences.bar(0, stripe)
    assert it.fences.bar(stripe, stripe + 1)


class Home(Process):
    """One that has kept all when it ends."""

    def kept(self) -> bool:
        return self.ended


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_other_side_has_kept_is_not_lost_and_the_rest_is_asked_once_more(
    kept: bool,
) -> None:
    it = Losing(survival=replace(SURVIVAL, through_us=False))
    debt, home = it.losses.open(), Home()
    it.link(home)
    it.write()
    it.answer()
    it.write(len(DATA))
    it.lose()
    assert not debt.why  # nobody knows yet
    home.ended = kept
    it.link()
    assert it.asked() == [Cmd.WRITE if kept else Cmd.READ]
    it.fences.look(it.now)
    assert bool(debt.why) is bool(it.fences.over(len(DATA), 2 * len(DATA))) is not kept
    it.answer(DATA)
    if kept:  # it said nothing of what came after
        it.lose()
        it.link()
        assert debt.why


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("multi_conn", [True, False])
def test_what_was_kept_is_not_looked_for_where_others_write(multi_conn: bool, kept: bool) -> None:
    """They write by way of other gateways, from the moment that the next home is there."""
    flags = EXPORT.flags | TransmissionFlag.CAN_MULTI_CONN
    if not multi_conn:
        flags &= ~TransmissionFlag.CAN_MULTI_CONN
    it = Losing(export=replace(EXPORT, flags=flags), survival=replace(SURVIVAL, through_us=False))
    home = Home()
    it.link(home)
    for number in range(3):
        it.write(2 * number * len(DATA), CmdFlag.FUA)
        it.answer()
    it.lose()
    home.ended = kept
    it.link()
    assert it.asked() == ([] if kept and multi_conn else [Cmd.READ] * 3)
    it.answer(b"y" * len(DATA))
    assert it.bundle.is_another is not (kept and multi_conn)


def test_what_was_being_written_again_is_waited_for() -> None:
    """Before the next recovery: until its time has come, or its process has ended."""
    for ends in (True, False):
        survival = replace(SURVIVAL, unflushed=Doubt.REPLAY)
        it = Losing(survival=survival)
        process = Process()
        it.link()
        it.write()
        it.answer()
        it.lose()
        it.link(process)
        assert it.asked() == [Cmd.WRITE]
        it.lose()
        it.link()
        assert (it.asked(), it.bundle.hopes) == ([], True)
        process.ended = ends
        it.now = 0 if ends else it.bundle.due
        it.tick()
        assert it.asked() == [Cmd.WRITE]


def test_what_is_written_again_is_counted_when_all_of_it_is() -> None:
    it = _replaying()
    counted: list[int] = []
    it.bundle.work.wrote_again = counted.append
    it.link()
    for number in range(2):
        it.write(number * len(DATA))
        it.answer()
    it.lose()
    it.link()
    assert counted == []
    it.answer()
    assert counted == [2 * len(DATA)]


def test_what_is_adopted_waits_for_the_link_that_it_comes_from() -> None:
    for ends in (True, False):
        it = Losing()
        process = Process()
        it.bundle.begin_without("it died", process)
        it.bundle.adopt(it.port, Ask(Cmd.WRITE, 0, len(DATA), 0, DATA), lambda _outcome: None)
        process.ended = ends
        it.link()
        it.answer(DATA)
        assert it.barred is not ends


# --- FLUSHes


def test_a_flush_that_hundreds_share_is_told_to_one_after_the_other() -> None:
    """Whoever is woken pushes, as sessions do."""
    bundle = bundle_of(EXPORT, 1, Losses().trail(None))
    bundle.linked(line := Line(0, EXPORT, Dialect(), {}))
    told: list[int] = []

    def come(number: int) -> None:
        def wake() -> None:
            bundle.answers(port)
            bundle.push()

        port = Port(None, wake)
        bundle.ask(port, Ask(Cmd.FLUSH, 0, 0), lambda _outcome: told.append(number))

    for number in range(1000):
        come(number)
    bundle.push()
    [(_flush, done)] = line.traffic.asks.take()
    done(Outcome())
    bundle.push()
    assert told == list(range(1000))


def test_a_flush_of_a_recovery_that_fails_is_a_loss_though_nobody_goes_on_with_that() -> None:
    it = Losing(count=3)
    debt = it.bundle.work.trail.losses.open()
    for number in range(3):
        it.link(number=number)
    it.write()
    it.answer()
    it.lose(number=1)
    assert it.asked() == [Cmd.FLUSH]
    it.lose(number=2)
    [(_flush, done)] = it.lines[0].traffic.asks.take()
    done(Outcome(Errno.EIO))
    it.bundle.push()
    assert debt.why
    assert debt.is_lost(0, 1)


def test_a_flush_that_fails_when_all_was_found_is_a_loss_for_others_as_well() -> None:
    """Also of what was under way then."""
    it = Losing(survival=replace(SURVIVAL, unflushed=Doubt.VERIFY))
    losses = it.bundle.work.trail.losses
    it.link()
    it.write()
    it.answer()
    it.lose()
    other, trail = losses.open(), losses.trail(None)
    losses.came_up(trail)
    asked = losses.asked()
    it.link()
    while it.asked() == [Cmd.READ]:
        it.answer(DATA)
    [(flush, done)] = it.lines[0].traffic.asks.take()
    assert flush.command is Cmd.FLUSH
    done(Outcome(Errno.EIO))
    it.bundle.push()
    assert other.is_lost(0, 1)
    assert losses.is_done_before(trail, asked)


def test_nothing_is_in_order_while_others_prove_what_a_line_has_left() -> None:
    """Who goes back to a link of his own then would take it for the one that he had."""
    it = Losing()
    losses = it.bundle.work.trail.losses
    older = losses.trail(None)
    losses.came_up(older)
    older.flush = lambda _done: None
    it.link()
    it.write()
    it.answer()
    assert it.bundle.in_order
    it.lose()
    it.link()
    assert it.bundle.idle
    assert not it.bundle.in_order
    losses.flushed(older, losses.sent())
    it.tick()
    while not it.bundle.in_order:  # what was written is looked for
        it.answer(DATA)


def test_a_bundle_that_breaks_down_has_lost_what_was_written() -> None:
    it = Losing()
    debt = it.bundle.work.trail.losses.open()
    it.link()
    it.write()
    it.answer()
    it.bundle.break_down("a bug")
    assert debt.why == "a bug"
    assert it.bundle.state is State.OVER


def test_who_ends_in_the_middle_of_mending_waits_at_no_gate() -> None:
    it = Losing()
    losses = it.bundle.work.trail.losses
    assert isinstance(losses, Losses)
    other = losses.trail(None)
    losses.came_up(other)
    other.flush = lambda _done: None
    other.unflushed.note([(0, 1)], losses.asked())
    it.link()
    it.lose()
    it.link()
    assert losses._waiting  # `other` is asked to prove what it has
    it.bundle.end()
    assert not losses._waiting


def test_what_a_recovery_has_in_hand_is_not_taken_from_it() -> None:
    """A client goes while its WRITE is looked for, and the clock is looked at."""
    it = Losing()
    made = plan(offer(view_of(EXPORT), structured=False), EXPORT)
    it.port.traffic = Traffic(made, debt=it.bundle.work.trail.losses.open())
    it.link()
    write = it.write()
    it.lose()
    it.now = 1
    it.link()
    assert it.bundle.state is State.MENDING
    it.port.traffic.debt.deaf = True
    it.tick()
    it.answer(DATA)
    assert it.answers[write] == 0


def test_what_waits_for_its_turn_alone_is_written_though_its_client_says_goodbye() -> None:
    """A server handles what is outstanding then."""
    it = Losing()
    made = plan(offer(view_of(EXPORT), structured=False), EXPORT)
    it.port.traffic = Traffic(made, debt=it.bundle.work.trail.losses.open())
    it.link()
    writes = [it.write(offset=100 * number) for number in range(LINE_COMMANDS + 5)]
    it.port.traffic.debt.deaf = True
    it.tick()
    it.answer()
    it.answer()
    assert [it.answers[write] for write in writes] == [0] * len(writes)


def test_what_has_waited_for_others_is_not_written_when_its_client_has_gone() -> None:
    it = Losing()
    made = plan(offer(view_of(EXPORT), structured=False), EXPORT)
    it.port.traffic = Traffic(made, debt=it.bundle.work.trail.losses.open())
    it.link()
    it.fences.add(0, 1, Late(LATE_SECONDS, UNKNOWN))
    write = it.write()
    it.port.traffic.debt.deaf = True
    it.now = LATE_SECONDS
    it.tick()
    assert it.asked() == []
    it.bundle.answers(it.port)
    assert it.answers[write] == Errno.EIO


def test_what_waits_for_a_line_is_not_written_when_its_client_has_gone() -> None:
    it = Losing()
    made = plan(offer(view_of(EXPORT), structured=False), EXPORT)
    it.port.traffic = Traffic(made, debt=it.bundle.work.trail.losses.open())
    it.link()
    unanswered = it.write()
    it.lose()
    new = it.write(offset=100)
    it.port.traffic.debt.deaf = True
    it.now = LATE_SECONDS
    it.link()
    it.answer(bytes(len(DATA)))
    assert it.asked() == []
    it.bundle.answers(it.port)
    assert (it.answers[unanswered], it.answers[new]) == (Errno.EIO, Errno.EIO)
    assert it.bundle.idle


def test_what_is_only_assumed_to_be_there_bears_no_witness() -> None:
    """A server of which that is not true would be taken for another disk, one restart later."""
    it = Losing(survival=replace(SURVIVAL, unflushed=Doubt.ASSUME_DURABLE))
    losses = it.bundle.work.trail.losses
    losses.open()
    it.link()
    it.write()
    it.answer()
    it.lose()
    it.link()
    assert it.asked() == [Cmd.FLUSH]
    it.answer()
    assert it.bundle.in_order
    assert len(losses.witnesses) == 0


def test_who_asks_beside_a_flush_that_has_lost_a_link_does_not_fail_with_it() -> None:
    it = Losing()
    answers: dict[str, int] = {}
    before, beside = Port(None, lambda: None), Port(None, lambda: None)

    def answered(who: str) -> Callable[[Outcome], None]:
        return lambda outcome: answers.update({who: outcome.error})

    it.bundle.begin_without("it died")
    it.bundle.adopt(before, Ask(Cmd.FLUSH, 0, 0, losses=1), answered("before"))
    it.bundle.ask(beside, Ask(Cmd.FLUSH, 0, 0), answered("beside"))
    it.link()
    assert it.asked() == [Cmd.FLUSH]
    it.lose()
    it.link()
    it.answer()
    for port in (before, beside):
        it.bundle.answers(port)
    assert answers == {"before": Errno.EIO, "beside": 0}


# --- What a recovery asks and takes the server down


def _verifying() -> Losing:
    return Losing(survival=replace(SURVIVAL, unflushed=Doubt.VERIFY, late_write_seconds=0))


def _replaying() -> Losing:
    return Losing(survival=replace(SURVIVAL, unflushed=Doubt.REPLAY, late_write_seconds=0))


def _with_witnesses(count: int) -> Losing:
    """A bundle that looks for so many places."""
    it = Losing()
    it.bundle.work.trail.losses.open()
    it.link()
    for number in range(count):
        it.write(number * len(DATA), flags=CmdFlag.FUA)
        it.answer()
    it.lose()
    return it


def test_a_place_that_cannot_be_looked_at_bears_no_witness() -> None:
    it = _with_witnesses(1)
    for _ in range(MOST_LOSSES):
        it.link()
        assert it.asked() == [Cmd.READ]
        it.lose()
    it.link()
    assert it.bundle.in_order
    assert not it.bundle.work.trail.losses.witnesses


def test_of_several_places_one_is_looked_at_alone_when_a_line_has_died() -> None:
    """The others go on to bear witness."""
    it = _with_witnesses(4)
    it.link()
    assert it.asked() == [Cmd.READ] * 4
    it.lose()
    it.link()
    assert it.asked() == [Cmd.READ]
    it.answer(DATA)
    assert it.asked() == [Cmd.READ]
    it.lose()
    it.link()
    for _ in range(3):
        assert it.asked() == [Cmd.READ]
        it.answer(DATA)
    assert it.bundle.in_order
    assert len(it.bundle.work.trail.losses.witnesses) == 3


def test_a_server_that_says_that_it_goes_is_asked_as_often_as_it_takes() -> None:
    it = _with_witnesses(1)
    for _ in range(2 * MOST_DEATHS):
        it.link()
        assert it.asked() == [Cmd.READ]
        it.lose(goes=True)
    assert it.bundle.work.trail.losses.witnesses


def test_a_server_that_dies_over_something_else_each_time_is_not_asked_for_ever() -> None:
    it = _with_witnesses(4 * MOST_DEATHS)
    deaths = 0
    it.link()
    while not it.bundle.in_order:
        for _ in range(deaths):  # each time a little later
            it.answer(DATA)
        it.lose()
        it.link()
        deaths += 1
        assert deaths <= MOST_DEATHS
    assert it.bundle.work.trail.losses.witnesses


def test_a_recovery_forgets_what_befell_one_that_is_long_past() -> None:
    it = _with_witnesses(1)
    for _ in range(2 * MOST_DEATHS):
        it.link()
        it.lose()
        it.link()
        it.answer(DATA)
        assert it.bundle.in_order
        it.lose()
    assert it.bundle.work.trail.losses.witnesses


def test_what_a_deadly_flush_of_a_recovery_should_have_covered_is_lost() -> None:
    it = _verifying()
    debt = it.bundle.work.trail.losses.open()
    it.link()
    it.write()
    it.answer()
    it.lose()
    for _ in range(MOST_WRITE_DEATHS):
        it.link()
        it.answer(DATA)
        assert it.asked() == [Cmd.FLUSH]
        assert not debt.why
        it.lose()
    it.link()
    it.answer(DATA)
    assert it.bundle.in_order
    assert "connections in a row were lost" in debt.why
    assert debt.is_lost(0, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_assumed_to_be_there_is_not_taken_to_be_seen_over_every_line(count: int) -> None:
    """After a deadly FLUSH. Over the one line there is the server is trusted, as it is in all else."""
    it = Losing(count=count, survival=replace(SURVIVAL, unflushed=Doubt.ASSUME_DURABLE))
    debt = it.bundle.work.trail.losses.open()
    it.link()
    it.write()
    it.answer()
    it.lose()
    for _ in range(MOST_WRITE_DEATHS):
        it.link()
        assert it.asked() == [Cmd.FLUSH]
        it.lose()
    it.link()
    assert it.bundle.in_order
    assert debt.is_lost(0, 1) is (count > 1)


def test_a_write_that_cannot_be_written_again_is_lost_with_the_rest() -> None:
    it = _replaying()
    debt = it.bundle.work.trail.losses.open()
    it.link()
    for number in range(3):
        it.write(number * len(DATA))
        it.answer()
    it.lose()
    it.link()
    assert it.asked() == [Cmd.WRITE] * 3
    it.lose()
    for _ in range(MOST_WRITE_DEATHS - 1):
        it.link()
        assert it.asked() == [Cmd.WRITE]  # one after the other now
        it.answer()
        assert it.asked() == [Cmd.WRITE]
        it.lose()
        assert not debt.why
    it.link()
    assert it.bundle.in_order  # and nothing of it was written over this line
    assert debt.is_lost(0, 3 * len(DATA))


def test_what_cannot_be_flushed_is_written_again_all_the_same() -> None:
    """Over one line newer writes go behind it; it is only who asked for the FLUSH that is told."""
    it = _replaying()
    debt = it.bundle.work.trail.losses.open()
    errors: list[int] = []
    it.link()
    it.write()
    it.answer()
    it.bundle.ask(it.port, Ask(Cmd.FLUSH, 0, 0), lambda outcome: errors.append(outcome.error))
    it.bundle.push()
    for _ in range(MOST_LOSSES):
        assert it.asked() == [Cmd.FLUSH]
        it.lose()
        it.link()
        assert it.asked() == [Cmd.WRITE]
        it.answer()
    assert it.bundle.in_order
    assert errors == [Errno.EIO]
    assert not debt.why


def test_a_flush_that_others_ask_for_while_a_bundle_mends_is_not_sent_for_ever() -> None:
    """It waits for them before it shows anything, and they for it."""
    it = _replaying()
    losses = it.losses
    debt = losses.open()
    it.link()
    it.write()
    it.answer()
    other = losses.trail(None)
    losses.came_up(other)  # too late to prove what was written
    other.flush = lambda _done: None
    other.unflushed.note([(2**19, 2**19 + 1)], losses.asked())
    it.lose()
    for _ in range(MOST_WRITE_DEATHS):
        it.link()
        assert it.asked() == [Cmd.WRITE]
        it.answer()
        it.bundle.work.trail.flush(lambda _error, _text: None)
        it.bundle.push()
        assert it.asked() == [Cmd.FLUSH]
        assert not debt.why
        it.lose()
    it.link()
    it.answer()
    assert debt.is_lost(0, 1)
    heard: list[int] = []
    it.bundle.work.trail.flush(lambda error, _text: heard.append(error))
    it.bundle.push()
    for _ in range(
        MOST_LOSSES
    ):  # what nobody has to find again is asked as any FLUSH of a client is
        assert it.asked() == [Cmd.FLUSH]
        it.lose()
        it.link()
        it.bundle.push()
    assert it.asked() == []
    assert heard == [Errno.EIO]


def test_a_flush_over_a_line_that_has_died_with_the_others_is_not_blamed() -> None:
    """A server is killed: one line is found to be dead before the rest."""
    survival = replace(SURVIVAL, unflushed=Doubt.REPLAY, late_write_seconds=0)
    it = Losing(count=3, survival=survival)
    debt = it.losses.open()
    for number in range(3):
        it.link(number=number)
    it.write()
    it.answer()
    for number in range(3):
        it.lose(number)
    assert not it.bundle.work.flushes.losses
    for _ in range(MOST_WRITE_DEATHS - 1):
        it.link()
        it.link(number=1)
        it.answer()
        assert it.asked() == [Cmd.FLUSH]
        it.lose()
        it.lose(number=1)
    it.link()
    assert it.asked() == [Cmd.WRITE]
    assert not debt.why


def test_a_write_that_cannot_be_looked_for_is_written_again() -> None:
    it = Losing()
    it.link()
    write = it.write()
    it.lose()
    for _ in range(MOST_LOSSES):
        it.link()
        assert it.asked() == [Cmd.READ]
        it.lose()
    it.link()
    assert it.bundle.state is State.UP
    it.now = LATE_SECONDS
    it.tick()
    assert it.asked() == [Cmd.WRITE]
    it.answer()
    assert it.answers[write] == 0


# --- A server that tries no FLUSH


@dataclass
class NotTrying(Losing):
    """A bundle that may keep two WRITEs; its server tries no FLUSH."""

    count: int = 1
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.survival = replace(
            self.survival, replay_bytes=2 * len(DATA), late_write_seconds=0, unflushed=Doubt.REPLAY
        )
        super().__post_init__()
        self.bundle.work._say = lambda what, _details: self.said.append(what)
        self.debt = self.bundle.work.trail.losses.open()
        self.link()

    def refuse(self) -> None:
        """Answer a FLUSH, and nothing else."""
        [(flush, done)] = self.lines[0].traffic.asks.take()
        assert flush.command is Cmd.FLUSH
        done(Outcome(Errno.ENOMEM))
        self.bundle.push()


def _full() -> tuple[NotTrying, int]:
    """Give one in which a WRITE waits until there is room, and no FLUSH is worth while any more."""
    it = NotTrying()
    it.write()
    it.answer()
    it.write(len(DATA))
    assert it.asked() == [Cmd.WRITE, Cmd.FLUSH]  # that much is half of what may be kept
    [(_write, done), flush] = it.lines[0].traffic.asks.take()
    done(Outcome())
    it.bundle.push()
    waits = it.write(2 * len(DATA))
    assert it.asked() == [Cmd.FLUSH]
    flush[1](Outcome(Errno.ENOMEM))
    it.bundle.push()
    return it, waits


def test_a_write_that_waits_for_room_keeps_no_other_session_waiting() -> None:
    it, waits = _full()
    asked = it.asked()
    readers = [Port(None, lambda: None) for _ in range(2)]
    for port in readers:
        it.bundle.ask(port, Ask(Cmd.READ, 0, 1), lambda _outcome: None)
    it.bundle.push()
    assert it.asked() == [*asked, Cmd.READ, Cmd.READ]
    assert it.answers[waits] == -1


def test_a_flush_that_was_not_tried_is_tried_again_a_little_later_each_time() -> None:
    it, waits = _full()
    pauses: list[float] = []
    while it.answers[waits] == -1 and not it.asked():
        pauses.append(it.bundle.due - it.now)
        it.now = it.bundle.due - 0.01
        it.tick()
        assert it.asked() == []
        it.now += 0.01
        it.tick()
        it.refuse()
    assert pauses == [FIRST_PAUSE_SECONDS * 2**number for number in range(MOST_TRIES - 1)]
    assert it.bundle.due > it.now + 1000


def test_writes_go_on_though_no_flush_is_tried_and_a_loss_is_told() -> None:
    it, waits = _full()
    while not it.said:
        it.tick(it.bundle.due - it.now)
        it.refuse()
    assert it.asked() == [Cmd.WRITE]
    it.answer()
    assert it.answers[waits] == 0
    for number in range(20):
        it.write(number * len(DATA))
        assert it.asked() == [Cmd.WRITE]
        it.answer()
    assert len(it.said) == 1
    assert "the server tries no FLUSH" in it.said[0]
    it.lose()
    it.link()
    assert it.bundle.in_order  # nothing can be written again
    assert it.debt.is_lost(0, 20 * len(DATA))
    assert "cannot be written again" in it.debt.why


def test_as_much_is_kept_as_before_when_a_flush_has_succeeded() -> None:
    it, _waits = _full()
    while not it.said:
        it.tick(it.bundle.due - it.now)
        it.refuse()
    it.answer()
    it.bundle.ask(it.port, Ask(Cmd.FLUSH, 0, 0), lambda _outcome: None)
    it.bundle.push()
    it.write(5 * len(DATA))
    [(_flush, flushed), (_write, written)] = it.lines[0].traffic.asks.take()
    written(Outcome())  # of which no more is kept than where it is
    flushed(Outcome())
    it.bundle.push()
    it.write()
    it.answer()
    assert it.bundle.unflushed
    assert not it.bundle.unflushed.is_whole
    it.bundle.ask(it.port, Ask(Cmd.FLUSH, 0, 0), lambda _outcome: None)
    it.bundle.push()
    it.answer()
    it.write()
    it.answer()
    it.lose()
    it.link()
    it.answer(DATA)  # what was flushed bears witness
    assert it.asked() == [Cmd.WRITE]
    assert not it.debt.why


@pytest.mark.parametrize("lost", [True, False])
def test_what_is_only_known_by_its_place_is_not_said_to_be_there(lost: bool) -> None:
    it = _verifying()
    debt = it.bundle.work.trail.losses.open()
    it.link()
    it.write()
    it.answer()
    if lost:
        it.bundle.unflushed.keep_less()
    it.lose()
    it.link()
    while not it.bundle.in_order:
        it.answer(DATA)
    assert bool(debt.why) is lost
