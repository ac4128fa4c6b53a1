"""Whose a disk is: every order of asking, coming and leaving, in both processes, and never two homes."""

from __future__ import annotations

from itertools import product

import pytest

from gateway.handover.given import DiskSite
from gateway.upgrade import homes
from gateway.upgrade.homes import Giving, Whose

A = DiskSite(frozenset({("tcp", "h", "1")}), "a")
B = DiskSite(frozenset({("tcp", "h", "1")}), "b")

STEPS = (
    "newer asks",
    "older's client asks",
    "it leaves",
    "session begins",
    "session ends",
    "deadline",
)


def test_a_disk_has_one_home() -> None:
    for steps in product(STEPS, repeat=5):
        has_one_home(steps)


def has_one_home(steps: tuple[str, ...]) -> None:
    giving = Giving()
    sessions, asking, ending = 1, False, False
    newer_has = False
    for step in steps:
        match step:
            case "newer asks":
                whose = giving.answer(A, used=sessions > 0, ending=ending)
                used = sessions > 0 or asking
                if whose is Whose.YOURS:
                    assert not used
                    newer_has = True
                else:
                    assert used
                    assert (whose is Whose.LATER) is ending
            case "older's client asks":
                # What was given is asked for there.
                assert giving.is_given(A) is newer_has
                if not newer_has:
                    giving.stays("x", A)
                    asking = True
            case "it leaves":
                giving.stays("x", None)
                asking = False
            case "session begins":
                if asking:
                    sessions += 1
            case "session ends":
                sessions = max(0, sessions - 1)
            case "deadline":
                ending = True
        assert giving.is_given(A) is newer_has
        assert not (newer_has and (sessions or asking))


def test_what_was_given_is_had_back_when_the_newer_process_dies() -> None:
    giving = Giving()
    assert giving.answer(A, used=False, ending=False) is Whose.YOURS
    giving.take_back()
    assert not giving.is_given(A)


def test_there_are_so_many_that_all_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "MOST_GIVEN", 2)
    giving = Giving()
    giving.stays("x", A)
    for number in range(3):
        site = DiskSite(A.where, str(number))
        assert giving.answer(site, used=False, ending=False) is Whose.YOURS
    assert giving.is_given(B)
    assert not giving.is_given(A)  # somebody has it stay
