"""Buckets, gates and doors in a time that the tests make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.throttle import MAX_WAKES, Bucket, Charges, Doors, Gate, Unit, Watch

KIB, MIB = 2**10, 2**20
BYTES, OPERATIONS = Unit.BYTES, Unit.OPERATIONS


class World:
    """A clock, and a driver that comes exactly when it has to."""

    def __init__(self, begin: float = 1e6) -> None:
        self.now = begin  # a machine that has run for some days: rounding is to show
        self.doors = Doors(self._count_sooner)
        self.sooner = 0
        self._plans: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def _count_sooner(self) -> None:
        self.sooner += 1

    def clock(self) -> float:
        return self.now

    def bucket(self, per_second: float, burst: float) -> Bucket:
        return Bucket(per_second, burst, self.clock)

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._planned += 1
        self._plans.append((when, self._planned, act))
        self._plans.sort(key=lambda plan: plan[:2])

    def run(self, seconds: float) -> None:
        """Let time pass; where nothing more can happen, all of it at once."""
        end = self.now + seconds
        idle = 0
        while True:
            opening = self.doors.next_opening()
            opening = math.inf if opening is None else opening
            planned = self._plans[0][0] if self._plans else math.inf
            then = min(opening, planned)
            if then > end:
                break
            idle = idle + 1 if then <= self.now else 0
            assert idle < 10_000, "the driver goes round and round"
            self.now = max(self.now, then)
            if planned <= opening:
                self._plans.pop(0)[2]()
            else:
                self.doors.open_due(self.now)
        self.now = end


@dataclass
class Client:
    """Has requests, and sends them as fast as it may; `pause` is its time between two."""

    world: World
    charges: Charges
    lengths: Sequence[int]
    endless: bool = True
    pause: float = 0
    begun: list[tuple[float, int]] = field(default_factory=list)
    most_at_once: int = 100
    gate: Gate = field(init=False)
    wakes: int = 0
    longest_wait: float = 0

    def __post_init__(self) -> None:
        self.gate = Gate(self.charges, self._woken, self.world.doors)
        self._asked = self.world.now

    def _woken(self) -> None:
        assert not self.gate.waits
        self.wakes += 1
        self.go_on()

    @property
    def bytes(self) -> int:
        return sum(length for _when, length in self.begun)

    @property
    def finished(self) -> bool:
        return not self.endless and len(self.begun) >= len(self.lengths)

    def go_on(self) -> None:
        """Send what may be sent; as many at once as a session has in flight at most."""
        world = self.world
        for _ in range(1 if self.pause else self.most_at_once):
            if self.finished:
                return
            length = self.lengths[len(self.begun) % len(self.lengths)]
            if not self.gate.take(length):
                assert self.gate.waits
                return
            self.longest_wait = max(self.longest_wait, world.now - self._asked)
            self._asked = world.now
            self.begun.append((world.now, length))
        if not self.finished:
            world.at(world.now + (self.pause or 1e-4), self.go_on)


def crowd(world: World, charges: Charges, lengths: Sequence[Sequence[int]]) -> list[Client]:
    clients = [Client(world, charges, own) for own in lengths]
    for client in clients:
        world.at(world.now, client.go_on)
    return clients


# --- One bucket


def test_a_request_begins_above_zero_and_takes_all_of_its_cost() -> None:
    world = World()
    bucket = world.bucket(1000, 300)
    client = Client(world, [(bucket, BYTES)], [200, 200, 200], endless=False)
    client.go_on()
    assert len(client.begun) == 2
    assert bucket.level == -100
    assert world.doors.next_opening() == pytest.approx(world.now + 0.1)
    begin = world.now
    world.run(1)
    assert client.begun[2][0] - begin == pytest.approx(0.1)
    assert client.wakes == 1
    assert world.doors.next_opening() is None


def test_an_empty_bucket_is_not_above_zero() -> None:
    world = World()
    client = Client(world, [(world.bucket(1000, 300), BYTES)], [300, 1], endless=False)
    client.go_on()
    assert len(client.begun) == 1
    opening = world.doors.next_opening()
    assert opening is not None
    assert world.now < opening < world.now + 1e-6


def test_a_request_may_be_larger_than_the_burst() -> None:
    world = World()
    client = Client(world, [(world.bucket(1000, 1), BYTES)], [5000])
    client.go_on()
    world.run(10.5)
    assert len(client.begun) == 3


def test_idleness_is_worth_the_burst_and_no_more() -> None:
    world = World()
    bucket = world.bucket(1000, 300)
    Client(world, [(bucket, BYTES)], [300], endless=False).go_on()
    assert bucket.level == 0
    world.run(0.1)
    assert bucket.level == pytest.approx(100)
    world.run(100)
    assert bucket.level == 300


def test_what_the_driver_is_late_for_is_not_lost() -> None:
    """However small the burst. Else the rate would depend on how often a timer can go off."""
    world = World()
    client = Client(world, [(world.bucket(1000, 1), BYTES)], [10])
    client.go_on()
    for _ in range(100):
        world.now += 0.1
        world.doors.open_due(world.now)
    assert client.bytes == pytest.approx(10 * 1000, rel=0.01)


def test_operations_are_counted_whatever_their_length() -> None:
    world = World()
    client = Client(world, [(world.bucket(100, 1), OPERATIONS)], [0, 4 * KIB, 32 * MIB])
    client.go_on()
    world.run(10)
    assert len(client.begun) == pytest.approx(1000, rel=0.01)


def test_what_has_no_bytes_waits_for_none() -> None:
    world = World()
    bucket = world.bucket(1, 1)
    gate = Gate([(bucket, BYTES)], lambda: None, world.doors)
    assert gate.take(1000)
    assert gate.take(0)
    assert not gate.take(1)
    assert bucket.level == 1 - 1000


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (1, 0), (-1, 1), (math.inf, 1)])
def test_a_bucket_that_never_opens_or_closes_is_refused(per_second: float, burst: float) -> None:
    world = World()
    with pytest.raises(ValueError, match="more than 0 and finite"):
        world.bucket(per_second, burst)
    bucket = world.bucket(1, 1)
    with pytest.raises(ValueError, match="more than 0 and finite"):
        bucket.change(per_second, burst)


# --- Rates


MIXES = {
    "4k": [4 * KIB],
    "1M": [MIB],
    "mixed": [4 * KIB, MIB, 512, 64 * KIB],
}


@pytest.mark.parametrize("per_second", [1e6, 50e6, 1e9])
@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES)
def test_the_rate_holds(lengths: Sequence[int], count: int, per_second: float) -> None:
    """Over so long a time that the requests at its ends do not count."""
    world = World()
    burst = per_second / 100
    clients = crowd(world, [(world.bucket(per_second, burst), BYTES)], [lengths] * count)
    seconds = 250 * max(lengths) / per_second + 0.1
    world.run(seconds)
    assert sum(client.bytes for client in clients) == pytest.approx(
        per_second * seconds + burst, rel=0.01
    )


def test_the_rate_is_exact_where_a_request_takes_less_time_than_the_clock_shows() -> None:
    """After a year of seconds, at 10 GB/s, the clock's last bit is 4 ns and a request takes 51."""
    world = World(begin=3.2e7)
    client = Client(world, [(world.bucket(1e10, 1), BYTES)], [512], most_at_once=10**6)
    client.go_on()
    world.run(1e-3)
    assert client.bytes == pytest.approx(1e10 * 1e-3, rel=0.001)


