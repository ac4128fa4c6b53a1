"""Who has still to be told of a loss."""

from __future__ import annotations

from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.relay.bundle.ledger import Ledger
from gateway.relay.bundle.unflushed import Unflushed
from gateway.relay.scan.asks import Ask
from gateway.relay.scan.memory import Memory
from gateway.relay.scan.plan import plan
from gateway.relay.scan.traffic import Traffic
from gateway.wire.constants import Cmd, Errno

EXPORT = Export(1000, 5)


def session(ledger: Ledger) -> Traffic:
    traffic = Traffic(plan(offer(view_of(EXPORT), structured=False), EXPORT, Dialect()))
    ledger.join(traffic)
    return traffic


def test_everybody_who_was_there_is_told_once() -> None:
    ledger = Ledger()
    one, other = session(ledger), session(ledger)
    ledger.lose("gone", [(0, 10)])
    assert not ledger.quiet
    for each in (one, other):
        assert each.unflushed == "gone"
        assert each.is_lost(9, 20)
        assert not each.is_lost(10, 20)
        assert each.pay() == "gone"
        assert not each.unflushed
        assert not each.is_lost(0, 10)
    assert ledger.quiet


def test_who_comes_later_is_told_if_nobody_has_been() -> None:
    ledger = Ledger()
    one = session(ledger)
    ledger.lose("gone", [(0, 10)])
    ledger.leave(one)
    later, last = session(ledger), session(ledger)
    assert later.is_lost(0, 1)
    assert later.pay() == "gone"
    assert last.pay() == "gone"  # it was there
    assert not session(ledger).unflushed


def test_who_comes_later_is_not_told_what_others_have_been() -> None:
    ledger = Ledger()
    one, other = session(ledger), session(ledger)
    ledger.lose("gone", [(0, 10)])
    one.pay()
    later = session(ledger)
    assert not later.unflushed
    assert not later.is_lost(0, 10)
    assert other.unflushed


def test_a_loss_that_nobody_saw_waits_for_the_first() -> None:
    ledger = Ledger()
    ledger.lose("gone", [(0, 10)])
    ledger.lose("gone again", [(5, 20)])
    first = session(ledger)
    assert first.lost == [(0, 20)]
    assert first.pay() == "gone again"
    assert ledger.quiet


def test_who_is_told_at_once_owes_nothing() -> None:
    ledger = Ledger()
    one, other = session(ledger), session(ledger)
    ledger.lose("gone", [(0, 10)], but=one)
    assert not one.unflushed
    assert other.unflushed
    assert not session(ledger).unflushed


def test_what_is_written_again_is_not_lost() -> None:
    ledger = Ledger()
    one = session(ledger)
    ledger.lose("gone", [(0, 10), (20, 30)])
    ledger.written(5, 25)
    assert one.lost == [(0, 5), (25, 30)]
    assert one.unflushed  # it has to be told all the same
    ledger.leave(one)
    assert session(ledger).lost == [(0, 5), (25, 30)]


def test_a_session_goes_on_with_another_traffic() -> None:
    ledger = Ledger()
    before = session(ledger)
    ledger.lose("gone", [(0, 10)])
    after = Traffic(before.plan)
    after.take_over(before)
    ledger.exchange(before, after)
    assert ledger.traffics == [after]
    assert after.pay() == "gone"
    assert not session(ledger).unflushed
    ledger.lose("more", [(20, 30)])
    assert after.lost == [(20, 30)]
    assert before.lost == [(0, 10)]


def test_links_that_die_together_are_one_loss() -> None:
    """Who has been told of the first need not be told of the others: the rest still are, of all."""
    ledger = Ledger()
    one, other = session(ledger), session(ledger)
    ledger.lose("gone", [(0, 10)], at=100.0, since=1.0)
    assert one.pay() == "gone"
    ledger.lose("gone", [(20, 30)], at=100.5, since=2.0)
    assert not one.unflushed
    assert other.lost == [(0, 10), (20, 30)]
    ledger.lose("gone again", [(0, 10)], at=101.5, since=2.0)  # too late to be of one cause
    assert one.pay() == "gone again"
    ledger.lose("once more", [(0, 10)], at=101.6, since=101.55)  # that link was made after it
    assert one.pay() == "once more"


def test_a_link_that_dies_after_a_failed_flush_is_another_loss() -> None:
    """Also for the session that was told of the FLUSH: it was its own."""
    ledger = Ledger()
    one = session(ledger)
    ledger.lose("a FLUSH has failed", [(0, 10)], but=one)
    assert not one.unflushed
    ledger.lose("gone", [(0, 10)], at=100.0, since=1.0)
    assert one.pay() == "gone"
    ledger.lose("a FLUSH has failed", [(0, 10)])
    assert one.pay() == "a FLUSH has failed"
    ledger.lose("gone", [(0, 10)], at=100.5, since=1.0)
    assert one.pay() == "gone"


def test_a_flush_of_ours_that_fails_tells_no_client() -> None:
    """As that behind a WRITE whose FUA the server lacks: it says that this one has failed, and no more."""
    ledger = Ledger()
    one, other = session(ledger), session(ledger)
    one.memory = Memory(Unflushed(), ledger)
    one.asks.send(Ask(Cmd.FLUSH, 0, 0), lambda _outcome: None)
    one.asks.outcome(one.last_cookie).error = Errno.EIO
    one.asks.settle(one.last_cookie)
    assert one.unflushed
    assert other.unflushed
