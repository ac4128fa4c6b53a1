"""Two gateways, etcd and a server, and every order of what can happen to them in a bounded time.

Theory
------

Time goes in steps, and everything that can happen at one time can happen in any order. The gateways use the
logic of `gateway.fleet` and nothing else: `Lease`, `DiskRecord`, `Tenure`. What they take for granted are two
bounds, and the model keeps to them:

- from the look to the sending no more time passes than `margin`;
- from the sending until the server has it, no more than `wait`.

What must hold is one sentence: *when a gateway has begun to send, nothing comes any more from one before it.*

With `stops`, the first bound does not hold: a gateway may be stopped for any time between its look and its
sending. Then the sentence holds with a fence, and without one it does not.

The events, each of gateway G:

    renew G    it sends a renewal               renewed G  etcd handles that, or says that there is no lease
    hear G     it hears the answer              expire G   etcd ends its lease, and removes its key
    take G     etcd makes it the home           taken G    it hears that
    fence G    its fence has cut off those before it
    look G     it looks whether it may          send G     it sends its batch
    arrive G   the server has a batch of its    give G     all is answered: it gives the disk away
    given G    etcd handles that                tick       a step of time
    sleep      the same, and G's clock stands: of use only to show what another clock than BOOTTIME does

A state is a tuple, so that no state is looked at twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from gateway.fleet.lease import Lease
from gateway.fleet.record import DiskRecord, HomeRun
from gateway.fleet.tenure import Tenure, TenureStage

GATEWAYS = (HomeRun("a", "1"), HomeRun("b", "1"))


@dataclass(frozen=True)
class Terms:
    """How long all takes, and what is left out."""

    lease: int = 2
    margin: int = 1
    """What a gateway takes off its lease."""
    wait: int = 1
    """How long it waits for what may be on its way."""
    stop: int = 1
    """How long a gateway is between its look and its sending at most."""
    flight: int = 1
    """How long what was sent is on its way at most."""
    until: int = 4
    """When the world ends."""
    renewals: int = 1
    """How often each renews at most."""
    fence: bool = False
    stops: bool = False
    looks: bool = True
    counts_from_sending: bool = True
    clock_sleeps: bool = False
    gives_at_once: bool = False
    """A gateway gives the disk away while something of it is under way."""


class Gateway(NamedTuple):
    """What one gateway knows, and what is under way between it and etcd."""

    lease: Lease
    tenure: Tenure | None = None
    clock: int = 0
    renewing: tuple[str, int] | None = None
    """A renewal on its way ("asked"), or its answer ("lives", "over"); and when it was sent."""
    taking: tuple[HomeRun, ...] | None = None
    """The answer that it is the home, with those before it, is on its way."""
    giving: bool = False
    renewals: int = 0
    """How often it has renewed."""
    looked: int | None = None
    """It has looked at this time, and may send."""


class World(NamedTuple):
    """A state."""

    time: int
    gateways: tuple[Gateway, Gateway]
    ends: tuple[int | None, int | None]
    """When the lease of each ends in etcd."""
    home: int | None
    record: DiskRecord
    flying: tuple[tuple[int, int], ...] = ()
    """What is on its way to the server: whose it is, and when it was sent."""
    cut: frozenset[int] = frozenset()
    began: int = 0
    """Who has begun to send last."""
    wrong: bool = False


@dataclass
class Found:
    """What came of a search."""

    states: int = 0
    served: set[int] = field(default_factory=set)
    """Who has served at any time: a model in which nobody does finds nothing."""
    wrong: list[str] | None = None
    """The shortest way to two writers, as events."""


def first(terms: Terms) -> World:
    """Give the state in which the first gateway is the home, and has just been granted its lease."""
    fresh = Lease(terms.lease, terms.margin).renewed(0, terms.lease)
    a = Gateway(fresh, Tenure.begun((), 0, terms.wait, fence=terms.fence))
    return World(
        *(0, (a, Gateway(fresh)), (terms.lease, terms.lease), 0, DiskRecord((GATEWAYS[0],))),
    )


def following(world: World, terms: Terms) -> Iterator[tuple[str, World]]:
    """Give all that can happen next."""
    if may_pass(world, terms):
        yield "tick", passed(world, (1, 1))
        if terms.clock_sleeps:
            yield "sleep", passed(world, (0, 1))
    for g in (0, 1):
        yield from with_etcd(world, terms, g)
        yield from with_server(world, terms, g)


def may_pass(world: World, terms: Terms) -> bool:
    """Say whether time can pass: what has a bound has not reached it."""
    late = any(world.time - sent >= terms.flight for _g, sent in world.flying)
    stopped = any(
        each.looked is not None and world.time - each.looked >= terms.stop
        for each in world.gateways
    )
    return world.time < terms.until and not late and (terms.stops or not stopped)


def passed(world: World, clocks: tuple[int, int]) -> World:
    a, b = (
        each._replace(clock=each.clock + ticks)
        for each, ticks in zip(world.gateways, clocks, strict=True)
    )
    return world._replace(time=world.time + 1, gateways=(a, b))


def changed(world: World, g: int, **values: object) -> World:
    gateways = list(world.gateways)
    gateways[g] = gateways[g]._replace(**values)  # type: ignore[arg-type] # its fields by name
    return world._replace(gateways=(gateways[0], gateways[1]))


def ends_at(world: World, g: int, when: int | None) -> World:
    ends = list(world.ends)
    ends[g] = when
    return world._replace(ends=(ends[0], ends[1]))


def with_etcd(world: World, terms: Terms, g: int) -> Iterator[tuple[str, World]]:
    me, here = GATEWAYS[g], world.gateways[g]
    end = world.ends[g]
    match here.renewing:
        case None if end is not None and here.renewals < terms.renewals:
            after = changed(world, g, renewing=("asked", here.clock), renewals=here.renewals + 1)
            yield f"renew {g}", after
        case ("asked", sent):
            lives = end is not None
            after = changed(world, g, renewing=("lives" if lives else "over", sent))
            yield f"renewed {g}", ends_at(after, g, world.time + terms.lease) if lives else after
        case ("lives" | "over" as said, sent):
            counted = sent if terms.counts_from_sending else here.clock
            lease = here.lease.renewed(counted, terms.lease if said == "lives" else 0)
            tenure = here.tenure if said == "lives" or here.tenure is None else here.tenure.ended()
            yield f"hear {g}", changed(world, g, renewing=None, lease=lease, tenure=tenure)
    if end is not None and world.time >= end:
        gone = ends_at(world, g, None)
        yield f"expire {g}", gone._replace(home=None) if gone.home == g else gone
    over = here.tenure is None or here.tenure.stage is TenureStage.OVER
    if world.home is None and end is not None and over and here.taking is None and not here.giving:
        after = changed(world, g, taking=world.record.before(me))
        yield f"take {g}", after._replace(home=g, record=world.record.taken(me))
    if here.taking is not None:
        tenure = Tenure.begun(here.taking, here.clock, terms.wait, fence=terms.fence)
        yield f"taken {g}", changed(world, g, taking=None, tenure=tenure)
    if here.giving:
        after = changed(world, g, giving=False)
        if world.home == g:
            # Who has given it is no other state: nothing here goes by that.
            given = replace(world.record.given(me), given_by=None)
            after = after._replace(home=None, record=given)
        yield f"given {g}", after


def with_server(world: World, terms: Terms, g: int) -> Iterator[tuple[str, World]]:
    here = world.gateways[g]
    tenure = None if here.tenure is None else here.tenure.waited(here.clock)
    if here.looked is not None:
        sent = (*world.flying, (g, world.time))
        yield f"send {g}", changed(world, g, looked=None)._replace(flying=tuple(sorted(sent)))
    for batch in {each for each in world.flying if each[0] == g}:
        left = list(world.flying)
        left.remove(batch)
        late = world.began != g and g not in world.cut
        yield f"arrive {g}", world._replace(flying=tuple(left), wrong=late)
    if tenure is None:
        return
    if tenure.stage is TenureStage.CLEARING and terms.fence:
        cut = world.cut | {GATEWAYS.index(each) for each in tenure.before}
        # The program lets the new home through, if it had cut that off before.
        yield f"fence {g}", changed(world, g, tenure=tenure.fenced())._replace(cut=cut - {g})
    may = tenure.may(here.lease, here.clock)
    if not terms.looks:
        may = tenure.stage is TenureStage.SERVING
    under_way = here.looked is not None or any(whose == g for whose, _ in world.flying)
    if may and not under_way:
        yield f"look {g}", changed(world, g, looked=world.time, tenure=tenure)._replace(began=g)
    if tenure.stage is TenureStage.SERVING and (terms.gives_at_once or not under_way):
        yield f"give {g}", changed(world, g, tenure=tenure.ended(), giving=True)


def search(terms: Terms) -> Found:
    """Look at every state that can come about; stop at the first with two writers."""
    begin = first(terms)
    came: dict[World, tuple[World, str] | None] = {begin: None}
    found, row = Found(), [begin]
    while row:
        then: list[World] = []
        for world in row:
            found.states += 1
            for event, after in following(world, terms):
                if after in came:
                    continue
                came[after] = world, event
                if event.startswith("look"):
                    found.served.add(int(event[-1]))
                if after.wrong:
                    found.wrong = way(came, after)
                    return found
                then.append(after)
        row = then
    return found


def way(came: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    events: list[str] = []
    while (before := came[world]) is not None:
        world, event = before
        events.append(event)
    return events[::-1]
