"""The rule of losses: by hand, in every order, by chance, and with each of its clauses taken out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from gateway.losses import rule, telling
from gateway.losses.eras import Era, Keep
from gateway.losses.records import Fate
from gateway.losses.rule import (
    BEHIND_A_BLACK_HOLE,
    MOST_LEFT,
    MOST_TRIES,
    Barrier,
    Debt,
    Flush,
    Flushed,
    Losses,
    Trail,
)
from gateway.losses.unflushed import MOST_ERAS, Unflushed
from gateway.protocol import commands
from gateway.protocol.asks import Ask
from gateway.protocol.commands import is_loss
from gateway.scan.memory import Memory
from gateway.wire.constants import Cmd, Errno
from gateway.wire.ranges import Range
from tests.losses import model
from tests.losses.model import Bounds
from tests.tools.shares import batches

HERE, THERE = (0, 10), (10, 20)
"""Two places on a disk."""


class Session:
    """One with a link of its own. What it FLUSHes is carried out when `reply` is called, unless it says how it
    is answered at once.
    """

    def __init__(self, disk: Disk, *, own: bool = False) -> None:
        self.losses = disk.losses
        self.debt = disk.losses.open()
        self.trail = disk.losses.trail(self.debt if own else None)
        self.trail.flush = self._prove
        self.asked: list[tuple[int, Flushed]] = []
        """Proofs that are under way: when they were sent, and who hears of it."""
        self.heard: list[tuple[int, str]] = []
        """What its FLUSHes were answered."""
        disk.losses.came_up(self.trail)

    def write(self, *ranges: Range, asked: int | None = None) -> None:
        self.trail.unflushed.note(ranges, asked)

    def _prove(self, done: Flushed) -> None:
        self.asked.append((self.losses.sent(), done))

    def reply(self, error: int = 0) -> None:
        """The oldest proof is answered."""
        sent, done = self.asked.pop(0)
        if error:
            self.losses.flush_failed(self.trail, error)
        else:
            self.losses.flushed(self.trail, sent)
        done(error, "")

    def read(self) -> Flush:
        return self.debt.read()

    def flush(self, flush: Flush | None = None, error: int = 0) -> int | None:
        """A FLUSH of its client, which its server answers at once; give its answer, if there is one yet."""
        flush = flush or self.read()
        sent = self.losses.sent()
        if error:
            self.losses.flush_failed(self.trail, error)
        else:
            self.losses.flushed(self.trail, sent)
        before = len(self.heard)
        settled = partial(self._settled, flush, error)
        if error or self.losses.settle(flush, settled):
            settled()
        return self.heard[-1][0] if len(self.heard) > before else None

    def _settled(self, flush: Flush, error: int) -> None:
        self.heard.append(self.losses.answer(flush, error, ""))

    def is_lost(self, place: Range) -> bool:
        return self.debt.is_lost(*place)

    def die(self, *, doubt: bool = False) -> None:
        self.losses.died(self.trail, "the server has died", doubt=doubt)

    def end(self) -> None:
        """Its client goes, and its link is closed."""
        self.losses.end(self.debt)
        self.losses.left(self.trail)


class Disk:
    """One, with what its `Losses` ask for."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.said: list[str] = []
        self.losses = Losses(
            later=self.timers.append, say=lambda what, _details: self.said.append(what)
        )

    def session(self, *, own: bool = False) -> Session:
        return Session(self, own=own)

    @property
    def quiet(self) -> bool:
        """Nobody has to be told of anything."""
        return self.losses._quiet

    def time_passes(self) -> None:
        """PROOF_SECONDS."""
        timers = self.timers[:]
        self.timers.clear()
        for timer in timers:
            timer()


@pytest.fixture
def disk() -> Disk:
    return Disk()


# --- Scope


def test_all_rely_on_what_is_written_where_a_flush_speaks_for_all(disk: Disk) -> None:
    writer, other = disk.session(), disk.session()
    writer.write(HERE)
    other.die()
    writer.die()
    assert (writer.is_lost(HERE), other.is_lost(HERE)) == (True, True)
    assert other.losses.answer(other.read(), 0, "")[0] == Errno.EIO


def test_only_its_session_relies_on_what_is_written_where_a_flush_speaks_for_one(
    disk: Disk,
) -> None:
    writer, other = disk.session(own=True), disk.session(own=True)
    writer.write(HERE)
    writer.die()
    assert writer.losses.answer(writer.read(), 0, "")[0] == Errno.EIO
    assert other.flush() == 0
    assert not other.is_lost(HERE)
    assert disk.session(own=True).flush() == 0


def test_a_flush_that_speaks_for_one_waits_for_nobody_else(disk: Disk) -> None:
    writer = disk.session(own=True)
    writer.write(HERE)
    assert disk.session(own=True).flush() == 0
    assert not writer.asked


def test_a_flush_that_speaks_for_one_covers_nothing_of_others(disk: Disk) -> None:
    old, writer = disk.session(own=True), disk.session(own=True)
    writer.write(HERE)
    assert old.flush() == 0
    writer.die()
    assert writer.debt.why


# --- Cover


