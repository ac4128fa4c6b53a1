from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.policy import Denied, Flag, Session
from policies.writers import Writers
from tests.policies.harness import client, configured, view

ANN, BOB, EVE = (client(psk_user=name) for name in ("ann", "bob", "eve"))
READ_ONLY = view().having(Flag.READ_ONLY)


def writers(**options: Any) -> Writers:
    policy = configured(Writers, options)
    assert isinstance(policy, Writers)
    return policy


def writes(policy: Writers, session: Session) -> bool:
    """Have a session join, and say whether it was given the export for writing."""
    given = policy.join(session).describe(view())
    assert given in (view(), READ_ONLY)
    return given == view()


def test_who_comes_too_late_reads() -> None:
    policy = writers()
    first, late = Session(ANN, "vm-1"), Session(BOB, "vm-1")
    assert writes(policy, first)
    assert not writes(policy, late)
    assert not policy.join(late).hooked(view())
    policy.leave(late)
    assert not writes(policy, late)
    policy.leave(first)
    assert writes(policy, Session(BOB, "vm-1"))


def test_who_comes_too_late_is_refused() -> None:
    policy = writers(others="refuse")
    first = Session(ANN, "vm-1")
    assert writes(policy, first)
    with pytest.raises(Denied) as denied:
        policy.join(Session(BOB, "vm-1"))
    assert str(denied.value) == "another client has it open for writing, and no more than 1 may"
    policy.leave(first)
    assert writes(policy, Session(BOB, "vm-1"))


def test_several_writers() -> None:
    policy = writers(most=2, others="refuse")
    assert writes(policy, Session(ANN, "vm-1"))
    assert writes(policy, Session(BOB, "vm-1"))
    with pytest.raises(Denied) as denied:
        policy.join(Session(EVE, "vm-1"))
    assert str(denied.value) == "others have it open for writing, and no more than 2 may"


def test_one_identity_may_have_several_sessions() -> None:
    policy = writers()
    sessions = [Session(ANN, "vm-1") for _ in range(3)]
    assert all(writes(policy, session) for session in sessions)
    for session in sessions:
        assert not writes(policy, Session(BOB, "vm-1"))
        policy.leave(session)
    assert writes(policy, Session(BOB, "vm-1"))


def test_every_export_has_its_own_places() -> None:
    policy = writers()
    assert writes(policy, Session(ANN, "vm-1"))
    assert writes(policy, Session(BOB, "vm-2"))
    assert not writes(policy, Session(ANN, "vm-2"))


def test_a_reader_that_leaves_frees_no_place() -> None:
    policy = writers(most=2)
    readers = [Session(EVE, "vm-1") for _ in range(2)]
    assert writes(policy, Session(ANN, "vm-1"))
    assert writes(policy, Session(BOB, "vm-1"))
    for reader in readers:
        assert not writes(policy, reader)
        policy.leave(reader)
    assert not writes(policy, Session(EVE, "vm-1"))


def test_a_reload_leaves_places_to_those_who_have_them() -> None:
    before = writers(most=2)
    first, second = Session(ANN, "vm-1"), Session(BOB, "vm-1")
    assert writes(before, first)
    assert writes(before, second)
    now = writers(most=1)
    now.inherit(before)
    before.retire()
    assert not writes(now, Session(EVE, "vm-1"))
    assert writes(now, Session(BOB, "vm-1"))
    before.leave(second)
    assert not writes(now, Session(EVE, "vm-1"))
    before.leave(first)
    assert not writes(now, Session(EVE, "vm-1"))
    again = writers(most=2)
    again.inherit(now)
    assert writes(again, Session(EVE, "vm-1"))


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from([ANN, BOB, EVE]), st.sampled_from(["vm-1", "vm-2"]))),
    st.data(),
)
def test_there_are_never_more_writers_and_nothing_is_left(
    most: int, who: list[tuple[Any, str]], data: st.DataObject
) -> None:
    policy = writers(most=most)
    here: list[tuple[Session, bool]] = []
    for each, export in who:
        session = Session(each, export)
        here.append((session, writes(policy, session)))
        if data.draw(st.booleans()):
            policy.leave(here.pop(data.draw(st.integers(0, len(here) - 1)))[0])
        for name in ("vm-1", "vm-2"):
            writing = {s.client.identity.key for s, w in here if w and s.export == name}
            assert len(writing) <= most
            assert writing == set(policy._places.taken.get(name, {}))
    for session, _ in here:
        policy.leave(session)
    assert not policy._places.taken


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 0}, "greater than or equal to 1"),
        ({"most": "1"}, "valid integer"),
        ({"others": "readonly"}, "'read-only' or 'refuse'"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as mistake:
        configured(Writers, options)
    assert message in str(mistake.value)
