import gc
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.identity import Identity
from gateway.policy import Bucket, Charge, Client, Session, Unit
from gateway.throttle import Doors, Gate
from policies import rate as module
from policies.rate import Rate
from tests.policies.harness import KIB, MIB, client, configured, view

ANN = Identity.at("10.0.0.1", 1000)
ANN_AGAIN = Identity.at("10.0.0.1", 1001)
BOB = Identity.at("10.0.0.2", 1000)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rate(clock: Clock | None = None, **options: Any) -> Rate:
    policy = configured(Rate, {name.replace("_", "-"): value for name, value in options.items()})
    assert isinstance(policy, Rate)
    policy._buckets.clock = clock or Clock()
    return policy


def of(identity: Identity, export: str = "vm-1") -> Session:
    return Session(Client(identity, client().at), export)


def buckets(policy: Rate, session: Session) -> list[Bucket]:
    return [charge.bucket for charge in policy.charges(session)]


def spend(charges: Sequence[Charge], length: int) -> bool:
    """Have a request of this length begin; it is let through if the buckets are not overdrawn."""
    gate = Gate(charges, lambda: None, Doors(lambda: None))
    began = gate.take(length)
    gate.close()
    return began


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bytes_per_second": "10M"}, [(Unit.BYTES, 10 * MIB, MIB)]),
        ({"bytes_per_second": 5}, [(Unit.BYTES, 5, 1)]),
        ({"bytes_per_second": "1M", "burst_bytes": "4M"}, [(Unit.BYTES, MIB, 4 * MIB)]),
        ({"operations_per_second": 500}, [(Unit.OPERATIONS, 500, 50)]),
        ({"operations_per_second": 0.5}, [(Unit.OPERATIONS, 0.5, 1)]),
        ({"operations_per_second": 2, "burst_operations": 7}, [(Unit.OPERATIONS, 2, 7)]),
        (
            {"bytes_per_second": "1M", "operations_per_second": 100, "burst_operations": 1},
            [(Unit.BYTES, MIB, MIB / 10), (Unit.OPERATIONS, 100, 1)],
        ),
    ],
)
def test_charges(options: dict[str, Any], expected: list[tuple[Unit, float, float]]) -> None:
    policy, session = rate(**options), of(ANN)
    policy.join(session)
    given = policy.charges(session)
    assert [(charge.unit, charge.bucket.per_second) for charge in given] == [
        (unit, per_second) for unit, per_second, _ in expected
    ]
    bursts = [burst for _, _, burst in expected]
    assert [charge.bucket.burst for charge in given] == pytest.approx(bursts)


@pytest.mark.parametrize(
    ("per", "other", "shares"),
    [
        ("session", of(ANN), False),
        ("identity", of(ANN), True),
        ("identity", of(ANN_AGAIN, "vm-2"), True),
        ("identity", of(BOB), False),
        ("export", of(BOB), True),
        ("export", of(ANN, "vm-2"), False),
    ],
)
def test_who_shares_a_rate(per: str, other: Session, shares: bool) -> None:
    policy, session = rate(bytes_per_second="1M", operations_per_second=9, per=per), of(ANN)
    policy.join(session)
    policy.join(other)
    mine, theirs = buckets(policy, session), buckets(policy, other)
    assert (mine == theirs) is shares
    assert bool(set(mine) & set(theirs)) is shares
    assert buckets(policy, session) == mine


@pytest.mark.parametrize("per", ["session", "identity", "export"])
def test_who_has_left_leaves_nothing(per: str) -> None:
    policy = rate(bytes_per_second="1M", operations_per_second=9, per=per)
    sessions = [of(ANN), of(ANN), of(BOB, "vm-2")]
    for each in sessions:
        policy.join(each)
        policy.charges(each)
    assert policy._buckets.live
    for each in sessions:
        policy.leave(each)
    gc.collect()
    assert not policy._buckets.live
    assert not policy._buckets.held
    assert not policy._buckets.gone


@pytest.mark.parametrize("per", ["identity", "export"])
def test_who_connects_again_waits_no_less(per: str) -> None:
    clock = Clock()
    policy, first, second = rate(clock, bytes_per_second="1M", per=per), of(ANN), of(ANN_AGAIN)
    policy.join(first)
    assert spend(policy.charges(first), 10 * MIB)
    policy.leave(first)
    policy.join(second)
    assert not spend(policy.charges(second), 1)
    clock.now += 9.8
    assert not spend(policy.charges(second), 1)
    clock.now += 0.2
    assert spend(policy.charges(second), 1)
    policy.leave(second)
    assert policy._buckets.gone
    clock.now += 0.2
    policy.join(of(BOB, "vm-2"))
    assert not policy._buckets.gone


def test_a_session_never_comes_again() -> None:
    policy, session = rate(bytes_per_second="1M"), of(ANN)
    policy.join(session)
    assert spend(policy.charges(session), 10 * MIB)
    policy.leave(session)
    assert not policy._buckets.gone


