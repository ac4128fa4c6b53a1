"""The oracle's own rules: what it allows, and what it does not."""

from __future__ import annotations

import pytest

from gateway.wire.constants import Errno
from tests.tools.oracle import (
    BLOCK_BYTES,
    MANY,
    Broken,
    Loss,
    Op,
    Oracle,
    Session,
    block,
    content,
    mixtures_of,
    stamps_of,
)

BLOCKS = 4


def wrote(session: Session, number: int = 0, *, fua: bool = False) -> Op:
    op = session.write(number, 1, fua=fua)
    op.end()
    return op


def flushed(session: Session, error: int = 0) -> None:
    session.flush().end(error)


def lost(oracle: Oracle) -> Loss:
    loss = oracle.lose()
    oracle.dead(loss)
    return loss


def test_a_block_says_who_wrote_it() -> None:
    data = content(7, 2, 2) + bytes(BLOCK_BYTES)
    assert stamps_of(data, 2) == [7, 7, 0]
    assert block(7, 2) != block(7, 3)
    with pytest.raises(Broken, match="block 3 is another's"):
        stamps_of(data, 3)
    mixed = data[:264] + content(8, 2, 1)[264:]
    with pytest.raises(Broken, match=r"block 2 is torn: it has stamps \[7, 8\]"):
        stamps_of(mixed, 2)
    assert mixtures_of(mixed, 2) == [{7, 8}]
    assert mixtures_of(bytes(8) + content(8, 2, 1)[8:], 2) == [{0, 8}]
    with pytest.raises(Broken, match="block 2 is another's, or nobody's"):
        mixtures_of(bytes([1]) * BLOCK_BYTES, 2)


def test_a_read_may_mix_what_it_may_give() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    second = other.write(0, 1)
    one.read(0, 1).end(data=first.data[:256] + second.data[256:])
    with pytest.raises(Broken, match="block 0 has stamp 0 "):
        one.read(0, 1).end(data=bytes(256) + second.data[256:])


def test_a_read_gives_the_last_write_or_a_concurrent_one() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    assert oracle.may_be_read(0) == {first.stamp}
    second = other.write(0, 2)
    assert oracle.may_be_read(0) == {first.stamp, second.stamp}
    assert oracle.may_be_read(1) == {0, second.stamp}
    reading = one.read(0, 1)
    second.end()
    assert oracle.may_be_read(0) == {second.stamp}
    reading.end(data=first.data)  # it began before the second was answered
    with pytest.raises(Broken, match=rf"block 0 has stamp {first.stamp} .*not one of \[2\]"):
        one.read(0, 1).end(data=first.data)


def test_a_write_that_has_failed_may_come_at_any_time() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    failed = session.write(0, 1)
    failed.end(Errno.EIO)
    later = wrote(session)
    assert oracle.may_be_read(0) == {failed.stamp, later.stamp}


def test_a_trim_may_zero_and_nobody_can_rely_on_it() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    first = wrote(session)
    session.write(0, 1, zeros=True, certain=False).end()
    assert oracle.may_be_read(0) == {0, first.stamp}
    session.write(0, 1, zeros=True).end()
    assert oracle.may_be_read(0) == {0}


def test_incoherent_connections_are_held_to_their_own_writes() -> None:
    oracle = Oracle(BLOCKS, coherent=False)
    one, other = oracle.session("one"), oracle.session("other")
    first, second = wrote(one), wrote(one)
    assert oracle.may_be_read(0, one) == {second.stamp}
    assert oracle.may_be_read(0, other) == {0, first.stamp, second.stamp}


@pytest.mark.parametrize(
    "how", ["fua", "own flush", "another's flush", "a flush sent too early", "nothing"]
)
def test_what_a_crash_may_not_lose(how: str) -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    early = other.flush()
    first = wrote(one, fua=how == "fua")
    if how.endswith("own flush"):
        flushed(one)
    elif how == "another's flush":
        flushed(other)
    elif how == "a flush sent too early":
        early.end()
    lost(oracle)
    assert oracle.check_stable([first.stamp, 0, 0, 0]) == 0
    if how in ("nothing", "a flush sent too early"):
        assert oracle.check_stable([0, 0, 0, 0]) == 1
    else:
        with pytest.raises(Broken, match=r"stable storage: block 0 has stamp 0 .*\(safe\)"):
            oracle.check_stable([0, 0, 0, 0])


def test_something_newer_may_lie_over_what_is_safe() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    first = wrote(session)
    flushed(session)
    second = session.write(0, 1)
    assert oracle.check_stable([first.stamp, 0, 0, 0]) == 0
    assert oracle.check_stable([second.stamp, 0, 0, 0]) == 0
    second.end()
    assert oracle.check_stable([first.stamp, 0, 0, 0]) == 1


