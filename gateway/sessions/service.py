"""What all clients share: the configuration in force, its rules and upstreams, the hub, and who is here.

A reload exchanges the configuration, its rules and its upstreams in one step (`Service.reconfigure`). Sessions
that run keep the policies and the link with which they began, for they were promised what these make of the
export; rates, limits and a rule that ends them are taken from the rules in force.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.access.chain import Membership, Placed
from gateway.access.rules import Access, NotGranted
from gateway.config import Config, Route
from gateway.hub.hub import Hub
from gateway.hub.session import Session as RelaySession
from gateway.hub.session import Watched
from gateway.links.disk import Disk, Disks
from gateway.links.shared import SharedNegotiation, Trunks, begun
from gateway.links.trunk import Joined, Trunk
from gateway.losses.rule import PROOF_SECONDS, Losses
from gateway.net.tally import Tally
from gateway.policy import Charge, Session
from gateway.protocol.errors import Refusal
from gateway.protocol.server_role import ServerNegotiation
from gateway.protocol.table import Table
from gateway.scan.traffic import MAX_IN_FLIGHT, Traffic
from gateway.upstream.allowance import Allowance
from gateway.upstream.coherence import check_required
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.news import CameBack, News, TurnedAway, Unwell, WellAgain, WentDown
from gateway.upstream.server import Server
from gateway.wire.limits import MAX_SIZE_BYTES

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.sessions.transmit import Opened


DENIED_SECONDS = 10
"""How long a session may take to end that a new rule denies: what is under way is answered, and no more."""


TURNED_AWAY_LOG_SECONDS = 60
"""How often the log says at most how many clients an upstream that is down has cost."""


PART = "one server of several"
"""What is said to be down when another of the upstream's URIs works."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What policies change of a session that runs already."""

    charges: Sequence[Charge]
    watched: Watched
    most_in_flight: int


def limits_of(chain: Sequence[Placed], session: Session) -> Limits:
    """Give the limits that a chain of policies sets a session, whatever it was promised: no view is compiled,
    so of what the policies say of commands only the number in flight is taken.
    """
    enforced = [placed.policy for placed in chain if not placed.observed]
    table = Table(MAX_SIZE_BYTES)  # of no view: nothing that policies bar is too far out for it
    for policy in enforced:
        policy.commands(table)
    charges = [charge for policy in enforced for charge in policy.charges(session)]
    watched = [
        (placed.name, charge)
        for placed in chain
        if placed.observed
        for charge in placed.policy.charges(session)
    ]
    most = table.most_in_flight
    return Limits(charges, watched, MAX_IN_FLIGHT if most is None else most)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an export is."""

    server: Server
    name: str
    """The export's name there."""
    switches: int = 0
    """How often the export has been switched: a connection from before that is to another server, even where
    all else is the same.
    """

    def leads_where(self, other: Place) -> bool:
        """Say whether one connection may be used for both, before an export is chosen."""
        return (self.server, self.switches) == (other.server, other.switches)


@dataclass(eq=False)
class Running:
    """A session that is being relayed."""

    name: str
    """The export's, in our configuration."""
    membership: Membership
    opened: Opened
    """What the client was promised; and the link that it has now."""
    disk: Disk
    """The one that it is on now."""
    traffic: Traffic
    log: FilteringBoundLogger
    relaying: RelaySession | None = None
    """None: the hub has not begun it yet. It is held against the rules then, if they are others than at GO."""
    nursery: trio.Nursery | None = None
    """Ends with the session."""