def test_a_flush_covers_what_was_answered_before_it_was_sent(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    sent = disk.losses.sent()
    session.write(THERE)
    disk.losses.flushed(session.trail, sent)
    assert session.trail.unflushed.ranges == [THERE]


def test_a_flush_covers_what_went_over_others_since_its_link_was_up(disk: Disk) -> None:
    old, young = disk.session(), disk.session()
    young.write(HERE)
    assert old.flush() == 0
    assert not young.trail.unflushed
    assert not young.asked


def test_a_link_that_was_made_later_knows_nothing_of_what_was_before(disk: Disk) -> None:
    old = disk.session()
    old.write(HERE)
    young = disk.session()
    assert young.flush() is None
    assert old.trail.unflushed.ranges == [HERE]
    old.reply()
    assert young.heard == [(0, "")]


def test_a_reply_that_was_late_in_a_socket_does_not_make_its_write_any_younger(disk: Disk) -> None:
    old = disk.session()
    asked = disk.losses.asked()
    young = disk.session()  # of a server that was started meanwhile
    old.write(HERE, asked=asked)
    assert young.flush() is None
    old.die()
    assert young.heard[0][0] == Errno.EIO


def test_a_link_that_was_made_again_does_not_count_as_up_since_before(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.die()
    other.write(HERE)
    disk.losses.came_up(one.trail)
    assert one.flush() is None
    assert other.asked


# --- A FLUSH waits for what is proved


def test_a_flush_waits_for_what_was_answered_before_it_was_read_only(disk: Disk) -> None:
    old = disk.session()
    young = disk.session()
    flush = young.read()
    old.write(HERE, asked=0)
    assert young.flush(flush) == 0
    assert not old.asked


def test_a_proof_that_was_under_way_is_asked_again_if_it_did_not_do(disk: Disk) -> None:
    old = disk.session()
    old.write(HERE)
    young, third = disk.session(), disk.session()
    assert young.flush() is None
    old.write(THERE, asked=0)
    assert third.flush() is None
    assert len(old.asked) == 1
    old.reply()
    assert (young.heard, third.heard) == ([(0, "")], [])
    old.reply()
    assert third.heard == [(0, "")]
    assert not old.asked


def test_a_writer_that_writes_on_holds_no_flush_up(disk: Disk) -> None:
    """However many events there are until a proof is answered: eras that are taken for one begin behind it."""
    old = disk.session()
    old.write(HERE)
    young = disk.session()
    assert young.flush() is None
    for _ in range(3 * MOST_ERAS):
        disk.losses.order.tick()
        old.write(HERE, asked=0)
    old.reply()
    assert young.heard == [(0, "")]
    assert not old.asked


def test_its_own_writes_hold_no_flush_up_either(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    flush, sent = session.read(), disk.losses.sent()
    for _ in range(3 * MOST_ERAS):
        disk.losses.order.tick()
        session.write(THERE)
    disk.losses.flushed(session.trail, sent)
    assert not disk.losses.settle(flush, partial(session._settled, flush, 0))
    for _ in range(3 * MOST_ERAS):
        disk.losses.order.tick()
        session.write(THERE)
    session.reply()
    assert session.heard == [(0, "")]


def test_a_link_that_does_not_answer_a_proof_is_a_black_hole(disk: Disk) -> None:
    hole = disk.session()
    hole.write(HERE)
    young = disk.session()
    assert young.flush() is None
    hole.write(THERE, asked=0)
    disk.time_passes()
    assert young.heard == [(Errno.EIO, BEHIND_A_BLACK_HOLE)]
    assert hole.trail.unflushed.ranges == [THERE]  # for which nobody has waited
    assert young.flush() is None
    hole.reply()
    hole.reply()
    assert young.heard[1:] == [(0, "")]


def test_who_flushes_later_does_not_wait_for_a_black_hole_any_longer(disk: Disk) -> None:
    hole = disk.session()
    hole.write(HERE)
    young, third = disk.session(), disk.session()
    assert young.flush() is None
    hole.write(THERE, asked=0)
    assert third.flush() is None
    disk.time_passes()
    assert [young.heard[0][0], third.heard[0][0]] == [Errno.EIO, Errno.EIO]
    assert not hole.trail.unflushed


def test_a_proof_that_was_not_tried_fails_who_needs_it_and_nothing_is_lost(disk: Disk) -> None:
    old = disk.session()
    old.write(HERE)
    young = disk.session()
    assert young.flush() is None
    old.reply(Errno.ENOMEM)
    assert young.heard == [(Errno.ENOMEM, "")]
    assert old.trail.unflushed.ranges == [HERE]
    assert disk.quiet
    assert not old.asked
    assert young.flush() is None
    old.reply()
    assert young.heard[1:] == [(0, "")]


def test_a_proof_that_fails_tells_all_that_wait(disk: Disk) -> None:
    old = disk.session()
    old.write(HERE)
    young = disk.session()
    assert young.flush() is None
    old.reply(Errno.EIO)
    assert young.heard[0][0] == Errno.EIO
    assert old.flush() == Errno.EIO


def test_a_session_that_has_ended_needs_no_proof(disk: Disk) -> None:
    hole = disk.session()
    hole.write(HERE)
    young = disk.session()
    assert young.flush() is None
    young.end()
    disk.time_passes()
    assert disk.quiet
    assert hole.trail.unflushed.ranges == [HERE]


@pytest.mark.parametrize("error", [0, Errno.EIO, Errno.ENOMEM])
def test_a_proof_may_be_answered_before_it_is_waited_for(disk: Disk, error: int) -> None:
    """`soon` may be at once, and so may be the answer: one proof is asked all the same."""
    old = disk.session()
    old.write(HERE)
    asked = []

    def flush(done: Flushed) -> None:
        asked.append(1)
        old._prove(done)
        old.reply(error)

    old.trail.flush = flush
    assert disk.session().flush() == error
    assert len(asked) == 1


def test_all_that_every_session_relies_on_is_settled_but_for_one_link(disk: Disk) -> None:
    one, other, own = disk.session(), disk.session(), disk.session(own=True)
    for each in (one, other, own):
        each.write(HERE)
    done: list[int] = []
    assert not Barrier(other.losses, lambda: done.append(1), other.trail).is_open
    one.write(THERE)
    assert not done
    assert not other.asked
    assert not own.asked
    one.reply()
    assert done == [1]
    assert disk.quiet


def test_a_proof_for_a_gate_is_tried_a_few_times_and_then_it_is_lost(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    barrier = Barrier(other.losses, lambda: None, other.trail)
    for _ in range(MOST_TRIES):
        assert not barrier.is_open
        one.reply(Errno.ENOMEM)
    assert barrier.is_open
    assert one.is_lost(HERE)
    assert not one.asked


def test_a_gate_that_is_forgotten_wants_nothing(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    barrier = Barrier(other.losses, lambda: pytest.fail("nobody waits"), other.trail)
    barrier.forget()
    one.reply()
    one.write(HERE)
    disk.losses.left(one.trail)
    assert disk.quiet


def test_two_in_doubt_that_wait_for_each_other_do_so_for_a_time(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    done: list[int] = []
    for at, each in enumerate((one, other)):
        each.write((at * 10, at * 10 + 5))
    one.die(doubt=True)
    other.die(doubt=True)
    assert not Barrier(one.losses, lambda: done.append(1), one.trail).is_open
    assert not Barrier(other.losses, lambda: done.append(2), other.trail).is_open
    disk.time_passes()
    assert done == [1, 2]
    assert one.is_lost((0, 15))


# --- Shared links without CAN_MULTI_CONN


def test_links_that_are_alone_cover_and_prove_nothing_of_each_other(disk: Disk) -> None:
    debt = disk.losses.open()
    old, young = (disk.losses.trail(None, alone=True) for _ in range(2))
    for each in (old, young):
        disk.losses.came_up(each)
    young.unflushed.note([HERE])
    disk.losses.flushed(old, disk.losses.sent())
    assert young.unflushed
    assert disk.losses.prover(young, young.unflushed.eras[0]) is None
    disk.losses.flush_failed(old, Errno.EIO)
    assert not debt.why
    disk.losses.died(young, "dead")
    assert debt.is_lost(*HERE)


# --- A link dies


def test_what_a_dead_link_leaves_is_proved_over_one_that_was_up_before(disk: Disk) -> None:
    old, young = disk.session(), disk.session()
    young.write(HERE)
    young.die()
    assert young.trail.proving
    old.reply()
    assert not young.trail.proving
    assert young.trail.state == Fate.OVER
    assert disk.quiet


@pytest.mark.parametrize("error", [Errno.EIO, Errno.ENOMEM])
def test_without_its_0_it_is_lost(disk: Disk, error: int) -> None:
    old, young = disk.session(), disk.session()
    young.write(HERE)
    young.die()
    old.reply(error)
    assert old.flush() == Errno.EIO
    assert young.is_lost(HERE)


def test_a_proof_counts_from_when_it_is_sent(disk: Disk) -> None:
    """However long it has waited for that."""
    soon: list[Callable[[], None]] = []
    disk.losses._soon = soon.append
    old, young, third = disk.session(), disk.session(), disk.session()
    young.write(HERE)
    young.die()
    third.write(THERE)
    third.die()
    soon.pop()()
    old.reply(Errno.ENOMEM)
    assert not soon
    assert (old.is_lost(HERE), old.is_lost(THERE)) == (True, True)


def test_without_its_answer_it_is_lost(disk: Disk) -> None:
    old, young = disk.session(), disk.session()
    young.write(HERE)
    young.die()
    disk.time_passes()
    assert old.debt.why == BEHIND_A_BLACK_HOLE


def test_without_a_link_that_was_up_before_it_is_lost(disk: Disk) -> None:
    old = disk.session()
    old.write(HERE)
    disk.session()
    old.die()
    assert old.debt.why == "the server has died"


def test_what_a_link_has_left_that_dies_after_its_prover_is_lost_as_well(disk: Disk) -> None:
    old, young = disk.session(), disk.session()
    young.write(HERE)
    young.die()
    old.die()
    assert old.is_lost(HERE)


def test_the_next_oldest_proves_when_the_oldest_is_gone(disk: Disk) -> None:
    oldest, older, young = disk.session(), disk.session(), disk.session()
    young.write(HERE)
    young.die()
    assert oldest.asked
    oldest.end()
    older.reply()
    assert disk.quiet
    assert not disk.losses._gone


def test_a_link_that_dies_is_one_loss_whenever_it_was_written_to(disk: Disk) -> None:
    session = disk.session()
    for _ in range(9):
        session.write(HERE)
        disk.losses.order.tick()
    session.die()
    assert session.debt.losses_seen == 1
    assert len(disk.said) == 1


@pytest.mark.parametrize("doubt", [True, False])
def test_what_others_wrote_unseen_is_lost_with_a_link_that_spoke_for_it(
    disk: Disk, doubt: bool
) -> None:
    one, other = disk.session(), disk.session()
    one.trail.unseen = True
    one.die(doubt=doubt)
    if doubt:
        disk.losses.lose(one.trail, "nobody has said that it is kept")
    assert [other.flush(), other.flush()] == [Errno.EIO, 0]
    disk.losses.came_up(one.trail)
    assert [one.flush(), one.flush()] == [Errno.EIO, 0]
    assert not one.is_lost(HERE)  # nobody knows where


def test_what_others_wrote_unseen_is_in_doubt_with_the_rest(disk: Disk) -> None:
    one = disk.session()
    one.trail.unseen = True
    one.die(doubt=True)
    later = disk.session()
    assert later.flush() is None
    disk.losses.is_durable(one.trail)
    assert later.heard == [(0, "")]
    disk.losses.came_up(one.trail)
    assert one.flush() == 0


def test_what_others_wrote_unseen_is_proved_by_no_link_that_is_younger(disk: Disk) -> None:
    """The other side may have died before we saw it, and who has come since be led to what is in its place."""
    older, one = disk.session(), disk.session()
    one.trail.unseen = True
    older.end()
    later = disk.session()
    one.die(doubt=True)
    assert later.flush() is None
    disk.losses.lose(one.trail, "nobody has said that it is kept")
    assert [error for error, _why in later.heard] == [Errno.EIO]
    disk.losses.came_up(one.trail)
    assert [one.flush(), one.flush()] == [Errno.EIO, 0]


def test_what_others_wrote_unseen_is_proved_by_one_that_was_there_before(disk: Disk) -> None:
    older, one = disk.session(), disk.session()
    one.trail.unseen = True
    one.die(doubt=True)
    older.reply()
    disk.losses.came_up(one.trail)
    assert [one.flush(), older.flush()] == [0, 0]


def test_what_others_wrote_unseen_nobody_relies_on_where_a_flush_speaks_for_its_own(
    disk: Disk,
) -> None:
    one, other = disk.session(own=True), disk.session(own=True)
    one.trail.unseen = True
    one.die()
    disk.losses.came_up(one.trail)
    assert one.flush() == other.flush() == 0


@pytest.mark.parametrize("written", [True, False])
def test_what_others_wrote_unseen_each_is_told_of_by_the_other_side(
    disk: Disk, written: bool
) -> None:
    """It is a gateway, and goes by this rule. A FLUSH of our own that it fails tells its session alone."""
    one, other = disk.session(), disk.session()
    for session in (one, other):
        session.trail.unseen = True
        session.debt.trail = session.trail
        if written:
            session.write(HERE)
    disk.losses.flush_failed(one.trail, Errno.EIO)
    assert one.is_lost(HERE) is written
    assert not other.is_lost(HERE)
    assert [one.flush(), one.flush()] == [Errno.EIO, 0]
    assert [other.flush(error=Errno.EIO), one.flush(), other.flush()] == [Errno.EIO, 0, 0]


def test_what_others_wrote_unseen_is_there_if_the_server_is_believed(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.trail.unseen = one.trail.believed = True
    one.die()
    assert other.flush() == 0


# --- In doubt


def test_what_is_in_doubt_is_not_lost_while_somebody_finds_out(disk: Disk) -> None:
    writer, other = disk.session(), disk.session()
    other.die()
    writer.write(HERE)
    writer.die(doubt=True)
    assert disk.quiet
    disk.losses.came_up(other.trail)
    assert other.flush() is None
    disk.losses.is_durable(writer.trail)
    assert other.heard == [(0, "")]


def test_nobody_waits_for_what_is_in_doubt_for_ever(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    over: list[int] = []
    writer.trail.changed = lambda: over.append(1)
    young = disk.session()
    assert young.flush() is None
    disk.time_passes()
    assert young.heard[0][0] == Errno.EIO
    assert over == [1]


def test_what_is_in_doubt_is_waited_for_as_long_as_whoever_has_it_waits_on_purpose(
    disk: Disk,
) -> None:
    """For a server that is away, or until nothing comes late any more: both end by themselves."""
    writer = disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    waits = True
    writer.trail.waits = lambda: waits
    young = disk.session()
    assert young.flush() is None
    for _ in range(3):
        disk.time_passes()
    assert not young.heard
    waits = False
    disk.time_passes()
    assert young.heard[0][0] == Errno.EIO


@pytest.mark.parametrize("how", ["dies", "is left", "fails", "says nothing", "proves"])
def test_who_has_what_is_in_doubt_hears_when_nobody_else_proves_it(disk: Disk, how: str) -> None:
    old, writer = disk.session(), disk.session()
    heard: list[bool] = []
    writer.trail.changed = lambda: heard.append(writer.trail.proving)
    writer.write(HERE)
    writer.die(doubt=True)
    assert writer.trail.proving
    assert not heard
    if how == "dies":
        old.die()
    elif how == "is left":
        old.end()
    elif how == "fails":
        old.reply(Errno.ENOMEM)
    elif how == "says nothing":
        disk.time_passes()
    else:
        old.reply()
    assert heard == [False]
    assert bool(writer.trail.unflushed) == (how != "proves")


def test_what_is_given_up_may_be_proved_by_others_yet(disk: Disk) -> None:
    old, writer = disk.session(), disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    disk.losses.give_up(writer.trail, "it does not come back")
    assert disk.quiet
    old.reply()
    assert old.flush() == 0


def test_what_is_given_up_is_lost(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    disk.losses.give_up(writer.trail, "it does not come back")
    assert writer.debt.why == "it does not come back"


def test_what_is_left_in_doubt_is_given_up(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    writer.end()
    assert disk.session().flush() == Errno.EIO


def test_a_link_that_came_back_is_proved_anew(disk: Disk) -> None:
    """What waited while it was in doubt is over: its time does not make a loss of what is written since."""
    writer = disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    young = disk.session()
    assert young.flush() is None
    disk.losses.is_durable(writer.trail)
    disk.losses.came_up(writer.trail)
    assert young.heard == [(0, "")]
    writer.write(HERE)
    third = disk.session()
    assert third.flush() is None
    assert writer.asked
    disk.timers.pop(0)()  # that of the doubt
    assert disk.quiet
    writer.reply()
    assert third.heard == [(0, "")]


def test_what_was_written_again_is_covered_by_its_own_link_only(disk: Disk) -> None:
    old, writer = disk.session(), disk.session()
    writer.write(HERE)
    writer.die(doubt=True)
    disk.losses.came_up(writer.trail)  # to a server that the old link may know nothing of
    assert writer.trail.unflushed.ranges == [HERE]
    assert old.flush() is None
    old.reply()  # the proof from when the link died
    assert old.heard == []
    writer.reply()
    assert old.heard == [(0, "")]


# --- A link is left


def test_what_was_left_unproved_stays_with_the_disk(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    writer.end()
    assert disk.losses.must_remember
    young = disk.session()
    assert not young.is_lost(HERE)
    assert young.flush() == Errno.EIO
    assert young.flush() == 0


def test_what_was_left_is_covered_by_who_was_up_before(disk: Disk) -> None:
    old, writer = disk.session(), disk.session()
    writer.write(HERE)
    writer.end()
    assert not old.asked  # nobody needs it yet
    young = disk.session()
    assert young.flush() is None
    old.reply()
    assert young.heard == [(0, "")]


def test_of_what_was_left_only_what_is_needed_is_lost(disk: Disk) -> None:
    hole, writer = disk.session(), disk.session()
    writer.write(HERE)
    asked = disk.losses.asked()
    reader = disk.session()
    flush = reader.read()
    writer.write(THERE, asked=asked)
    writer.end()
    assert reader.flush(flush) is None
    disk.time_passes()
    assert reader.heard[0][0] == Errno.EIO
    assert writer.trail.unflushed.ranges == [THERE]
    assert not hole.is_lost(THERE)


def test_what_was_left_is_dropped_where_only_its_session_relied_on_it(disk: Disk) -> None:
    writer = disk.session(own=True)
    writer.write(HERE)
    writer.end()
    assert not disk.losses.must_remember
    assert disk.said == ["writes of a session that has ended were not flushed"]
    assert disk.session(own=True).flush() == 0


@pytest.mark.parametrize("order", ["link first", "session first"])
@pytest.mark.parametrize("dies", [True, False])
def test_an_own_link_and_its_session_may_go_in_any_order(
    disk: Disk, order: str, dies: bool
) -> None:
    writer = disk.session(own=True)
    writer.write(HERE)
    if order == "session first":
        disk.losses.end(writer.debt)
    if dies:
        writer.die()
    else:
        disk.losses.left(writer.trail)
    writer.end()
    assert not disk.losses.must_remember
    assert disk.quiet


def test_what_is_trusted_is_not_remembered(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    disk.losses.left(writer.trail, trusted=True)
    disk.losses.end(writer.debt)
    assert not disk.losses.must_remember


def test_so_many_links_that_were_left_are_told_apart(disk: Disk) -> None:
    old = disk.session()
    for at in range(MOST_LEFT + 9):
        writer = disk.session()
        writer.write((at * 10, at * 10 + 5))
        writer.end()
    assert len(disk.losses._gone) == MOST_LEFT
    young = disk.session()
    assert young.flush() is None
    disk.time_passes()
    assert young.heard[0][0] == Errno.EIO
    assert len(old.debt.lost) == MOST_LEFT + 9


# --- Telling


def test_who_was_there_is_told_once(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    assert one.flush(error=Errno.EIO) == Errno.EIO
    assert one.flush() == 0
    assert other.flush() == Errno.EIO
    assert other.flush() == 0
    assert disk.quiet
    assert not disk.losses.tainted


def test_a_flush_that_was_read_before_its_session_was_told_fails_as_well(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    one, two = session.read(), session.read()
    assert session.flush(one, Errno.EIO) == Errno.EIO
    assert session.flush(two) == Errno.EIO
    three = session.read()
    assert session.flush(three) == 0


def test_an_eio_tells_also_of_what_is_found_lost_after_it(disk: Disk) -> None:
    """And so concerns those that were read before it: a FLUSH over which two links died, and one behind it."""
    writer, session = disk.session(), disk.session()
    writer.write(HERE)
    one, two = session.read(), session.read()
    assert disk.losses.answer(one, Errno.EIO, "it was lost twice")[0] == Errno.EIO
    session.die()
    writer.die()
    assert disk.losses.answer(two, 0, "")[0] == Errno.EIO
    assert disk.losses.answer(session.read(), 0, "")[0] == 0


def test_flushes_do_not_fail_one_because_of_the_other_for_ever(disk: Disk) -> None:
    """The EIO of a FLUSH beside it says nothing new: those that were read before that one are not concerned."""
    session = disk.session()
    session.write(HERE)
    one, two = session.read(), session.read()
    session.flush(one, Errno.EIO)
    three = session.read()
    assert session.flush(two) == Errno.EIO
    assert session.flush(three) == 0


def test_the_first_that_comes_later_is_told_if_nobody_was(disk: Disk) -> None:
    writer = disk.session()
    writer.write(HERE)
    writer.die()
    writer.end()
    first, second = disk.session(), disk.session()
    assert first.is_lost(HERE)
    assert first.flush() == Errno.EIO
    assert second.flush() == Errno.EIO  # it was there before anybody was told
    assert disk.session().flush() == 0
    assert not disk.session().is_lost(HERE)


def test_who_comes_when_somebody_was_told_is_not(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    one.flush(error=Errno.EIO)
    assert disk.session().flush() == 0
    assert other.flush() == Errno.EIO


def test_told_again_of_what_was_answered_since(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.flush(error=Errno.EIO)
    session.write(THERE)
    session.die()
    assert session.losses.answer(session.read(), 0, "")[0] == Errno.EIO


def test_not_told_again_of_what_was_answered_before(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    other.write(HERE)
    one.flush(error=Errno.ENOSPC)  # says nothing of what: `other`'s is lost with it
    assert other.flush() == Errno.EIO
    other.write(HERE)
    other.trail.unflushed.take()
    one.write(HERE)
    disk.losses._tell(one.debt)
    assert one.trail.unflushed
    disk.losses.lose(one.trail, "its server has died")
    assert not one.is_lost(HERE)
    assert one.flush() == 0
    assert other.flush() == Errno.EIO
    assert disk.session().flush() == 0  # somebody knew


@pytest.mark.parametrize("wrote", [[HERE], [THERE], []])
def test_what_was_found_again_was_answered_when_it_was(
    disk: Disk, wrote: list[tuple[int, int]]
) -> None:
    """A reconnect makes nothing younger to who was told of a loss since; a command that ends later does, where
    it has written itself.
    """
    session, other = disk.session(), disk.session()
    flush, sent, since = session.read(), disk.losses.sent(), disk.losses.order.now
    session.write(HERE)
    other.write(THERE)
    disk.losses.lose(other.trail, "its server has died")
    disk.losses.flushed(session.trail, sent)
    assert disk.losses.answer(flush, 0, "")[0] == Errno.EIO
    session.debt.trail = session.trail
    disk.losses.answered_late(session.debt, since, wrote)
    session.die(doubt=True)
    disk.losses.came_up(session.trail)
    session.die()
    disk.losses.came_up(session.trail)
    assert session.flush() == (Errno.EIO if wrote == [HERE] else 0)


def test_a_step_is_covered_by_a_flush_that_was_sent_after_it(disk: Disk) -> None:
    """Though its command is answered after that: a FLUSH over the link is the command's last step, say."""
    session, other = disk.session(), disk.session()
    other.write(THERE)
    since = disk.losses.order.tick()
    session.write(HERE)
    sent = disk.losses.sent()
    disk.losses.lose(other.trail, "its server has died")
    disk.losses._tell(session.debt)
    session.debt.trail = session.trail
    disk.losses.answered_late(session.debt, since, [HERE])
    disk.losses.flushed(session.trail, sent)
    assert not session.trail.unflushed


def test_who_opens_is_told_of_that_which_nobody_knew_only(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    disk.losses._tell(session.debt)
    session.write(THERE)
    session.die()
    late = disk.session()
    assert (late.is_lost(HERE), late.is_lost(THERE)) == (False, True)


def test_a_read_of_what_is_lost_fails_until_it_is_told_or_written_again(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE, THERE)
    session.die()
    late = disk.session()
    for each in (session, late):
        assert (each.is_lost(HERE), each.is_lost((5, 15)), each.is_lost((20, 30))) == (
            True,
            True,
            False,
        )
    disk.losses.written(late.trail, *HERE)
    for each in (session, late, disk.session()):
        assert (each.is_lost(HERE), each.is_lost(THERE)) == (False, True)
    assert late.flush() == Errno.EIO
    assert (late.is_lost(THERE), session.is_lost(THERE)) == (False, True)


def test_what_another_writes_for_itself_alone_changes_nothing_for_who_is_not_told(
    disk: Disk,
) -> None:
    """It may be lost in turn, and only the other one would be told."""
    session, other = disk.session(own=True), disk.session(own=True)
    session.write(HERE, THERE)
    session.die()
    disk.losses.written(other.trail, *HERE)
    disk.losses.written(session.trail, *THERE)
    assert session.is_lost(HERE)
    assert not session.is_lost(THERE)


def test_what_is_acknowledged_after_a_flush_has_failed_may_have_been_lost_with_it(
    disk: Disk,
) -> None:
    session = disk.session()
    memory = Memory(session.trail)
    assert session.flush(error=Errno.EIO) == Errno.EIO
    memory.succeeded(5, Cmd.WRITE, 0, 10, last_cookie=7)
    assert session.is_lost(HERE)
    memory.answered.append((7, (1, Cmd.WRITE_ZEROES, 10, 10)))
    memory.remember(last_cookie=8)
    assert session.is_lost(THERE)
    assert session.flush() == Errno.EIO
    memory.succeeded(8, Cmd.WRITE, 0, 10, last_cookie=8)
    assert session.flush() == 0


def test_who_is_deaf_has_not_been_told(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    session.debt.deaf = True
    assert session.losses.answer(session.read(), 0, "")[0] == Errno.EIO
    assert disk.session().flush() == Errno.EIO


def test_a_session_that_has_ended_has_not_been_told(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    flush = session.read()
    session.end()
    disk.losses.answer(flush, 0, "")
    assert disk.session().flush() == Errno.EIO


def test_a_session_brings_along_what_it_owes(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    other = Disk()
    debt = other.losses.open(session.debt)
    assert debt.is_lost(*HERE)
    assert other.losses.tainted  # so that WRITEs are noted
    other.losses.written(other.losses.trail(None), *HERE)
    assert not debt.is_lost(*HERE)
    assert other.losses.answer(debt.read(), 0, "")[0] == Errno.EIO
    assert disk.losses.sessions == 0
    assert not disk.losses.must_remember  # who relied on it has been told


def test_a_loss_is_counted_for_who_is_in_the_middle_of_something(disk: Disk) -> None:
    one, other = disk.session(own=True), disk.session(own=True)
    one.write(HERE)
    disk.losses._tell(one.debt)
    one.die()
    assert (one.debt.losses_seen, other.debt.losses_seen) == (1, 0)
    assert not one.debt.why  # it has been told, of whatever it was


def test_a_session_that_never_flushes_keeps_a_bounded_list(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "MOST_LOST", 8)
    reader, writer = disk.session(), disk.session()
    for at in range(20):
        writer.write((at * 100, at * 100 + 10))
        disk.losses.lose(writer.trail, "for a test")
        assert disk.losses._untold is not None
        for kept in (reader.debt.lost, disk.losses._untold[1]):
            assert len(kept) <= 8
    assert all(reader.debt.is_lost(at * 100, at * 100 + 1) for at in range(20))


# --- Loss or not


@pytest.mark.parametrize("error", [Errno.EIO, Errno.ENOSPC, 6, 12345])
def test_a_flush_that_fails_says_that_something_is_lost(disk: Disk, error: int) -> None:
    one, other = disk.session(), disk.session()
    other.write(HERE)
    assert one.flush(error=error) == Errno.EIO
    assert other.flush() == Errno.EIO


@pytest.mark.parametrize(
    "error",
    [Errno.EPERM, Errno.EINVAL, Errno.ENOTSUP, Errno.ENOMEM, Errno.EOVERFLOW, Errno.ESHUTDOWN],
)
def test_a_flush_that_was_not_tried_loses_nothing(disk: Disk, error: int) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    other.write(HERE)
    assert one.flush(error=error) == error
    assert one.trail.unflushed.ranges == other.trail.unflushed.ranges == [HERE]
    assert disk.quiet
    assert one.flush() == 0
    assert other.flush() == 0


def test_a_flush_of_ours_that_fails_tells_nobody(disk: Disk) -> None:
    one, other = disk.session(), disk.session()
    one.write(HERE)
    Barrier(other.losses, lambda: None, other.trail)
    one.reply(Errno.EIO)
    assert one.flush() == Errno.EIO
    assert other.flush() == Errno.EIO


def test_without_send_flush_nothing_is_owed(disk: Disk) -> None:
    debt = disk.losses.open()
    trail = disk.losses.trail(None, records=False)
    disk.losses.came_up(trail)
    trail.unflushed.note([HERE])
    disk.losses.died(trail, "dead")
    assert not debt.why
    assert not disk.losses._gone


def test_a_flush_that_fails_where_nothing_is_recorded_is_a_loss_all_the_same(disk: Disk) -> None:
    """Of what, nobody knows."""
    other = disk.session()
    debt = disk.losses.open()
    trail = disk.losses.trail(None, records=False)
    disk.losses.came_up(trail)
    disk.losses.answered(trail, disk.losses.sent(), Errno.EIO, "disk full of worms")
    assert debt.why == "a FLUSH of the server has failed: disk full of worms"
    assert other.flush() == Errno.EIO
    assert other.flush() == 0


def test_a_link_that_was_left_may_die_as_it_likes(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    disk.losses.left(session.trail)
    session.die()
    assert disk.quiet
    assert session.trail.state == Fate.LEFT


def test_what_nobody_was_told_of_goes_along_with_the_content(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    session.end()
    other = Disk()
    disk.losses.hand_on(other.losses)
    first = other.session()
    assert first.is_lost(HERE)
    assert first.flush() == Errno.EIO
    assert other.session().flush() == 0


def test_who_is_told_of_something_else_has_not_told_it(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    session.end()
    other = Disk()
    there = other.session(own=True)
    disk.losses.hand_on(other.losses)
    there.write(THERE)
    there.die()
    assert there.losses.answer(there.read(), 0, "")[0] == Errno.EIO
    first = other.session()
    assert first.is_lost(HERE)
    assert first.flush() == Errno.EIO
    assert other.session().flush() == 0


def test_who_comes_along_is_told_for_both_disks(disk: Disk) -> None:
    session = disk.session()
    session.write(HERE)
    session.die()
    other = Disk()
    debt = other.losses.open(session.debt)
    disk.losses.hand_on(other.losses)
    assert other.losses.answer(debt.read(), 0, "")[0] == Errno.EIO
    assert other.session().flush() == 0
    assert disk.session().flush() == 0
    assert disk.quiet


def test_who_has_gone_is_not_told_of_what_is_lost_later(disk: Disk) -> None:
    old, gone = disk.session(), disk.session()
    gone.write(HERE)
    old.die()
    gone.die()
    stays = disk.session()
    other = Disk()
    debt = other.losses.open(gone.debt)
    disk.losses.hand_on(other.losses)
    stays.write(THERE)
    stays.die()
    old.end()
    stays.end()
    assert other.losses.answer(debt.read(), 0, "")[0] == Errno.EIO
    first = disk.session()
    assert first.is_lost(THERE)
    assert first.flush() == Errno.EIO


def test_who_goes_where_nobody_reads_that_is_not_told(disk: Disk) -> None:
    """A session that is held, or told to end, does not read that its client goes."""
    gone = disk.session()
    gone.write(HERE)
    flush = gone.read()
    gone.die()
    gone.debt.has_gone = lambda: True
    assert gone.losses.answer(flush, 0, "")[0] == Errno.EIO
    gone.end()
    assert disk.session().flush() == Errno.EIO


def test_who_may_not_have_heard_was_not_told(disk: Disk) -> None:
    lost = disk.session()
    lost.write(HERE)
    lost.die()
    assert lost.flush() == Errno.EIO
    here = disk.session()
    assert not here.is_lost(HERE)
    lost.debt.lose_client()
    lost.end()
    assert here.is_lost(HERE)
    late = disk.session()
    assert (late.flush(), here.flush()) == (Errno.EIO, Errno.EIO)
    assert disk.session().flush() == 0
    assert disk.quiet


def test_who_has_flushed_again_has_heard(disk: Disk) -> None:
    lost = disk.session()
    lost.write(HERE)
    lost.die()
    assert lost.flush() == Errno.EIO
    lost.read()
    lost.debt.lose_client()
    lost.end()
    assert disk.session().flush() == 0


def test_where_somebody_else_has_heard_nobody_comes_into_it_who_has_not(disk: Disk) -> None:
    lost, other = disk.session(), disk.session()
    lost.write(HERE)
    other.die()
    lost.die()
    for each in (lost, other):
        assert each.losses.answer(each.read(), 0, "")[0] == Errno.EIO
    lost.debt.lose_client()
    lost.end()
    assert disk.session().flush() == 0
    assert disk.quiet


def test_sessions_that_owe_the_same_owe_it_once(disk: Disk) -> None:
    """A thousand sessions may lose a thousand writes at once: ranges are merged once for all of them."""
    sessions = [disk.session() for _ in range(10)]
    for number, session in enumerate(sessions):
        session.write((number * 10, number * 10 + 5))
    for session in sessions:
        session.die()
    assert len({id(session.debt.lost) for session in sessions}) == 1
    disk.losses.written(sessions[0].trail, 0, 5)
    assert len({id(session.debt.lost) for session in sessions}) == 1
    assert not sessions[0].is_lost((0, 10))
    assert sessions[9].is_lost((10, 11))


def test_what_nobody_remembers_is_owed_to_the_next(disk: Disk) -> None:
    disk.losses.tell_the_next("nobody remembers")
    session = disk.session()
    assert session.flush() == Errno.EIO
    assert session.heard == [(Errno.EIO, "nobody remembers")]
    assert disk.quiet


def test_a_callback_may_call_back(disk: Disk) -> None:
    """Whatever is heard from within may end sessions and links."""
    old, writer, other = disk.session(), disk.session(), disk.session()
    other.write(HERE)
    writer.write(THERE)

    def lost(_why: str, _ranges: list[Range]) -> None:
        other.die()
        writer.end()
        old.end()

    writer.trail.lost = lost
    writer.die()
    old.reply(Errno.ENOMEM)  # nobody proves what `writer` has left, and everybody goes
    assert not disk.losses._up
    assert not disk.losses._gone
    assert other.losses.answer(other.read(), 0, "")[0] == Errno.EIO


# --- Every order


def bounds(**what: int) -> Bounds:
    """Two sessions, two links, one write, one FLUSH, and nothing that goes wrong but what is said."""
    none = dict.fromkeys(Bounds.__dataclass_fields__, 0)
    return Bounds(
        **{**none, "sessions": 2, "links": 2, "writes": 1, "places": 1, "flushes": 1, **what}
    )


SLICES: dict[str, tuple[Bounds, dict[str, str | bool]]] = {
    "the server restarts": (bounds(links=3, deaths=1, kills=1), {}),
    "a FLUSH fails": (bounds(flushes=2, failing=1), {"soon": "after"}),
    "a link dies, and proofs fail": (bounds(deaths=1, failing=1), {"soon": "drawn"}),
    "a link says nothing": (bounds(holes=1, deaths=1, lates=1), {"soon": "after"}),
    "a session leaves, another comes": (bounds(sessions=3, lefts=1, ends=1), {}),
    "a link is left and the server restarts": (bounds(lefts=1, kills=1), {"soon": "drawn"}),
    "what is left is in doubt": (bounds(deaths=1, doubts=1, lates=1), {"soon": "drawn"}),
    "four commands, and a link dies": (bounds(writes=2, flushes=2, deaths=1), {}),
    "four commands, each for itself": (bounds(writes=2, flushes=2, deaths=1), {"shared": False}),
    "a client is lost, and another comes": (
        bounds(sessions=3, links=1, flushes=2, failing=1, misses=1),
        {},
    ),
    "two places": (bounds(writes=2, places=2, flushes=2), {}),
}
"""All that can happen in each, in every order, to the very end."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SLICES)
def test_every_order(name: str) -> None:
    within, how = SLICES[name]
    assert model.every_order(1000, within, **how) > 100


@pytest.mark.parametrize("shared", [True, False])
def test_every_order_of_everything(shared: bool) -> None:
    """`python -m tests.losses.model --depth N` goes deeper."""
    assert model.every_order(4, Bounds(), shared=shared) > 1000


# --- By chance

SCHEDULES = 3000
BATCH = 500


@pytest.mark.parametrize("first", batches(SCHEDULES, BATCH, ordinary=BATCH))
def test_schedules(first: int) -> None:
    """`python -m tests.losses.model --seeds N` goes further."""
    for seed in range(first, first + BATCH):
        model.random_schedule(seed)


@pytest.mark.real
def test_the_schedules_have_everything() -> None:
    """Else they would say less than they seem to."""
    worlds = [model.random_schedule(seed) for seed in range(500)]
    for what in model.EVENTS:
        assert sum(what in world.happened for world in worlds) > 10, what
    answers = [answer for world in worlds for answer in world.answers]
    assert {0, Errno.EIO, Errno.ENOMEM} == set(answers)
    assert sum(answer == Errno.EIO for answer in answers) > 100
    assert sum(world.proofs > 0 for world in worlds) > 50


@pytest.mark.real
def test_a_bound_on_eras_makes_nobody_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken for one is covered later than it might be, but no FLUSH succeeds too early."""
    monkeypatch.setattr("gateway.losses.unflushed.MOST_ERAS", 2)
    for seed in range(1000):
        model.random_schedule(seed, judged=False)


# --- Without one clause

Mutation = Callable[[pytest.MonkeyPatch], None]

_take = Unflushed.cover
_lose = Losses._lose
_tell = Losses._tell
_open = Losses.open
_lose = Losses._lose
_left = Losses.left
_died = Losses.died
_end = Losses.end
_late = Losses._late
_not_proved = Losses._not_proved
_proved = Losses._proved
_flush_failed = Losses.flush_failed


def instead(owner: object, name: str, made: object) -> Mutation:
    return lambda patch: patch.setattr(owner, name, made)


def nothing_is_a_loss(patch: pytest.MonkeyPatch) -> None:
    for module in (rule, telling):
        patch.setattr(module, "is_loss", lambda error: False)


def _take_all_before(self: Unflushed, before: float = math.inf, *, since: int = -1) -> list[Era]:
    return _take(self, before)


def _take_since_answered(
    self: Unflushed, before: float = math.inf, *, since: int = -1
) -> list[Era]:
    for era in self.eras:
        era.asked = max(era.asked, era.first)
    return _take(self, before, since=since)


def _take_what_came_later_too(
    self: Unflushed, before: float = math.inf, *, since: int = -1
) -> list[Era]:
    return _take(self, math.inf, since=since)


def _flushed_own_link_only(self: Losses, trail: Trail, sent: int) -> None:
    self.order.tick()
    trail.unflushed.cover(sent)
    self._look()


def _any_that_is_up(self: Losses, trail: Trail, _era: Era) -> Trail | None:
    if trail.tried or self.scope(trail) is not None:
        return None
    return next((each for each in self._up if self.scope(each) is None), None)


def _died_and_trusted(self: Losses, trail: Trail, why: str, *, doubt: bool = False) -> None:
    if not doubt:
        trail.unflushed.take()
    _died(self, trail, why, doubt=doubt)


def _in_doubt_is_lost(self: Losses, trail: Trail, why: str, *, doubt: bool = False) -> None:
    _died(self, trail, why)


def _left_and_trusted(self: Losses, trail: Trail, *, trusted: bool = False) -> None:
    _left(self, trail, trusted=True)


def _left_like_dead(self: Losses, trail: Trail, *, trusted: bool = False) -> None:
    _died(self, trail, "left")


def _open_untold(self: Losses, before: Debt | None = None) -> Debt:
    untold, self._untold = self._untold, None
    debt = _open(self, before)
    self._untold = untold
    return debt


def _tell_the_deaf(self: Losses, debt: Debt) -> None:
    deaf, debt.deaf = debt.deaf, False
    _tell(self, debt)
    debt.deaf = deaf


def _lose_and_forget(self: Losses, *what: object, **more: object) -> None:
    told = {debt: debt.told_first_at for debt in self._open}
    _lose(self, *what, **more)  # type: ignore[arg-type] # passed on
    for debt, before in told.items():
        debt.told_first_at = before


def _tell_and_keep_untold(self: Losses, debt: Debt) -> None:
    untold = self._untold
    _tell(self, debt)
    self._untold = untold


def _flush_of_ours_tells(self: Losses, trail: Trail, proof: object, error: int, text: str) -> None:
    if is_loss(error):
        for debt in list(self._open):
            self._tell(debt)
    _proved(self, trail, proof, error, text)  # type: ignore[arg-type]


def _waits_on(self: Losses, trail: Trail, proof: object) -> None:
    trail.proof = None
    self._look()


def _failed_here_only(self: Losses, trail: Trail, error: int, text: str = "") -> None:
    self.order.tick()
    if is_loss(error):
        self._lose({trail: trail.unflushed.take()}, "")
    self._look()


def _nothing(*_args: object) -> None:
    pass


MUTANTS: dict[str, Mutation] = {
    "scope: nobody relies on what others have written": instead(
        Losses, "relies", lambda self, debt, trail: self.scope(trail) is debt
    ),
    "scope: all rely on everything": instead(Losses, "relies", lambda self, debt, trail: True),
    "scope: a trail of one session is everybody's": instead(
        Losses, "scope", lambda self, trail: None
    ),
    "cover: nothing of other links": instead(Losses, "flushed", _flushed_own_link_only),
    "cover: by links that were made later": instead(Unflushed, "cover", _take_all_before),
    "cover: by links that were up before it was answered": instead(
        Unflushed, "cover", _take_since_answered
    ),
    "cover: what was answered after it was sent": instead(
        Unflushed, "cover", _take_what_came_later_too
    ),
    "cover: by shared links without CAN_MULTI_CONN": instead(
        Losses, "_speaks", lambda self, trail: self.scope(trail) is None
    ),
    "answering 0: no proof is waited for": instead(
        Losses, "settle", lambda self, flush, done: True
    ),
    "answering 0: what was answered after it was read is waited for": instead(
        Debt, "read", lambda self: Flush(self, self.losses.order.tick() + 10**6)
    ),
    "answering 0: a black hole is asked again and again": instead(Losses, "_late", _waits_on),
    "answering 0: a black hole is waited for": instead(Losses, "_late", _nothing),
    "answering 0: a proof that was not tried is as good": instead(
        Losses, "_who_needs", lambda self, trail: []
    ),
    "answering 0: ended sessions wait": instead(Losses, "_is_awaited", lambda self, flush: True),
    "coming late: nothing is in question": instead(
        Losses, "is_in_question", lambda self, but: False
    ),
    "a link dies: nothing is lost": instead(Losses, "died", _died_and_trusted),
    "a link dies: nothing is proved": instead(Losses, "prover", lambda self, trail, era: None),
    "a link dies: any link proves": instead(Losses, "prover", _any_that_is_up),
    "a link dies: a proof that fails is tried again": instead(Losses, "_not_proved", _nothing),
    "a link dies: what is in doubt is lost": instead(Losses, "died", _in_doubt_is_lost),
    "a link dies: nobody hears that it is not proved": instead(
        Losses, "is_proving", lambda self, trail: bool(trail.unflushed) and not trail.tried
    ),
    "a link dies: doubt is for ever": instead(Losses, "_doubted_too_long", _nothing),
    "a link is left: it is forgotten": instead(Losses, "left", _left_and_trusted),
    "a link is left: it is dead": instead(Losses, "left", _left_like_dead),
    "a link is left: it outlives the server": instead(Losses, "_suspect_those_left", _nothing),
    "a link is left: its session's writes stay": instead(Losses, "_drop", _nothing),
    "telling: not the FLUSHes beside": instead(Losses, "_is_beside", lambda *_: False),
    "telling: an EIO for something else tells of nothing": instead(
        Losses, "_lose", _lose_and_forget
    ),
    "telling: not who comes later": instead(Losses, "open", _open_untold),
    "telling: all who come later": instead(Losses, "_tell", _tell_and_keep_untold),
    "telling: never again": instead(Losses, "_is_news", lambda self, debt, era: debt.told_at < 0),
    "telling: again of what was before": instead(Losses, "_is_news", lambda *_: True),
    "telling: the deaf": instead(Losses, "_tell", _tell_the_deaf),
    "telling: a FLUSH of ours tells": instead(Losses, "_proved", _flush_of_ours_tells),
    "telling: READs succeed": instead(Debt, "is_lost", lambda *_: False),
    "telling: READs of what was written again fail": instead(Losses, "written", _nothing),
    "loss or not: nothing is a loss": nothing_is_a_loss,
    "loss or not: everything is": instead(commands, "NOT_TRIED", frozenset()),
    "loss or not: of the link that failed only": instead(Losses, "flush_failed", _failed_here_only),
    "done before: what is under way is safe": instead(
        Losses, "is_done_before", lambda self, trail, asked: False
    ),
    "what is over is kept": instead(Losses, "_forget_what_is_over", _nothing),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_each_clause_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it some schedule is red; the first are enough for most."""
    MUTANTS[name](monkeypatch)
    for seed in range(20_000):
        try:
            model.random_schedule(seed)
        except model.Wrong:
            return
    pytest.fail("nobody misses it")


LIES = (
    "cover: by links that were made later",
    "cover: by links that were up before it was answered",
    "cover: what was answered after it was sent",
    "a link dies: nothing is lost",
    "a link is left: it is forgotten",
    "telling: not who comes later",
    "telling: never again",
)
"""Without these a FLUSH succeeds whose data is gone."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LIES)
def test_the_truth_misses_it_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the judge would say."""
    MUTANTS[name](monkeypatch)
    for seed in range(20_000):
        try:
            model.random_schedule(seed, judged=False)
        except model.Wrong as wrong:
            if "succeeds, and write" in str(wrong):
                return
    pytest.fail("nobody misses it")


# --- What an operator is shown, and may drop


def test_what_is_lost_is_shown_until_all_were_told() -> None:
    disk = Disk()
    one = disk.session()
    one.write(HERE)
    other = disk.session()  # whose link came later, and proves nothing
    assert disk.losses.untold() is None
    one.die()
    untold = disk.losses.untold()
    assert untold is not None
    assert (untold.sessions, untold.nobody) == (2, True)
    assert list(untold.ranges) == [HERE]
    assert untold.why == ("the server has died",)
    assert other.flush() == Errno.EIO
    untold = disk.losses.untold()
    assert untold is not None
    assert (untold.sessions, untold.nobody) == (1, False)
    one.debt.losses.end(one.debt)
    assert disk.losses.untold() is None


def test_what_sessions_alone_have_lost_is_shown_with_all_its_reasons() -> None:
    disk = Disk()
    one, other = disk.session(own=True), disk.session(own=True)
    one.write(HERE)
    other.write(THERE)
    one.die()
    disk.losses.died(other.trail, "it was cut")
    untold = disk.losses.untold()
    assert untold is not None
    assert untold.why == ("the server has died", "it was cut")
    assert list(untold.ranges) == [(HERE[0], THERE[1])]
    assert (untold.sessions, untold.nobody) == (2, False)


def test_forgotten_is_what_nobody_was_told_of_and_no_more() -> None:
    disk = Disk()
    one = disk.session()
    one.write(HERE)
    other = disk.session()
    assert not disk.losses.forget()
    one.die()
    assert disk.losses.forget()
    assert not disk.losses.forget()
    late = disk.session()
    assert late.flush() == 0
    assert not late.is_lost(HERE)
    assert other.is_lost(HERE)
    assert other.flush() == Errno.EIO  # it has to be told
    assert disk.losses.tainted  # by the one that has died
    disk.losses.end(one.debt)
    assert disk.quiet
    assert not disk.losses.tainted


def test_who_is_told_after_something_was_forgotten_has_not_heard_what_is_lost_since() -> None:
    disk = Disk()
    one = disk.session()
    one.write(HERE)
    other = disk.session()
    one.die()
    disk.losses.forget()
    disk.losses.tell_the_next("lost since", [THERE])
    assert other.flush() == Errno.EIO
    late = disk.session()
    assert late.is_lost(THERE)
    assert not late.is_lost(HERE)
    assert late.flush() == Errno.EIO


def test_all_is_settled_when_all_that_anybody_relies_on_is_covered_or_lost() -> None:
    disk = Disk()
    settled: list[int] = []
    assert Barrier(disk.losses, lambda: settled.append(0)).is_open
    one, own = disk.session(), disk.session(own=True)
    own.write(THERE)
    assert Barrier(disk.losses, lambda: settled.append(0)).is_open
    one.write(HERE)
    assert not Barrier(disk.losses, lambda: settled.append(1)).is_open
    assert len(one.asked) == 1
    one.reply()
    assert settled == [1]
    one.write(HERE)
    one.end()  # and its link was not flushed
    assert disk.losses.untold() is None
    assert Barrier(disk.losses, lambda: settled.append(2)).is_open
    untold = disk.losses.untold()
    assert untold is not None
    assert list(untold.ranges) == [HERE]


def test_what_is_written_over_a_link_that_is_over_is_lost_with_it(disk: Disk) -> None:
    """That should not be; but then somebody has to hear of it."""
    session = disk.session()
    trail = disk.losses.trail(None)
    trail.unflushed.note([HERE])
    disk.losses.died(trail, "it died")
    assert session.debt.why


def test_of_what_a_link_has_left_no_content_is_kept(disk: Disk) -> None:
    trail = disk.losses.trail(None, Keep.DATA)
    disk.losses.came_up(trail)
    trail.unflushed.add(Ask(Cmd.WRITE, 0, 8, 0, b"anything"))
    disk.losses.left(trail)
    assert (trail.unflushed.ranges, trail.unflushed.bytes, len(trail.unflushed)) == ([(0, 8)], 0, 0)


def test_what_was_left_dies_with_the_next_link_that_leads_there(disk: Disk) -> None:
    """READs of it fail from then on, and not only when somebody FLUSHes."""
    left = disk.session()
    left.write(HERE)
    young = disk.session()
    disk.losses.left(left.trail)
    assert not young.is_lost(HERE)
    young.die()
    assert young.is_lost(HERE)


# --- Coming late, and one of several that dies


def test_what_a_dead_link_has_left_is_in_question_until_it_is_proved(disk: Disk) -> None:
    old, writer = disk.session(), disk.session()
    writer.write(HERE)
    assert not disk.losses.is_in_question(None)
    writer.die()
    assert disk.losses.is_in_question(None)
    assert not disk.losses.is_in_question(writer.trail)
    old.reply()
    assert not disk.losses.is_in_question(None)


def test_what_only_its_session_relies_on_is_in_question_for_nobody_else(disk: Disk) -> None:
    writer = disk.session(own=True)
    writer.write(HERE)
    writer.die(doubt=True)
    assert not disk.losses.is_in_question(None)


@pytest.mark.parametrize("believed", [True, False])
def test_what_is_believed_is_not_left_behind(disk: Disk, believed: bool) -> None:
    """To a newer process, or a next home."""
    writer = disk.session()
    writer.trail.believed = believed
    writer.write(HERE)
    disk.losses.left(writer.trail)
    assert (disk.losses.left_behind() is None) == believed


def test_what_is_believed_is_not_in_question(disk: Disk) -> None:
    writer = disk.session()
    writer.trail.believed = True
    writer.write(HERE)
    writer.die(doubt=True)
    assert not disk.losses.is_in_question(None)


def test_what_a_bundle_holds_is_in_question_when_one_of_its_links_has_died(disk: Disk) -> None:
    bundle = disk.session()
    bundle.write(HERE)
    disk.losses.shaken(bundle.trail)
    assert disk.losses.is_in_question(None)
    bundle.flush()
    bundle.write(HERE)  # since
    assert not disk.losses.is_in_question(None)


def test_a_bundle_that_was_made_whole_again_is_not_in_question(disk: Disk) -> None:
    bundle = disk.session()
    bundle.write(HERE)
    disk.losses.shaken(bundle.trail)
    disk.losses.came_up(bundle.trail)
    assert not disk.losses.is_in_question(None)


def test_what_is_left_of_a_bundle_of_which_a_link_has_died_is_lost(disk: Disk) -> None:
    """The rest of it may lead nowhere, and could not be FLUSHed before it was left."""
    bundle = disk.session()
    bundle.write(HERE)
    disk.losses.shaken(bundle.trail)
    young = disk.session()
    bundle.end()
    assert young.is_lost(HERE)
    assert not disk.losses.is_in_question(None)


def test_one_of_several_that_dies_says_what_one_alone_does_of_those_that_were_left(
    disk: Disk,
) -> None:
    left = disk.session()
    left.write(HERE)
    bundle = disk.session()
    left.end()
    disk.losses.shaken(bundle.trail)
    assert bundle.is_lost(HERE)
