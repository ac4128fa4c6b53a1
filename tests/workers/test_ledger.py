"""What is lent: never more than may be, all that is wanted or nothing, and nothing for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.workers.ledger import LendingBook, NoneLeft

MOST = {"a": 1, "b": 2, "c": 5}
WORKERS = range(3)

wants = st.lists(st.sampled_from(sorted(MOST)), min_size=1, max_size=3, unique=True)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("borrow"), st.sampled_from(WORKERS), wants),
        st.tuples(st.just("give back"), st.sampled_from(WORKERS), st.integers(0, 20)),
        st.tuples(st.just("forget"), st.sampled_from(WORKERS), st.none()),
    ),
    max_size=60,
)


@given(steps)
def test_it_is_what_a_list_of_sessions_would_say(
    taken: list[tuple[str, int, list[str] | int | None]],
) -> None:
    """The model: who is there, each with what it counts in."""
    ledger = LendingBook()
    there: list[tuple[int, list[str]]] = []
    for what, worker, more in taken:
        before = Counter(key for _worker, keys in there for key in keys)
        if what == "borrow":
            assert isinstance(more, list)
            full = ledger.borrow(worker, [(key, MOST[key]) for key in more])
            no_room = [number for number, key in enumerate(more) if before[key] == MOST[key]]
            if no_room:
                assert full == NoneLeft(no_room[0], before[more[no_room[0]]])
            else:
                assert full is None
                there.append((worker, more))
        elif what == "give back":
            assert isinstance(more, int)
            ours = [each for each in there if each[0] == worker]
            if ours:
                leaves = ours[more % len(ours)]
                there.remove(leaves)
                ledger.give_back(worker, leaves[1])
        else:
            there = [each for each in there if each[0] != worker]
            ledger.forget(worker)
        now = Counter(key for _worker, keys in there for key in keys)
        assert {key: ledger.lent(key) for key in MOST} == {key: now[key] for key in MOST}
        assert all(now[key] <= MOST[key] for key in MOST)
        assert len(ledger) == len(now)
        owed = {(worker, key): number for worker, key, number in ledger.owed()}
        assert owed == Counter((worker, key) for worker, keys in there for key in keys)


def test_a_smaller_number_takes_nothing_from_anybody() -> None:
    ledger = LendingBook()
    for worker in (0, 1):
        assert ledger.borrow(worker, [("a", 2)]) is None
    assert ledger.borrow(0, [("a", 1)]) == NoneLeft(0, 2)
    ledger.give_back(0, ["a"])
    assert ledger.borrow(0, [("a", 1)]) == NoneLeft(0, 1)
    ledger.give_back(1, ["a"])
    assert ledger.borrow(0, [("a", 1)]) is None


def test_what_a_worker_does_not_owe_is_nobodys() -> None:
    """A worker that has died is forgotten, and one in its place has its number."""
    ledger = LendingBook()
    assert ledger.borrow(0, [("a", 1)]) is None
    ledger.give_back(1, ["a", "b"])
    assert ledger.lent("a") == 1
    ledger.give_back(0, ["a", "a"])
    assert len(ledger) == 0
    assert not [*ledger.owed()]