@dataclass
class Service:
    """One for the whole gateway."""

    config: Config
    servers: Mapping[str, Server]
    hub: Hub
    log: FilteringBoundLogger
    draining: bool = False
    """Shutting down: no export is opened any more."""
    negotiations: set[ServerNegotiation] = field(default_factory=set)
    """Those that are under way."""
    relayed: int = 0
    """Clients that have opened an export and are not seen off yet."""
    running: set[Running] = field(default_factory=set)
    opening: set[Opened] = field(default_factory=set)
    """Given to a client that is not relayed yet."""
    paused: dict[str, trio.Event] = field(default_factory=dict)
    """Exports (our names) that nobody may open now, and the event of their pause's end."""
    switched: dict[str, Place] = field(default_factory=dict)
    """Exports (our names) that are not where the configuration says."""
    switches: Counter[str] = field(default_factory=Counter)
    """How often each export has been switched."""

    def __post_init__(self) -> None:
        self.access = Access(self.config)
        self.disks = Disks(self._losses_of, self.hub.start_soon)
        self.changed = trio.Event()
        """Set, and replaced, when there are other upstreams, or another reason to leave one alone."""
        self.turned_away = Tally(TURNED_AWAY_LOG_SECONDS, self._say_turned_away)
        """Clients of upstreams that are down; somebody has to `run` it."""
        self.trunks = Trunks(self.hub, self.log)
        """Begins the links of exports that their clients share."""
        self._listen_to_servers()

    @property
    def elsewhere(self) -> list[Server]:
        """The servers that exports have been switched to."""
        return [place.server for place in self.switched.values()]

    @property
    def led_to(self) -> list[Server]:
        """The servers that exports are led to, each once: those of the configuration, and others."""
        return list(dict.fromkeys([*self.servers.values(), *self.elsewhere]))

    def place(self, name: str, route: Route) -> Place | None:
        """Say where an export of ours is now; None if its upstream is not in the configuration any more."""
        if name in self.switched:
            return self.switched[name]
        server = self.servers.get(route.upstream)
        return None if server is None else Place(server, route.upstream_name, self.switches[name])

    def _losses_of(self, server: Server, name: str) -> Losses:
        """Make what keeps in mind what is lost of a disk."""

        def say(what: str, details: Mapping[str, object]) -> None:
            self.log.warning(what, upstream=server.name, export=name, **details)

        return Losses(self.hub.soon, partial(self.hub.later, PROOF_SECONDS), say)

    def disk_at(self, place: Place) -> Disk:
        """Give the disk that is at a place: the same whatever leads there."""
        return self.disks.at(place.server, place.name)

    def negotiation(self, place: Place) -> Negotiation | SharedNegotiation:
        """Give what a client's questions are asked of. Links that are several are made together, lest one that
        was made ahead leads to the server that was there before. Where clients share connections to the disk,
        all do: what is written again after a loss would undo what others have written beside it.
        """
        server = place.server
        if server.mode.wanted.shared or self.disk_at(place).trunk is not None:
            return SharedNegotiation(self.trunks, server, partial(self.disks.at, server))
        return Negotiation(server, warm=server.mode.wanted.count == 1)

    async def bundled(
        self, place: Place, terms: Terms, link: Link, allowance: Allowance | None = None
    ) -> Link | Joined:
        """Give a client's own link as it is to be used: as it is, or as the first of a bundle, whose other
        links may take what is left of `allowance`. Raises `Refusal`, and then the link is closed.
        """
        server = place.server
        decision = server.decide([link.export], link.quirks)
        if not server.mode.bundled(decision.count):
            try:
                if server.mode.required:
                    check_required(server.mode.wanted, decision)
            except Refusal:
                link.close()
                raise
            if decision.reason and server.told.is_news(terms.name, decision.reason):
                self.log.warning(decision.reason, upstream=server.name, export=terms.name)
            return link
        disk = self.disk_at(place)
        trunk = await begun(server, terms, link, self.hub, disk, self.log, allowance)
        return trunk.join()

    async def opened_anew(
        self, place: Place, terms: Terms, trunk: Trunk | None, lowest: Rung
    ) -> Link | Joined:
        """Open an export as for a client that asks on these terms: by a part in `trunk` where its links are
        shared; else on no rung lower than that. Raises `Refusal`.
        """
        if trunk is not None:
            return trunk.join()
        negotiation = Negotiation(place.server, lowest=lowest)
        try:
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await self.bundled(place, terms, link)

    @contextmanager
    def session(self, running: Running) -> Iterator[None]:
        """Have a session be one of those that run."""
        self.running.add(running)
        try:
            yield
        finally:
            self.running.discard(running)

    def switch(self, name: str, place: Place, *, to_configured: bool) -> None:
        """Lead new clients of an export to a place, which may be that of the configuration."""
        self.switches[name] = place.switches
        if to_configured:
            self.switched.pop(name, None)
        else:
            self.switched[name] = place
        self._listen_to_servers()
        self.note_change()

    def reconfigure(
        self,
        config: Config,
        access: Access,
        servers: Mapping[str, Server],
        switched: Mapping[Server, Server] = {},
    ) -> int:
        """Go over to another configuration, whose rules inherit what those before have counted; say how many
        sessions it ends. `switched` gives what leads from now on to where exports were switched. Never raises.
        """
        for policy, error in access.inherit(self.access):
            self.log.error("a policy failed at a reload", policy=policy, exc_info=error)
        self.config, self.access, self.servers = config, access, servers
        for name, place in list(self.switched.items()):
            if config.route(name) is None:
                del self.switched[name]
            else:
                now = switched.get(place.server, place.server)
                self.switched[name] = replace(place, server=now)
                self.log.warning(
                    "export stays where it was switched to, whatever the configuration says",
                    export=name,
                    server=place.server.name,
                )
        self._listen_to_servers()
        self.note_change()
        return self.look_again()

    def note_change(self) -> None:
        """Have who sees to the upstreams look again."""
        self.changed.set()
        self.changed = trio.Event()

    def look_again(self) -> int:
        """Hold the sessions that run against the rules as they are now. They keep what they were promised,
        but limits and rates are those in force, and a rule that says so ends them: say how many.
        """
        return sum(self.look_at(running) for running in list(self.running))

    def look_at(self, running: Running) -> bool:
        """Hold one session against the rules; say whether that ends it. Never raises: a policy that fails over
        one session must not keep the others, nor a reload, from the rules.
        """
        try:
            return running.relaying is not None and self._look_at(running, running.relaying)
        except Exception:
            self.log.exception("session not held against the new rules", export=running.name)
            return False

    def _look_at(self, running: Running, relaying: RelaySession) -> bool:
        session = running.membership.session
        client = replace(session.client, at=datetime.now().astimezone())
        try:
            grant = self.access.again(client, running.name)
        except NotGranted as denied:
            if denied.disconnect:
                relaying.finish(f"access denied: {denied}", DENIED_SECONDS)
            return denied.disconnect
        limits = limits_of(grant.chain, session)
        running.traffic.most_in_flight = limits.most_in_flight
        relaying.throttle(limits.charges, limits.watched)
        return False

    def _listen_to_servers(self) -> None:
        # The last has the say of how many connections a server may have: that is the configuration's.
        for server in reversed(self.led_to):
            server.come_into_force(partial(self._say, server.name))

    def _say(self, upstream: str, news: News) -> None:
        match news:
            case WentDown():
                what = "upstream" if news.entirely else PART
                self.log.warning(f"{what} is down", upstream=upstream, why=news.why)
            case CameBack():
                seconds, attempts = round(news.outage.seconds, 1), news.outage.failures
                what = "upstream" if news.entirely else PART
                self.log.info(
                    f"{what} is back", upstream=upstream, seconds=seconds, attempts=attempts
                )
            case TurnedAway():
                self.turned_away.add(upstream)
            case Unwell():
                self.log.warning("health check failed", upstream=upstream, why=news.why)
            case WellAgain():
                self.log.info("health check succeeds again", upstream=upstream)

    def _say_turned_away(self, upstream: str, count: int) -> None:
        self.log.warning("clients turned away: upstream is down", upstream=upstream, count=count)

    def drain(self) -> None:
        """Begin to shut down: refuse to open exports, and end the sessions in good order."""
        self.draining = True
        for over in self.paused.values():
            over.set()
        self.paused.clear()
        self.note_change()
        for negotiation in self.negotiations:
            negotiation.shutting_down = True
        self.hub.finish("shutting down", self.config.drain_seconds)