@pytest.mark.parametrize("seconds", [0.001, 0.0137])
def test_a_client_that_waits_for_each_reply_gets_its_rate(seconds: float) -> None:
    world = World()
    client = Client(world, [(world.bucket(1e6, 64 * KIB), BYTES)], [64 * KIB], pause=seconds)
    client.go_on()
    world.run(20)
    assert client.bytes == pytest.approx(20e6, rel=0.01)


# --- Who comes first


def test_equal_bytes_whatever_the_length_of_requests() -> None:
    world = World()
    clients = crowd(world, [(world.bucket(10e6, MIB), BYTES)], [[4 * KIB], [MIB], [64 * KIB]])
    world.run(60)
    for client in clients:
        assert client.bytes == pytest.approx(200e6, rel=0.01)


def test_equal_shares_at_all_times() -> None:
    world = World()
    clients = crowd(world, [(world.bucket(10e6, 1), BYTES)], [[4 * KIB]] * 15 + [[32 * KIB]])
    for _ in range(100):
        world.run(0.05)
        shares = [client.bytes for client in clients]
        assert max(shares) - min(shares) <= 2 * 32 * KIB


def test_a_newcomer_is_neither_starved_nor_owed() -> None:
    world = World()
    charges = [(world.bucket(1e6, 1), BYTES)]
    [old] = crowd(world, charges, [[4 * KIB]])
    world.run(200)
    [new] = crowd(world, charges, [[4 * KIB]])
    before = old.bytes
    world.run(1)
    assert new.begun[0][0] - (world.now - 1) < 0.01
    assert new.bytes == pytest.approx(0.5e6, rel=0.02)
    assert old.bytes - before == pytest.approx(0.5e6, rel=0.02)


