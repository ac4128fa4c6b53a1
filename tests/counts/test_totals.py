"""Totals add up, and names that clients make up take no more room than is meant for them."""

from __future__ import annotations

from gateway.counts.totals import MOST_EXPORTS, OTHER, Counts, Totals, together


def some(sessions: int = 1, reads: int = 2) -> Totals:
    totals = Totals(sessions)
    totals.requests["READ"], totals.bytes["READ"] = reads, 4096 * reads
    totals.errors["READ", "EIO"] = 1
    totals.ended["client-disc"] = sessions
    totals.refused["WRITE", "EPERM"] = 2
    totals.refused_by["protect", "WRITE", "EPERM"] = 1
    return totals


def test_totals_add_up() -> None:
    assert together([some(), some(2, 3), Totals()]).as_said() == {
        "sessions": 3,
        "ended": {"client-disc": 3},
        "requests": {"READ": 5},
        "bytes": {"READ": 5 * 4096},
        "errors": {"READ EIO": 2},
        "refused": {"WRITE EPERM": 4},
        "refused_by": {"protect": {"WRITE EPERM": 2}},
        "losses": 0,
        "replayed_bytes": 0,
        "seconds": {},
    }


def test_the_first_exports_have_numbers_of_their_own_and_keep_them() -> None:
    counts = Counts(2)
    for name in ("a", "b", "c", "a", "d", OTHER):
        counts.add(name, some())
    assert {name: each.sessions for name, each in counts.by_export().items()} == {
        "a": 2,
        "b": 1,
        OTHER: 3,
    }
    assert counts.all().sessions == 6


def test_names_of_clients_take_no_more_room() -> None:
    counts = Counts()
    for number in range(3 * MOST_EXPORTS):
        counts.add(f"made up {number}", some())
    assert len(counts.by_export()) == MOST_EXPORTS + 1
    assert together(counts.by_export().values()).sessions == 3 * MOST_EXPORTS


def test_what_is_written_again_is_counted_with_each_export_of_the_disk() -> None:
    counts = Counts(2)
    counts.add("a", some())
    counts.add_replayed({"a", "b"}, 512)
    counts.add_replayed({"c", "d"}, 10)  # both are counted as other, and it was written once
    counts.add_replayed((), 1)  # all have gone who wrote it
    found = {name: each.replayed_bytes for name, each in counts.by_export().items()}
    assert found == {"a": 512, "b": 512, OTHER: 11}
    assert counts.all().replayed_bytes == 523
