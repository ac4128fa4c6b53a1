"""An export that a client has opened: where it is, the uplink to it, and what was promised of it.

The client's session begins with this. When the session goes over to another uplink, this is replaced as a
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gateway.access.chain import Bookkeeper, Compiled, Membership, Placed
from gateway.access.rules import Access, Grant
from gateway.counts.totals import OTHER
from gateway.hub.ending import do_all
from gateway.hub.session import Watched
from gateway.links.uplink import Uplink
from gateway.policy import Charge, Session
from gateway.protocol.export import Offer
from gateway.protocol.table import Table
from gateway.scan.plan import Plan
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.sessions.promise import plan_of
from gateway.upstream.link import Terms
from gateway.upstream.server import Server
from gateway.wire.limits import MAX_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Location:
    """Where an export is."""

    server: Server
    name: str
    """The export's name there."""
    switches: int = 0
    """How often the export has been switched. A connection from before a switch leads to another server, even
    if all else is the same."""

    def leads_where(self, other: Location) -> bool:
        """Say whether one connection may be used for both locations, before an export is chosen."""
        return (self.server, self.switches) == (other.server, other.switches)


@dataclass(frozen=True, slots=True)
class Limits:
    """What policies may change of a session that runs already."""

    charges: Sequence[Charge]
    watched: Watched
    most_in_flight: int


def limits_of(
    chain: Sequence[Placed], session: Session, bookkeeper: Bookkeeper | None = None
) -> Limits:
    """Give the limits that a chain of policies sets a session, whatever it was promised. No view is compiled,
    so of what the policies say of commands only the number in flight is taken. `bookkeeper` fills what is
    shared with other processes.
    """
    enforced = [placed for placed in chain if not placed.observed]
    table = Table(MAX_SIZE_BYTES)  # of no view: nothing that policies bar is too far out for it
    charges: list[Charge] = []
    for placed in enforced:
        placed.policy.commands(table)
        charged = placed.policy.charges(session)
        charges += charged
        for charge in charged:
            if charge.bucket.shared and bookkeeper is not None:
                bookkeeper.shares(placed, charge.bucket)
    watched = [
        (placed.name, charge)
        for placed in chain
        if placed.observed
        for charge in placed.policy.charges(session)
    ]
    most = table.most_in_flight
    return Limits(charges, watched, MAX_IN_FLIGHT if most is None else most)


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An export that a client has opened, and what it was promised of it."""

    grant: Grant
    access: Access
    """The rules by which the client was given it."""
    location: Location
    asked: Terms
    """What the upstream was asked when it was opened."""
    membership: Membership
    uplink: Uplink
    agreed: Compiled
    offer: Offer
    limits: Limits
    waits_in: set[Opened] = field(default_factory=set)
    """The set in which it is counted until it is relayed or closed."""

    def counted(self, opening: set[Opened]) -> Opened:
        """Count it among those that are about to be relayed, and give it."""
        counted = replace(self, waits_in=opening)
        opening.add(counted)
        return counted

    @property
    def counted_as(self) -> str:
        """The name under which it is counted what was done with it. Tickets are counted together: they come and
        go, and each would keep one of the few places.
        """
        return self.grant.name if self.grant.route.ticket is None else OTHER

    @property
    def stands(self) -> bool:
        """Its uplink has not been given up since it was opened."""
        return self.uplink.stands

    @property
    def plan(self) -> Plan:
        """What its session does with each command."""
        uplink = self.uplink
        return plan_of(
            self.agreed, self.offer, uplink.export, uplink.dialect, translated=uplink.why
        )

    def begins(self) -> None:
        """It is relayed from now on."""
        self.waits_in.discard(self)

    def close(self) -> None:
        """Close the uplink, and tell the policies."""
        do_all(self.begins, self.uplink.close, self.membership.leave)