def test_who_was_idle_is_not_owed() -> None:
    world = World()
    charges = [(world.bucket(1e6, 1), BYTES)]
    idle = Client(world, charges, [4 * KIB], endless=False)
    [busy] = crowd(world, charges, [[4 * KIB]])
    idle.go_on()
    world.run(100)
    idle.endless = True
    before, had = busy.bytes, idle.bytes
    world.at(world.now, idle.go_on)
    world.run(1)
    assert idle.bytes - had == pytest.approx(0.5e6, rel=0.02)
    assert busy.bytes - before == pytest.approx(0.5e6, rel=0.02)


def test_a_newcomer_that_need_not_wait_is_not_owed_either() -> None:
    world = World()
    charges = [(world.bucket(1e6, 1), BYTES)]
    [old] = crowd(world, charges, [[4 * KIB]])
    world.run(100)
    old.endless = False
    world.run(1)
    new = Client(world, charges, [4 * KIB])
    new.go_on()  # the bucket is full, and nobody waits
    assert new.begun
    old.endless, before = True, old.bytes
    old.go_on()
    world.run(1)
    assert new.bytes == pytest.approx(0.5e6, rel=0.02)
    assert old.bytes - before == pytest.approx(0.5e6, rel=0.02)


def test_who_comes_before_a_late_driver_passes_nobody() -> None:
    world = World()
    bucket = world.bucket(1000, 1)
    first, second, late = (Gate([(bucket, BYTES)], lambda: None, world.doors) for _ in range(3))
    assert Gate([(bucket, BYTES)], lambda: None, world.doors).take(1000)
    assert not first.take(1)
    assert not second.take(1)
    world.now += 10
    assert not late.take(1)
    assert not second.take(1)
    assert first.take(1)  # it was its turn
    assert (first.waits, bucket.waiting) == (False, 2)
    assert second.take(1)
    assert late.take(1)
    assert world.doors.next_opening() is None


def test_among_equals_the_first_come_goes_first() -> None:
    world = World()
    bucket = world.bucket(1000, 1)
    woken: list[int] = []
    gates = [
        Gate([(bucket, BYTES)], lambda number=number: woken.append(number), world.doors)  # type: ignore[misc]
        for number in range(5)
    ]
    assert Gate([(bucket, BYTES)], lambda: None, world.doors).take(1000)
    assert not any(gate.take(1) for gate in gates)
    assert not gates[3].take(1)  # asks again, and keeps its place
    assert bucket.waiting == 5
    world.run(2)
    assert woken == [0, 1, 2, 3, 4]


def test_who_takes_its_turn_lets_the_others_have_theirs() -> None:
    """Where a late driver finds a level that would do for many of its requests."""
    world = World()
    clients = crowd(world, [(world.bucket(1e6, 1), BYTES)], [[1000], [1000]])
    world.run(0.1)
    before = [client.bytes for client in clients]
    world.now += 0.1
    world.doors.open_due(world.now)
    gained = [client.bytes - had for client, had in zip(clients, before, strict=True)]
    assert sum(gained) > 50_000
    assert abs(gained[0] - gained[1]) <= 2000


# --- Changes


def test_a_faster_rate_is_for_those_who_wait_as_well() -> None:
    world = World()
    bucket = world.bucket(1, 1)
    client = Client(world, [(bucket, BYTES)], [1000, 1000], endless=False)
    client.go_on()
    world.run(10)
    assert len(client.begun) == 1
    sooner = world.sooner
    bucket.change(1e6, 1)
    assert world.sooner == sooner + 1
    world.run(0.01)
    assert len(client.begun) == 2


def test_a_slower_rate_holds_at_once() -> None:
    world = World()
    bucket = world.bucket(1e6, 1e6)
    [client] = crowd(world, [(bucket, BYTES)], [[1000]])
    world.run(1)
    before = client.bytes
    bucket.change(1e4, 10)
    world.run(10)
    assert client.bytes - before == pytest.approx(1e5, rel=0.02)


def test_a_smaller_burst_is_for_what_was_saved_as_well() -> None:
    world = World()
    bucket = world.bucket(10, 1000)
    bucket.change(10, 5)
    assert bucket.level == 5


