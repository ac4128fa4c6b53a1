from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.identity import Identity, UnixPeer
from gateway.policy import BlockSizes, Cmd, Denied, Errno, Request, Session, View
from policies.limit import Limit
from tests.policies.harness import KIB, MIB, client, configured, refused, session, table, view

ANN = Identity.at("10.0.0.1", 1000)
ANN_BY_NAME = Identity.at("10.0.0.1", 1001)
BOB = Identity.at("10.0.0.2", 1000)
LOCAL = Identity("unix:1", unix=UnixPeer(1, 1000, 1000))


def limit(**options: Any) -> Limit:
    policy = configured(Limit, {name.replace("_", "-"): value for name, value in options.items()})
    assert isinstance(policy, Limit)
    return policy


def of(identity: Identity, **proofs: Any) -> Session:
    """A session of who has this address and perhaps other proofs."""
    return session(peer=identity.peer, address=identity.address, unix=identity.unix, **proofs)


@pytest.mark.parametrize(
    ("options", "here", "comes", "why"),
    [
        ({"connections": 2}, [of(ANN)], of(ANN), None),
        ({"connections": 1}, [of(ANN)], of(BOB), "1 connection is open, and 1 may be"),
        ({"connections": 2}, [of(ANN)] * 2, of(BOB), "2 connections are open, and 2 may be"),
        ({"connections_per_identity": 1}, [of(ANN)], of(BOB), None),
        (
            {"connections_per_identity": 1},
            [of(ANN)],
            of(ANN_BY_NAME),
            "1 connection is open of this identity, and 1 may be",
        ),
        ({"connections_per_identity": 1}, [of(ANN)], of(ANN, psk_user="ann"), None),
        (
            {"connections_per_identity": 1},
            [of(ANN, psk_user="ann")],
            of(BOB, psk_user="ann"),
            "1 connection is open of this identity, and 1 may be",
        ),
        ({"connections_per_address": 1}, [of(ANN)], of(BOB), None),
        (
            {"connections_per_address": 1},
            [of(ANN, psk_user="ann")],
            of(ANN, psk_user="bob"),
            "1 connection is open from this address, and 1 may be",
        ),
        ({"connections_per_address": 1}, [of(LOCAL)], of(LOCAL), None),
        ({"in_flight": 1}, [of(ANN)] * 9, of(ANN), None),
    ],
)
def test_who_is_one_too_many(
    options: dict[str, Any], here: list[Session], comes: Session, why: str | None
) -> None:
    policy = limit(**options)
    for each in here:
        assert policy.join(each) is policy
    if why is None:
        assert policy.join(comes) is policy
        return
    with pytest.raises(Denied) as denied:
        policy.join(comes)
    assert str(denied.value) == why
    policy.leave(here[0])
    policy.join(comes)


def test_who_is_refused_is_not_counted() -> None:
    policy = limit(connections=2, connections_per_address=1)
    policy.join(of(ANN))
    for _ in range(3):
        with pytest.raises(Denied):
            policy.join(of(ANN))
    policy.join(of(BOB))


@given(st.lists(st.sampled_from([ANN, ANN_BY_NAME, BOB, LOCAL])))
def test_who_has_left_leaves_nothing(identities: list[Identity]) -> None:
    policy = limit(connections=1000)
    sessions = [of(identity) for identity in identities]
    for each in sessions:
        policy.join(each)
    assert policy._counts["sessions",] == len(sessions)
    identities_here = [by for by in policy._counts if by[0] == "identity"]
    assert len(identities_here) == len({each.client.identity.key for each in sessions})
    for each in reversed(sessions):
        policy.leave(each)
    assert not policy._counts