def test_who_was_not_told_reads_no_old_data() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    lost(oracle)
    assert oracle.may_be_read(0, one) == {first.stamp}
    one.read(0, 1).end(Errno.EIO)
    flushed(one, Errno.EIO)
    assert oracle.may_be_read(0, one) == {0, first.stamp}
    assert oracle.may_be_read(0, other) == {first.stamp}
    assert oracle.may_be_read(0, oracle.session("late")) == {0, first.stamp}


def test_a_flush_proves_nothing_once_its_session_was_told() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    lost(oracle)
    flushed(one, Errno.EIO)
    flushed(one)
    oracle.check_final([0, 0, 0, 0])
    with pytest.raises(Broken, match="the disk: block 0 has stamp 0"):
        oracle.check_final([0, 0, 0, 0], lossless=True)
    flushed(other)  # it was open at the loss, and was told that all is well
    with pytest.raises(Broken, match="the disk: block 0 has stamp 0"):
        oracle.check_final([0, 0, 0, 0])
    oracle.check_final([first.stamp, 0, 0, 0])


def test_the_first_who_comes_later_has_to_be_told_if_nobody_was() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    wrote(one)
    one.close()
    lost(oracle)
    late = oracle.session("late")
    flushed(late)
    with pytest.raises(Broken):
        oracle.check_final([0, 0, 0, 0])


def test_a_flush_that_nobody_waited_for_may_have_told() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    first = wrote(one)
    lost(oracle)
    one.flush()
    one.close()
    late = oracle.session("late")
    flushed(late)
    oracle.check_final([0, 0, 0, 0])
    second = wrote(late)
    lost(oracle)
    flushed(late)  # of this loss it cannot have told
    with pytest.raises(Broken):
        oracle.check_final([first.stamp, 0, 0, 0])
    oracle.check_final([second.stamp, 0, 0, 0])


def test_what_began_after_the_death_was_not_lost_with_it() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    loss = oracle.lose()
    during = session.write(0, 1)
    oracle.dead(loss)
    after = session.write(1, 1)
    during.end()
    after.end()
    flushed(session, Errno.EIO)
    assert oracle.may_be_read(0, session) == {0, during.stamp}
    assert oracle.may_be_read(1, session) == {after.stamp}


def test_nothing_may_fail_without_a_loss() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(session, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        session.read(0, 1).end(Errno.EIO)


def test_one_loss_is_told_each_session_once() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    lost(oracle)
    flushed(one, Errno.EIO)
    flushed(other, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        flushed(one, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        flushed(oracle.session("late"), Errno.EIO)
    lost(oracle)
    flushed(one, Errno.EIO)


def test_without_losses_nothing_may_be_missing() -> None:
    oracle = Oracle(BLOCKS)
    first = wrote(oracle.session("one"))
    with pytest.raises(Broken):
        oracle.check_final([0, 0, 0, 0])
    oracle.check_final([first.stamp, 0, 0, 0])


def test_what_nobody_may_read_any_more_is_forgotten() -> None:
    oracle = Oracle(1)
    session = oracle.session("one")
    unanswered = session.write(0, 1)
    for _ in range(20 * MANY):
        last = wrote(session)
        flushed(session)
    assert len(oracle._writes[0]) <= MANY + 1
    assert not oracle._unsafe
    assert oracle.may_be_read(0) == {unanswered.stamp, last.stamp}


def test_a_flush_may_not_claim_what_is_gone() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    wrote(one, 1)
    lost(oracle)
    assert oracle.check_stable([0, 0, 0, 0], gone=True) == 2
    flushed(one, Errno.EIO)
    flushed(one)
    last = wrote(other)
    wrote(other, 1)
    flushed(other)  # all was written again
    oracle.check_final([last.stamp, last.stamp + 1, 0, 0])
    lost(oracle)
    third = wrote(one)
    lost(oracle)
    assert oracle.check_stable([last.stamp, last.stamp + 1, 0, 0], gone=True) == 1
    with pytest.raises(Broken, match=f"succeeded, but block 0 of write .*stamp {third.stamp}"):
        flushed(other)


def test_a_value_that_comes_back_is_an_inversion() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first, second = one.write(0, 1), other.write(0, 1)

    def read(write: Op) -> None:
        other.read(0, 1).end(data=write.data)

    read(first)
    read(second)
    assert not oracle.inversions()
    read(first)  # each by itself is right
    first.end()
    second.end()
    (found,) = oracle.inversions()
    assert found.startswith("block 0 had stamp 1 ")


def test_a_value_that_was_there_while_another_was_is_an_inversion() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = one.write(0, 1)
    other.read(0, 1).end(data=first.data)
    wrote(other)
    assert not oracle.inversions()
    other.read(0, 1).end(data=first.data)
    (found,) = oracle.inversions()
    assert "and 2 in between" in found


def test_any_order_of_commands_is_no_inversion() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    slow = one.read(0, 1)
    first, second = one.write(0, 1), other.write(0, 1)
    other.read(0, 1).end(data=second.data)
    other.read(0, 1).end(data=first.data)
    second.end()
    slow.end(data=second.data)
    first.end()
    wrote(one)
    assert not oracle.inversions()