def test_a_waiting_gate_that_closes_leaves_the_queue() -> None:
    world = World()
    bucket = world.bucket(1, 1)
    one, other = (Client(world, [(bucket, BYTES)], [10, 10], endless=False) for _ in range(2))
    one.go_on()
    other.go_on()
    assert bucket.waiting == 2
    one.gate.close()
    assert bucket.waiting == 1
    world.run(100)
    assert (len(one.begun), len(other.begun), one.wakes) == (1, 2, 0)
    again = Client(world, [(bucket, BYTES)], [10, 10], endless=False)
    again.go_on()
    again.gate.close()
    assert bucket.waiting == 0
    assert world.doors.next_opening() is None


def test_a_waiting_gate_may_get_other_buckets() -> None:
    world = World()
    slow, fast = world.bucket(1, 1), world.bucket(1e6, 1e6)
    client = Client(world, [(slow, BYTES)], [1000] * 3, endless=False)
    client.go_on()
    assert slow.waiting
    client.gate.replace([(fast, BYTES)])
    assert (len(client.begun), client.wakes, slow.waiting) == (3, 1, 0)
    assert world.doors.next_opening() is None
    assert fast.level == 1e6 - 2000
    client.gate.replace([])  # it does not wait, and is not woken
    assert client.gate.take(10**9)
    assert client.wakes == 1


def test_new_buckets_are_no_way_past_the_others() -> None:
    """Its turn in those that stay is what it was."""
    world = World()
    charges = [(world.bucket(1e6, 1), BYTES)]
    clients = crowd(world, charges, [[64 * KIB], [64 * KIB]])
    for _ in range(200):
        world.run(0.05)
        clients[0].gate.replace([*charges, (world.bucket(1e9, 1e9), OPERATIONS)])
    assert clients[0].bytes == pytest.approx(clients[1].bytes, rel=0.03)


def test_nobody_waits_nothing_is_due() -> None:
    world = World()
    bucket = world.bucket(1e6, 1e6)
    client = Client(world, [(bucket, BYTES)], [10] * 100, endless=False)
    client.go_on()
    assert client.finished
    assert (world.doors.next_opening(), world.sooner) == (None, 0)


def test_the_driver_is_told_only_of_what_is_sooner() -> None:
    world = World()
    for number, per_second in enumerate((10, 1, 100, 50)):
        client = Client(world, [(world.bucket(per_second, 1), BYTES)], [100, 100])
        client.go_on()
        assert world.sooner == (1, 1, 2, 2)[number]


def test_a_crowd_is_not_woken_all_at_once() -> None:
    world = World()
    count = 3 * MAX_WAKES
    clients = crowd(world, [(world.bucket(1e6, 1), BYTES)], [[1000]] * count)
    world.run(0.5)
    wakes = sum(client.wakes for client in clients)
    world.now += 10
    world.doors.open_due(world.now)
    assert sum(client.wakes for client in clients) - wakes == MAX_WAKES
    opening = world.doors.next_opening()
    assert opening is not None
    assert opening <= world.now


# --- Several buckets


def test_a_bucket_is_not_charged_for_who_waits_at_another() -> None:
    world = World()
    first, second = world.bucket(1e6, 1000), world.bucket(1, 1)
    client = Client(world, [(first, BYTES), (second, OPERATIONS)], [100, 100], endless=False)
    client.go_on()
    assert (len(client.begun), second.waiting) == (1, 1)
    assert first.level == 900
    world.run(5)
    assert client.finished


def test_a_bucket_that_has_agreed_fills_no_further_than_its_burst() -> None:
    world = World()
    first, second = world.bucket(1000, 500), world.bucket(1, 0.5)
    charges: Charges = [(first, BYTES), (second, OPERATIONS)]
    client = Client(world, charges, [0, 1000], endless=False)
    client.go_on()
    world.run(0.6)  # `second` opens after 0.5
    assert client.finished
    assert first.level == pytest.approx(500 - 1000 + 100)


def test_the_strictest_of_several_buckets_counts() -> None:
    world = World()
    charges = [
        (world.bucket(10e6, 1e5), BYTES),
        (world.bucket(1e6, 1e4), BYTES),
        (world.bucket(1e4, 1e2), OPERATIONS),
    ]
    clients = crowd(world, charges, [[1000], [10]])
    seconds = 5
    world.run(seconds)
    large, small = clients
    # At a request each time, the operations are shared; the bytes of so few do not count.
    bytes_ = (large.bytes + small.bytes) / (1e6 * seconds)
    operations = (len(large.begun) + len(small.begun)) / (1e4 * seconds)
    assert max(bytes_, operations) <= 1.01
    assert max(bytes_, operations) >= 0.98