def test_a_reload_goes_on_counting_and_those_from_before_leave_where_they_joined() -> None:
    before = limit(connections=3)
    old = [of(ANN), of(ANN), of(BOB)]
    for each in old:
        before.join(each)
    now = limit(connections=2, connections_per_identity=2)
    now.inherit(before)
    before.retire()
    with pytest.raises(Denied, match="3 connections are open, and 2 may be"):
        now.join(of(BOB))
    before.leave(old[2])
    with pytest.raises(Denied, match="2 connections are open, and 2 may be"):
        now.join(of(BOB))
    before.leave(old[0])
    now.join(of(BOB))
    later = limit(connections_per_identity=1)
    later.inherit(now)
    with pytest.raises(Denied, match="of this identity"):
        later.join(of(ANN))
    before.leave(old[1])
    later.join(of(ANN))


def test_in_flight() -> None:
    assert table(limit(in_flight=3), view()).most_in_flight == 3
    assert table(limit(connections=3), view()).most_in_flight is None


@pytest.mark.parametrize("command", [Cmd.READ, Cmd.WRITE])
def test_a_longer_request_is_refused(command: Cmd) -> None:
    policy = limit(request_size="64K")
    assert refused(policy, Request(command, 0, 64 * KIB)) is None
    reason = refused(policy, Request(command, 0, 64 * KIB + 1))
    assert reason is not None
    assert (reason.error, reason.text) == (
        Errno.EINVAL,
        f"{command.name}: no more than 64K at a time",
    )


@pytest.mark.parametrize("command", [Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE, Cmd.BLOCK_STATUS])
def test_what_carries_no_data_may_be_longer(command: Cmd) -> None:
    assert refused(limit(request_size="64K"), Request(command, 0, MIB)) is None


@pytest.mark.parametrize(
    ("options", "sizes", "expected"),
    [
        ({"request_size": "1M"}, (1, 4096, 32 * MIB), (1, 4096, MIB)),
        ({"request_size": "64M"}, (1, 4096, 32 * MIB), (1, 4096, 32 * MIB)),
        ({"request_size": "32M"}, (1, 4096, 32 * MIB), (1, 4096, 32 * MIB)),
        ({"request_size": 10_000}, (4096, 64 * KIB, 32 * MIB), (4096, 8192, 8192)),
        ({"request_size": 10_000}, (1, 4096, 32 * MIB), (1, 4096, 10_000)),
        ({"request_size": 3 * KIB}, (512, 4096, 32 * MIB), (512, 2048, 3 * KIB)),
        ({"request_size": 512}, (1, 4096, 32 * MIB), (1, 512, 512)),
        ({"in_flight": 1}, (1, 4096, 32 * MIB), (1, 4096, 32 * MIB)),
    ],
)
def test_block_sizes_tell_the_longest_request(
    options: dict[str, Any], sizes: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    shown = limit(**options).describe(view(block_sizes=BlockSizes(*sizes)))
    assert shown == view(block_sizes=BlockSizes(*expected))


def test_no_request_would_be_possible() -> None:
    seen: View = view(block_sizes=BlockSizes(4096, 4096, MIB))
    with pytest.raises(Denied) as denied:
        limit(request_size="2K").describe(seen)
    assert str(denied.value) == "requests may have 2K, and the export's smallest block is 4K"


def test_it_costs_no_command_anything() -> None:
    assert not limit(connections=1, in_flight=1, request_size="1M").hooked(view())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "expected one of connections, connections-per-identity, connections-per-address, "
            "in-flight, request-size at least, got none",
        ),
        ({"connections": 0}, "greater than or equal to 1"),
        ({"connections": True}, "valid integer"),
        ({"connections-per-identity": 0}, "greater than or equal to 1"),
        ({"connections-per-address": 0}, "greater than or equal to 1"),
        ({"in-flight": 0}, "greater than or equal to 1"),
        ({"in-flight": "4"}, "valid integer"),
        ({"request-size": 511}, "expected a request-size of 512 or more, got 511"),
        ({"request-size": "big"}, "expected a size such as 64M"),
        ({"conections": 4}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as mistake:
        configured(Limit, options)
    assert message in str(mistake.value)


def test_nobody_is_somebody_too() -> None:
    policy = limit(connections_per_identity=1)
    policy.join(Session(client(), "vm-1"))
    with pytest.raises(Denied):
        policy.join(Session(client(), "vm-2"))