def test_who_has_gone_is_remembered_within_bounds() -> None:
    policy = rate(bytes_per_second=1, per="export")
    for number in range(module.MAX_GONE + 10):
        session = of(ANN, f"vm-{number}")
        policy.join(session)
        spend(policy.charges(session), KIB)
        policy.leave(session)
    assert len(policy._buckets.gone) == module.MAX_GONE
    assert not spend(policy.charges(of(BOB, "vm-10")), 1)
    assert spend(policy.charges(of(BOB, "vm-9")), 1)


@pytest.mark.parametrize("per", ["session", "identity", "export"])
def test_a_reload_changes_the_rates_of_running_sessions(per: str) -> None:
    before = rate(bytes_per_second="1M", operations_per_second=100, per=per)
    old = of(ANN)
    before.join(old)
    held = before.charges(old)
    spend(held, 10 * MIB)
    level = held[0].bucket.level
    now = rate(bytes_per_second="2M", burst_bytes="5M", per=per)
    now.inherit(before)
    before.retire()
    bucket = held[0].bucket
    assert (bucket.per_second, bucket.burst, bucket.level) == (2 * MIB, 5 * MIB, level)
    assert buckets(now, old) == [bucket]
    newcomer = of(ANN)
    now.join(newcomer)
    assert (buckets(now, newcomer) == [bucket]) is (per != "session")
    before.leave(old)
    assert old not in now._buckets.held


def test_a_reload_that_adds_a_limit() -> None:
    before, session = rate(bytes_per_second="1M"), of(ANN)
    before.join(session)
    first = buckets(before, session)
    now = rate(bytes_per_second="1M", operations_per_second=9)
    now.inherit(before)
    assert buckets(now, session)[:1] == first
    assert buckets(now, session) == buckets(now, session)
    assert len(buckets(now, session)) == 2


def test_a_reload_that_shares_otherwise() -> None:
    before, session, other = rate(bytes_per_second="1M"), of(ANN), of(BOB)
    before.join(session)
    before.join(other)
    assert buckets(before, session) != buckets(before, other)
    now = rate(bytes_per_second="1M", per="export")
    now.inherit(before)
    assert buckets(now, session) == buckets(now, other)
    assert spend(now.charges(session), 10 * MIB)
    before.leave(session)
    before.leave(other)
    assert not spend(now.charges(of(BOB)), 1)


def test_sessions_that_are_older_than_the_policy_share_too() -> None:
    policy, session, other = rate(bytes_per_second="1M", per="export"), of(ANN), of(BOB)
    charges = policy.charges(session)
    policy.join(other)
    assert policy.charges(other) == charges
    policy.leave(other)
    policy.leave(session)
    del charges
    gc.collect()
    assert not policy._buckets.live


def test_it_costs_no_command_a_hook() -> None:
    assert not rate(bytes_per_second=1).hooked(view())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected bytes-per-second or operations-per-second, or both, got none"),
        ({"per": "export"}, "expected bytes-per-second or operations-per-second, or both"),
        ({"bytes-per-second": 0}, "expected bytes-per-second of more than 0, got 0"),
        ({"bytes-per-second": -1}, "expected a size of 0 or more, got -1"),
        ({"bytes-per-second": "fast"}, "expected a size such as 64M"),
        ({"bytes-per-second": 1, "burst-bytes": 0}, "expected burst-bytes of 1 or more, got 0"),
        (
            {"bytes-per-second": 1, "burst-operations": 1},
            "burst-operations is given: expected operations-per-second too, got none",
        ),
        (
            {"operations-per-second": 1, "burst-bytes": 1},
            "burst-bytes is given: expected bytes-per-second too, got none",
        ),
        ({"operations-per-second": 0}, "greater than 0"),
        ({"operations-per-second": float("inf")}, "finite"),
        ({"operations-per-second": "9"}, "valid number"),
        ({"operations-per-second": 9, "burst-operations": 0}, "greater than or equal to 1"),
        ({"bytes-per-second": 1, "per": "client"}, "'session', 'identity' or 'export'"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as mistake:
        configured(Rate, options)
    assert message in str(mistake.value)


def test_who_is_only_watched_comes_back_to_the_same_bucket() -> None:
    """Else whoever connects again for each request would never be told of."""
    clock = Clock()
    policy = rate(clock, bytes_per_second=KIB, per="identity")
    session = of(ANN)
    policy.join(session)
    [bucket] = buckets(policy, session)
    assert not bucket.would_hold(2 * KIB)
    policy.leave(session)
    del bucket
    gc.collect()
    again = of(ANN_AGAIN)
    policy.join(again)
    [bucket] = buckets(policy, again)
    assert bucket.would_hold(KIB) == pytest.approx(2, rel=0.1)
    policy.leave(again)
    clock.now = 10
    policy.join(of(BOB))
    assert not policy._buckets.gone