@pytest.mark.parametrize("turned", [False, True], ids=["same order", "opposite orders"])
def test_who_stands_before_two_busy_buckets_is_not_starved(turned: bool) -> None:
    """Each has a crowd of its own that empties it at once, whenever it opens."""
    world = World()
    one, other = world.bucket(1e6, 1), world.bucket(1.37e6, 1)
    both: Charges = [(one, BYTES), (other, BYTES)]
    [pair, twin] = crowd(world, both, [[4 * KIB], [4 * KIB]])
    if turned:
        twin.gate.replace(both[::-1])
    lonely = crowd(world, [(one, BYTES)], [[4 * KIB]] * 4)
    others = crowd(world, [(other, BYTES)], [[4 * KIB]] * 4)
    seconds = 30
    world.run(seconds)
    first = sum(client.bytes for client in (pair, twin, *lonely))
    second = sum(client.bytes for client in (pair, twin, *others))
    assert first == pytest.approx(1e6 * seconds, rel=0.01)
    assert second == pytest.approx(1.37e6 * seconds, rel=0.01)
    # It waits twice, and so may get half of its share; never nothing.
    for client in (pair, twin):
        assert client.bytes >= 0.4 * 1e6 * seconds / 6


# --- Any costs, any arrivals

LENGTHS = st.sampled_from([0, 1, 512, 4 * KIB, 70_000, MIB])


@st.composite
def worlds(draw: st.DrawFn, *, buckets: int) -> tuple[World, list[Bucket], list[Client]]:
    world = World()
    made = [
        world.bucket(
            draw(st.sampled_from([50, 1e4, 1e6, 3e7])), draw(st.sampled_from([1, 1e4, 2e6]))
        )
        for _ in range(draw(st.integers(1, buckets)))
    ]
    clients = []
    for _ in range(draw(st.integers(1, 6))):
        chosen = (
            [draw(st.sampled_from(made))]
            if buckets == 1
            else draw(st.lists(st.sampled_from(made), min_size=1, unique=True))
        )
        charges = [(bucket, draw(st.sampled_from(Unit))) for bucket in chosen]
        lengths = draw(st.lists(LENGTHS, min_size=1, max_size=12))
        pause = draw(st.sampled_from([0, 0, 0.001, 0.5]))
        client = Client(world, charges, lengths, endless=False, pause=pause)
        world.at(world.now + draw(st.floats(0, 3)), client.go_on)
        clients.append(client)
    return world, made, clients


def costs_at(bucket: Bucket, clients: Sequence[Client]) -> list[tuple[float, int]]:
    """What has begun there, and what it cost, by time."""
    return sorted(
        (when, 1 if unit is OPERATIONS else length)
        for client in clients
        for its, unit in client.charges
        if its is bucket
        for when, length in client.begun
        if length or unit is OPERATIONS
    )


def check_windows(bucket: Bucket, costs: list[tuple[float, int]], overdraft: float) -> None:
    """In any window begins what its time gives, what was saved, and one request."""
    for at, (begin, _) in enumerate(costs):
        total = 0
        for when, cost in costs[at:]:
            total += cost
            allowed = bucket.per_second * (when - begin) + bucket.burst + overdraft
            assert total <= allowed * (1 + 1e-6) + 1e-3


LONG = 10**9
"""Seconds in which everything has its turn, at 50 bytes a second too."""


@given(worlds(buckets=1))
@settings(max_examples=3 * settings().max_examples, deadline=None)
def test_never_more_than_rate_and_burst_and_one_request(
    made: tuple[World, list[Bucket], list[Client]],
) -> None:
    world, buckets, clients = made
    world.run(LONG)
    assert all(client.finished for client in clients)
    assert world.doors.next_opening() is None
    for bucket in buckets:
        costs = costs_at(bucket, clients)
        check_windows(bucket, costs, max((cost for _, cost in costs), default=0))


@given(worlds(buckets=3))
@settings(max_examples=3 * settings().max_examples, deadline=None)
def test_before_several_buckets_one_request_of_each_gate_at_most_is_too_much(
    made: tuple[World, list[Bucket], list[Client]],
) -> None:
    world, buckets, clients = made
    world.run(LONG)
    assert all(client.finished for client in clients)
    assert world.doors.next_opening() is None
    for bucket in buckets:
        costs = costs_at(bucket, clients)
        largest = max((cost for _, cost in costs), default=0)
        check_windows(bucket, costs, largest * len(clients))


