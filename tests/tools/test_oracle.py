"""The oracle's own rules: what it allows, and what it does not."""

from __future__ import annotations

import pytest

from gateway.wire.constants import Errno
from tests.tools.history import Op, Session, Trouble
from tests.tools.oracle import MANY, Oracle
from tests.tools.stamps import BLOCK_BYTES, Broken, block, content, mixtures_of, stamps_of

BLOCKS = 4


def wrote(session: Session, number: int = 0, *, fua: bool = False) -> Op:
    op = session.write(number, 1, fua=fua)
    op.end()
    return op


def flushed(session: Session, error: int = 0) -> None:
    session.flush().end(error)


def lost(oracle: Oracle) -> Trouble:
    loss = oracle.lose()
    oracle.dead(loss)
    oracle.noticed()
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
    session = oracle.session("one", hooked=True)
    failed = session.write(0, 1)
    oracle.cut()
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
    oracle = Oracle(BLOCKS, scope_all=False)
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
    flushed(oracle.session("late"))  # the first may still be there, to be told
    oracle.check_final([0, 0, 0, 0])
    oracle.settled()
    flushed(oracle.session("later"))
    with pytest.raises(Broken):
        oracle.check_final([0, 0, 0, 0])


def test_a_flush_that_nobody_waited_for_may_have_told() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    first = wrote(one)
    lost(oracle)
    one.flush()
    one.close()
    oracle.settled()
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
    wrote(one)
    lost(oracle)
    flushed(one, Errno.EIO)
    flushed(other, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        flushed(one, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        flushed(oracle.session("late"), Errno.EIO)
    wrote(one)
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
    assert list(oracle._unsafe) == [unanswered]
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


# --- What has to be told, and may not be


def test_a_flush_that_was_sent_together_with_one_that_tells_tells_too() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    wrote(session)
    lost(oracle)
    oracle.check_stable([0, 0, 0, 0], gone=True)
    first, second = session.flush(packet=1), session.flush(packet=1)
    first.end(Errno.EIO)
    with pytest.raises(Broken, match=r"succeeded, but block 0 of write .* was lost"):
        second.end()


@pytest.mark.parametrize("read", [True, False])
def test_a_flush_that_was_read_before_a_telling_tells_too(read: bool) -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    wrote(session)
    lost(oracle)
    oracle.check_stable([0, 0, 0, 0], gone=True)
    first, second = session.flush(), session.flush()
    if read:
        oracle.settled()
    first.end(Errno.EIO)
    if read:
        with pytest.raises(Broken, match="was lost"):
            second.end()
    else:
        second.end()  # it may have come when that was told


def test_a_flush_that_succeeds_before_a_telling_has_lied() -> None:
    oracle = Oracle(BLOCKS)
    session = oracle.session("one")
    wrote(session)
    lost(oracle)
    oracle.check_stable([0, 0, 0, 0], gone=True)
    first, second = session.flush(), session.flush()
    with pytest.raises(Broken, match="was lost"):
        second.end()
    first.end(Errno.EIO)


def test_what_was_written_before_a_telling_is_not_told_again() -> None:
    """Whatever has lost it: who was told knows that all may be gone that was answered before."""
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    wrote(other, 1)
    oracle.cut()
    flushed(other, Errno.EIO)
    oracle.noticed()
    oracle.cut()
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        flushed(other, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost that was not told"):
        other.read(1, 1).end(Errno.EIO)
    wrote(other, 2)
    oracle.cut()
    other.read(2, 1).end(Errno.EIO)
    flushed(other, Errno.EIO)


def test_what_was_answered_after_a_loss_was_known_was_not_lost_with_it() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    again = one.write(0, 1)
    lost(oracle)
    oracle.settled()
    again.end()  # it was asked again
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(one, Errno.EIO)
    flushed(one)
    assert oracle.may_be_read(0, one) == {again.stamp}


def test_nobody_fails_for_what_nobody_had_written() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    wrote(one)
    flushed(one)
    lost(oracle)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(one, Errno.EIO)
    wrote(one, 1)
    lost(oracle)
    with pytest.raises(Broken, match="nothing was lost"):
        one.read(0, 1).end(Errno.EIO)
    one.read(0, 2).end(Errno.EIO)


def test_a_cut_connection_loses_only_what_went_over_it() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    first, second = wrote(one), wrote(one, 1)
    oracle.carried([first.stamp], 1)
    oracle.carried([second.stamp], 2)
    oracle.cut([2])
    with pytest.raises(Broken, match="nothing was lost"):
        one.read(0, 1).end(Errno.EIO)
    one.read(1, 1).end(Errno.EIO)
    flushed(one, Errno.EIO)


@pytest.mark.parametrize("then", ["", "it is cut too", "the gateway closes it", "it came later"])
def test_what_another_connection_proves_is_not_lost(then: str) -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    early = oracle.now
    first = wrote(one)
    oracle.carried([first.stamp], 1)
    oracle.cut([1], {2: oracle.now if then == "it came later" else early})
    if then == "it is cut too":
        oracle.cut([2])
    elif then == "the gateway closes it":
        oracle.closed(2)
    if then:
        one.read(0, 1).end(Errno.EIO)
        flushed(other, Errno.EIO)
    else:
        with pytest.raises(Broken, match="nothing was lost"):
            flushed(other, Errno.EIO)


def test_what_was_found_again_no_connection_proves_but_the_one_over_which_it_was_found() -> None:
    """It was under way when its connection ended; then the next one ends as well."""
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    again, later = one.write(0, 1), one.write(1, 1)
    oracle.carried([again.stamp], 1)
    oracle.cut({1}, {0: 0})
    oracle.settled()
    again.end()
    oracle.carried([later.stamp], 2)
    later.end()
    oracle.cut({2}, {0: 0})
    oracle.settled()
    flushed(one, Errno.EIO)


def test_each_is_told_of_its_own_where_that_is_its_scope() -> None:
    oracle = Oracle(BLOCKS, scope_all=False)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    lost(oracle)
    oracle.check_stable([0, 0, 0, 0], gone=True)
    flushed(other)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(other, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        other.read(0, 1).end(Errno.EIO)
    late = oracle.session("late")
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(late, Errno.EIO)
    one.read(0, 1).end(Errno.EIO)
    with pytest.raises(Broken, match="block 0 has stamp 0"):
        one.read(0, 1).end(data=bytes(BLOCK_BYTES))
    with pytest.raises(Broken, match="was lost"):
        flushed(one)


def test_another_sessions_flush_covers_nothing_where_each_has_its_own_scope() -> None:
    oracle = Oracle(BLOCKS, scope_all=False)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    flushed(other)
    lost(oracle)
    assert oracle.check_stable([0, 0, 0, 0], gone=True) == 1
    flushed(one, Errno.EIO)


@pytest.mark.parametrize("error", [Errno.EPERM, Errno.EINVAL, Errno.ENOTSUP, Errno.ENOMEM])
def test_a_flush_that_was_not_tried_loses_nothing_and_makes_nothing_safe(error: int) -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    flush = one.flush()
    oracle.flush_failed(error)
    flush.end(error)
    lost(oracle)
    assert oracle.check_stable([0, 0, 0, 0], gone=True) == 1
    for session in (one, other):
        with pytest.raises(Broken, match="was lost"):
            flushed(session)


@pytest.mark.parametrize("said", [Errno.EPERM, 0])
def test_what_only_one_is_told_no_other_is(said: int) -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one)
    if said:
        flush = one.flush()
        oracle.flush_failed(said)
        flush.end(said)
    for session in (one, other):
        with pytest.raises(Broken, match="which the server has not said"):
            flushed(session, Errno.EPERM)
        with pytest.raises(Broken, match="nothing was lost"):
            flushed(session, Errno.EIO)


@pytest.mark.parametrize("error", [Errno.EIO, Errno.ENOSPC])
def test_a_flush_that_has_failed_is_a_loss_of_which_all_are_told(error: int) -> None:
    stable = [0] * BLOCKS
    oracle = Oracle(BLOCKS, stable=stable.__getitem__)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    flush = one.flush()
    oracle.flush_failed(error)
    flush.end(error)
    flushed(one)  # it knows
    with pytest.raises(Broken, match="is not on stable storage"):
        flushed(other)
    other.read(0, 1).end(Errno.EIO)
    flushed(other, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(other, error)
    assert oracle.may_be_read(0, other) == {0, first.stamp}


def test_what_was_written_before_a_failure_was_heard_of_may_be_taken_for_lost() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    flush = one.flush()
    oracle.flush_failed(Errno.EIO)
    write = other.write(0, 1)
    flush.end(Errno.EIO)
    write.end()
    oracle.settled()
    other.read(0, 1).end(Errno.EIO)
    flushed(other, Errno.EIO)
    wrote(other, 1)
    with pytest.raises(Broken, match="nothing was lost"):
        other.read(1, 1).end(Errno.EIO)


def test_a_flush_or_fua_that_succeeds_is_held_to_stable_storage() -> None:
    stable = [0] * BLOCKS
    oracle = Oracle(BLOCKS, stable=stable.__getitem__)
    one = oracle.session("one")
    first = wrote(one)
    stable[0] = first.stamp
    flushed(one)
    wrote(one)
    with pytest.raises(Broken, match=r"flush, .* is not on stable storage: there is stamp 1"):
        flushed(one)
    with pytest.raises(Broken, match=r"write with FUA .* is not on stable storage"):
        wrote(one, 1, fua=True)


def test_nobody_can_know_what_is_lost_over_a_connection_that_says_nothing() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    first = wrote(one)
    oracle.carried([first.stamp], 1)
    silence = oracle.silence([1])
    oracle.lose()
    oracle.check_stable([0, 0, 0, 0], gone=True)
    other.read(0, 1).end(data=bytes(BLOCK_BYTES))
    with pytest.raises(Broken, match="was lost"):
        flushed(other)  # the one thing that must not be
    oracle.dead(silence)
    oracle.settled()
    with pytest.raises(Broken, match="block 0 has stamp 0"):
        other.read(0, 1).end(data=bytes(BLOCK_BYTES))
    flushed(other, Errno.EIO)


def test_what_takes_several_steps_may_fail_if_trouble_comes_between_them() -> None:
    oracle = Oracle(BLOCKS)
    plain, hooked = oracle.session("plain"), oracle.session("hooked", hooked=True)
    commands = [hooked.write(0, 1, fua=True), hooked.flush(), hooked.read(0, 1)]
    alone = plain.write(0, 1)
    lost(oracle)
    for command in commands:
        command.end(Errno.EIO)
    with pytest.raises(Broken, match="failed with error 5"):
        alone.end(Errno.EIO)
    oracle.settled()
    with pytest.raises(Broken, match="failed with error 5"):
        hooked.write(0, 1).end(Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(hooked, Errno.EIO)


def test_a_part_of_what_the_server_takes_whole_may_be_lost_with_the_rest() -> None:
    oracle = Oracle(8, grain=4)
    one, other = oracle.session("one"), oracle.session("other")
    wrote(one, 1)
    lost(oracle)
    other.read(3, 1).end(Errno.EIO)
    other.write(2, 1).end(Errno.EIO)  # for that block has to be read
    with pytest.raises(Broken, match="nothing was lost"):
        other.read(4, 1).end(Errno.EIO)
    with pytest.raises(Broken, match="failed with error 5"):
        other.write(4, 1).end(Errno.EIO)


def test_nothing_fails_where_nothing_may_be_lost() -> None:
    oracle = Oracle(BLOCKS, lossless=True)
    one = oracle.session("one", hooked=True)
    first = wrote(one)
    lost(oracle)
    oracle.cut()
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(one, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        one.read(0, 1).end(Errno.EIO)
    assert oracle.may_be_read(0, one) == {first.stamp}


def test_what_is_silent_while_nobody_is_there_is_given_up() -> None:
    oracle = Oracle(BLOCKS, lossless=True)
    one = oracle.session("one")
    wrote(one)
    one.close()
    oracle.dead(oracle.silence())
    two = oracle.session("two")
    flushed(two, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(two, Errno.EIO)  # it was told


def test_what_is_silent_while_somebody_is_there_is_written_again() -> None:
    oracle = Oracle(BLOCKS, lossless=True)
    one, two = oracle.session("one"), oracle.session("two")
    wrote(one)
    one.close()
    oracle.dead(oracle.silence())
    three = oracle.session("three")
    two.close()
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(three, Errno.EIO)


def test_an_error_that_means_anything_else_is_wrong() -> None:
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    wrote(one)
    lost(oracle)
    for command in (one.read(0, 1), one.write(0, 1), one.flush()):
        with pytest.raises(Broken, match="failed with error 28"):
            command.end(Errno.ENOSPC)


def test_what_is_never_answered_is_missed() -> None:
    oracle = Oracle(BLOCKS)
    one, other = oracle.session("one"), oracle.session("other")
    one.write(0, 1)
    waiting = other.read(0, 1)
    one.close()
    with pytest.raises(Broken, match="not answered: read of 1 blocks at 0, by other"):
        oracle.check_answered()
    waiting.end(data=bytes(BLOCK_BYTES))
    oracle.check_answered()


def test_a_part_may_be_lost_of_what_is_not_answered_yet() -> None:
    """Then it fails, or the next FLUSH does: once."""
    oracle = Oracle(BLOCKS)
    one = oracle.session("one")
    in_steps, whole = one.write(0, 2, steps=True), one.write(2, 2)
    lost(oracle)
    oracle.settled()
    in_steps.end()
    whole.end()  # it was asked again
    with pytest.raises(Broken, match="nothing was lost"):
        one.read(2, 2).end(Errno.EIO)
    one.read(0, 1).end(Errno.EIO)
    flushed(one, Errno.EIO)
    with pytest.raises(Broken, match="nothing was lost"):
        flushed(one, Errno.EIO)


def test_what_was_written_over_before_it_was_looked_for_ends_nobody() -> None:
    for beside in (0, 1):
        oracle = Oracle(BLOCKS, scope_all=False, strict=True)
        one, other = oracle.session("one"), oracle.session("other")
        write = wrote(one)
        flushed(one)
        oracle.dead(oracle.lose())
        oracle.rewind([write.stamp, 0, 0, 0], [0, 0, 0, 0])
        assert one.has_to_end
        other.write(beside, 1)
        assert one.has_to_end is bool(beside)