@given(worlds(buckets=3), st.lists(st.tuples(st.floats(0, 4), st.integers(0, 5)), max_size=6))
@settings(max_examples=2 * settings().max_examples, deadline=None)
def test_whoever_closes_in_between_holds_up_nobody(
    made: tuple[World, list[Bucket], list[Client]], closings: list[tuple[float, int]]
) -> None:
    world, buckets, clients = made
    gone = set()

    def close(number: int) -> None:
        gone.add(number)
        clients[number].gate.close()
        clients[number].endless, clients[number].lengths = False, ()

    for seconds, number in closings:
        if number < len(clients):
            world.at(world.now + seconds, lambda number=number: close(number))  # type: ignore[misc]
    world.run(LONG)
    assert all(client.finished for client in clients)
    assert not any(bucket.waiting for bucket in buckets)
    assert world.doors.next_opening() is None


@pytest.mark.parametrize("large", [MIB, 32 * MIB])
@pytest.mark.parametrize("others", [1, 15])
def test_small_requests_wait_for_one_large_one_at_most(others: int, large: int) -> None:
    """Those of a session that waits for each reply, too: not for one of every other session."""
    world = World()
    rate = 20 * MIB
    shared = world.bucket(rate, rate / 10)
    crowd = [Client(world, [(shared, BYTES)], [large]) for _ in range(others)]
    small = Client(world, [(shared, BYTES)], [4 * KIB], pause=0.001)
    for client in (*crowd, small):
        client.go_on()
    world.run(10 * large * (others + 1) / rate)
    # The first round is over then: all began at once, and each has had one.
    assert small.longest_wait <= 1.01 * large / rate + 0.01
    assert len(small.begun) >= 9 * (others + 1)
    sizes = [client.bytes for client in crowd]
    assert max(sizes) - min(sizes) <= 2 * large + shared.burst


# --- What is only watched


def watched(world: World, bucket: Bucket, unit: Unit = BYTES) -> tuple[Gate, list[float]]:
    """A gate that only watches a bucket, and the seconds that each request would have been held."""
    held: list[float] = []
    return Gate([], lambda: None, world.doors, [Watch(bucket, unit, held.append)]), held


def test_a_watched_bucket_holds_nothing_and_tells_what_it_would_have() -> None:
    """As many seconds as the same bytes take at the rate, without the burst and the last request."""
    world = World()
    gate, held = watched(world, world.bucket(8 * MIB, MIB))
    for _ in range(64):
        assert gate.take(MIB)
    assert sum(held) == pytest.approx((64 - 2) / 8)
    world.run(1)  # what it would have waited for is no debt: now there is room again
    assert gate.take(MIB)
    assert sum(held) == pytest.approx((64 - 2) / 8)


def test_what_is_slow_enough_would_not_be_held() -> None:
    world = World()
    gate, held = watched(world, world.bucket(2, 1), OPERATIONS)
    for _ in range(10):
        assert gate.take(0)
        world.run(0.5)
    assert not held


def test_a_rate_that_was_watched_begins_without_debts() -> None:
    world = World()
    bucket = world.bucket(1, 1)
    gate, held = watched(world, bucket)
    assert bucket.full
    for _ in range(3):
        gate.take(KIB)
    assert len(held) == 2
    assert not bucket.full  # who comes again is not to be watched with a full one
    assert bucket.level == 1
    assert Gate([(bucket, BYTES)], lambda: None, world.doors).take(KIB)
    assert bucket.level == 1 - KIB


def test_what_is_held_back_is_watched_once_it_goes_on() -> None:
    world = World()
    slow, slower = world.bucket(2, 1), world.bucket(1, 1)
    held: list[float] = []
    gate = Gate(
        [(slow, OPERATIONS)], lambda: None, world.doors, [Watch(slower, OPERATIONS, held.append)]
    )
    taken = 0
    for _ in range(100):
        taken += gate.take(0)
        world.run(0.1)
    assert taken == pytest.approx(20, abs=1)
    # It comes every half second, and could come every second.
    assert sum(held) == pytest.approx(10, abs=1)


def test_what_is_watched_may_be_exchanged() -> None:
    world = World()
    gate, held = watched(world, world.bucket(1, 1))
    gate.replace([], ())
    for _ in range(3):
        assert gate.take(KIB)
    assert not held
