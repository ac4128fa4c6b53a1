"""What all clients share: the configuration in force, its rules and upstreams, the hub, and who is here.

A reload exchanges the configuration, its rules and its upstreams in one step (`Service.reconfigure`). Sessions
that run keep the policies and the link with which they began, for they were promised what these make of the
export; rates, limits and a rule that ends them are taken from the rules in force.

This is longer than other modules: a reload changes all that clients share in one step, so it is in one place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway import clock
from gateway.access.chain import Bookkeeper, Membership
from gateway.access.rules import Access, NotGranted
from gateway.config import Config, Route
from gateway.counts.totals import Counts
from gateway.hub.ends import Cause
from gateway.hub.hub import Hub
from gateway.hub.session import Session as RelaySession
from gateway.links.disk import Disk, Disks
from gateway.links.opening import OwnNegotiation, SharedNegotiation
from gateway.links.shared import Trunks
from gateway.links.trunk import Trunk
from gateway.links.uplink import Share, Uplink
from gateway.losses.rule import PROOF_SECONDS, Losses
from gateway.net.tally import Tally
from gateway.protocol.server_role import ServerNegotiation
from gateway.scan.traffic import Traffic
from gateway.sessions.opened import Location, Opened, limits_of
from gateway.sessions.tracing import Traces
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.news import (
    CameBack,
    ForClientsAlone,
    Misnamed,
    News,
    TurnedAway,
    Unwell,
    WellAgain,
    WentDown,
)
from gateway.upstream.server import Server
from gateway.wire.handshake import ListedExport

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.handover.homes import Homes  # costs nothing where there is one process
    from gateway.sessions.led import Gateways  # costs nothing where there is one gateway
    from gateway.tickets.book import Book  # costs nothing where there are no tickets
    from gateway.tickets.kept import Over

DENIED_SECONDS = 10
"""How long a session may take to end that a new rule denies, or whose ticket is over: what is under way is
answered, and no more."""


TURNED_AWAY_LOG_SECONDS = 60
"""How often, at most, the log says how many clients an upstream that is down has turned away."""


MISNAMED_IN_A_LINE = 8
"""Names that a line of the log has, of a server that may list thousands."""


@dataclass(eq=False)
class Paused:
    """An export that nobody may open now, and whose sessions begin nothing."""

    by: str = "a command"
    """Who has paused it."""
    since: float = field(default_factory=time.time)
    """In seconds since the epoch."""
    elsewhere: bool = False
    """It stays paused, and another process has it: who waits here is to connect again."""
    _over: trio.Event = field(default_factory=trio.Event)

    def set(self, *, elsewhere: bool = False) -> None:
        """It goes on; or it does not, but nobody waits here any more."""
        self.elsewhere = elsewhere
        self._over.set()

    async def wait(self) -> None:
        """Wait until it goes on."""
        await self._over.wait()


@dataclass(eq=False)
class Relayed:
    """A session that is being relayed, from when the hub begins it."""

    name: str
    """Our name of the export."""
    membership: Membership
    opened: Opened
    """What the client was promised, and the uplink that its session has now."""
    disk: Disk
    """The disk that it is on now."""
    traffic: Traffic
    log: FilteringBoundLogger
    relaying: RelaySession
    nursery: trio.Nursery
    """Ends with the session."""
    began: float
    """When, in seconds of `time.monotonic`."""
    way: str = ""
    """See `gateway.handover.given.Given`."""


def _always(_server: Server) -> bool:
    return True


@dataclass
class Service:
    """What all clients of the gateway share."""

    config: Config
    servers: Mapping[str, Server]
    hub: Hub
    log: FilteringBoundLogger
    config_loaded: float = field(default_factory=time.time)
    """When that configuration came into force, in seconds of `time.time`."""
    draining: bool = False
    """Shutting down: no export is opened any more."""
    told_to_end: bool = False
    """The sessions are, too."""
    negotiations: set[ServerNegotiation] = field(default_factory=set)
    """The negotiations that are under way."""
    relayed: int = 0
    """How many clients have opened an export, and are not seen off yet."""
    counts: Counts = field(default_factory=Counts)
    """What sessions have done that have ended."""
    running: set[Relayed] = field(default_factory=set)
    opening: set[Opened] = field(default_factory=set)
    """Exports that were given to a client which is not relayed yet."""
    paused: dict[str, Paused] = field(default_factory=dict)
    """Exports (our names) that nobody may open now."""
    disabled: set[str] = field(default_factory=set)
    """Names of upstreams that an operator lets nobody connect to."""
    switched: dict[str, Location] = field(default_factory=dict)
    """Exports (our names) that are not where the configuration says."""
    switches: Counter[str] = field(default_factory=Counter)
    """How often each export has been switched."""
    traces: Traces = field(default_factory=Traces)
    """Who looks on."""
    tickets: Book | None = None
    """The exports that are made at run time. None: none can be."""
    homes: Homes | None = None
    """Knows which disks another process serves, while there is one."""
    named_elsewhere: Callable[[], Collection[str]] = tuple
    """Gives the exports that clients of another process have."""
    gateways: Gateways | None = None
    """Knows which disks another gateway serves, where there is a fleet of them."""
    may_serve: Callable[[Location], None] | None = None
    """Raises `Refusal` for a disk that no client should have come here for; None: all are served here."""
    bookkeeper: Bookkeeper | None = None
    """Keeps what policies count in all processes together; None: there is one process."""
    cares_for: Callable[[Server], bool] = _always
    """Says whether a server is looked after here while no client asks for it."""
    asks_for_list: Callable[[Server], Awaitable[list[ListedExport]]] | None = None
    """Gives a server's exports, where others may have to ask it; None: it is asked here."""

    def __post_init__(self) -> None:
        self.config, self.access = self.in_force(self.config, self.tickets)
        self.take_tickets(self.tickets)
        self.disks = Disks(self._losses_of, self.hub.start_soon, self._count_again)
        self.changed = trio.Event()
        """Set, and replaced, when there are other upstreams, or there is another reason to leave one alone."""
        self.turned_away: Tally[str] = Tally(TURNED_AWAY_LOG_SECONDS, self._say_turned_away)
        """Counts clients of upstreams that are down; somebody has to `run` it."""
        self.trunks = Trunks(self.hub, self.log)
        """Begins the links of exports that their clients share."""
        self._listen_to_servers()

    def in_force(self, config: Config, tickets: Book | None) -> tuple[Config, Access]:
        """Give a configuration with tickets, and its rules. Raises what policies raise that are made for it."""
        if tickets is None:
            return config, Access(config)
        return config.with_tickets(tickets.names), Access(
            config.with_tickets(tickets.names), tickets.chains
        )

    def take_tickets(self, tickets: Book | None) -> None:
        """Have the tickets of a book from now on, for which the configuration was made that is in force."""
        self.tickets = tickets
        if tickets is not None:
            tickets.come_into_force(self.config, self._end_tickets, self.log)

    def _end_tickets(self, over: Mapping[int, Over]) -> None:
        """End the sessions of tickets that are over, by the `id` of each."""
        for running in list(self.running):
            found = over.get(id(running.opened.grant.route.ticket))
            if found is not None:
                cause = Cause.EXPIRED if found.expired else Cause.BY_OPERATOR
                running.relaying.finish(found.why, DENIED_SECONDS, cause)

    @property
    def elsewhere(self) -> list[Server]:
        """The servers that exports have been switched to."""
        return [location.server for location in self.switched.values()]

    @property
    def led_to(self) -> list[Server]:
        """The servers that exports are led to, each once: those of the configuration, and others."""
        return list(dict.fromkeys([*self.servers.values(), *self.elsewhere]))

    def location(self, name: str, route: Route) -> Location | None:
        """Say where an export of ours is now; None if its upstream is not in the configuration any more."""
        if name in self.switched:
            return self.switched[name]
        server = self.servers.get(route.upstream)
        return (
            None if server is None else Location(server, route.upstream_name, self.switches[name])
        )

    def _losses_of(self, server: Server, name: str) -> Losses:
        """Make the losses of a disk."""

        def say(what: str, details: Mapping[str, object]) -> None:
            self.log.warning(what, upstream=server.name, export=name, **details)

        return Losses(self.hub.soon, partial(self.hub.later, PROOF_SECONDS), say)

    def _count_again(self, disk: Disk, size: int) -> None:
        """Count what was written once more with all exports whose sessions are on the disk."""
        self.counts.add_replayed(
            {each.opened.counted_as for each in self.running if each.disk is disk}, size
        )

    def disk_at(self, location: Location) -> Disk:
        """Give the disk at a location: the same one, whatever leads there."""
        return self.disks.at(location.server, location.name)

    def shares(self, location: Location, leaving: Collection[Trunk] = ()) -> bool:
        """Say whether whoever comes to a location shares connections to the disk there, where these trunks are
        about to be left. Where one does, all do, whatever leads them there: what is written again after a loss
        would undo what others have written beside it.
        """
        trunk = self.disks.trunk(location.server, location.name)
        return location.server.mode.wanted.shared or not (trunk is None or trunk in leaving)

    def negotiation(
        self, location: Location, *, listed: bool = False
    ) -> OwnNegotiation | SharedNegotiation:
        """Give what the questions of a client are asked of, which has a list if it is `listed`. Raises
        `Refusal`.
        """
        if self.may_serve is not None:
            self.may_serve(location)
        server = location.server
        at = partial(self.disks.at, server)
        if self.shares(location):
            return SharedNegotiation(self.trunks, server, at)
        return OwnNegotiation(self.trunks, server, at, listed=listed)

    async def opened_anew(
        self, location: Location, terms: Terms, trunk: Trunk | None, lowest: Rung
    ) -> Uplink:
        """Open an export as for a client that asks on these terms: by a share of `trunk` if its links are
        shared, else on no rung lower than `lowest`. Raises `Refusal`.
        """
        if trunk is not None:
            return Share(trunk)
        if self.may_serve is not None:
            self.may_serve(location)
        server = location.server
        negotiation = Negotiation(server, lowest=lowest)
        try:
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await self.trunks.uplink(server, partial(self.disks.at, server), terms, link)

    @contextmanager
    def session(self, running: Relayed) -> Iterator[None]:
        """Count a session among those that run."""
        self.running.add(running)
        try:
            yield
        finally:
            self.running.discard(running)

    def switch(self, name: str, location: Location, *, to_configured: bool) -> None:
        """Lead new clients of an export to a location. It may be that of the configuration."""
        self.switches[name] = location.switches
        if to_configured:
            self.switched.pop(name, None)
        else:
            self.switched[name] = location
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
        self.config_loaded = time.time()
        for name, location in list(self.switched.items()):
            if config.route(name) is None:
                del self.switched[name]
            else:
                now = switched.get(location.server, location.server)
                self.switched[name] = replace(location, server=now)
                self.log.warning(
                    "export stays where it was switched to, whatever the configuration says",
                    export=name,
                    server=location.server.name,
                )
        self._listen_to_servers()
        self._disable()
        self.note_change()
        return self.look_again()

    def disable(self, upstream: str, *, disabled: bool) -> bool:
        """Let nobody connect to the upstream of a name, or let them again; its sessions go on. Say whether
        there is such an upstream.
        """
        found = [each for each in self.led_to if each.name == upstream]
        if found and disabled:
            self.disabled.add(upstream)
        elif found:
            self.disabled.discard(upstream)
        self._disable()
        self.note_change()
        return bool(found)

    def _disable(self) -> None:
        """Have the servers of disabled upstreams refuse connections, also those that a reload has made."""
        for server in self.led_to:
            server.connector.disabled = server.name in self.disabled

    def note_change(self) -> None:
        """Have those look again who see to the upstreams."""
        self.changed.set()
        self.changed = trio.Event()

    def look_again(self) -> int:
        """Ask the rules again about all sessions that run. They keep what they were promised, but limits and
        rates are those in force, and a rule that says so ends them. Say how many sessions that ends.
        """
        return sum(self.look_at(running) for running in list(self.running))

    def look_at(self, running: Relayed) -> bool:
        """Ask the rules again about one session; say whether that ends it. Never raises: a policy that fails
        over one session must not keep the others, nor a reload, from the rules.
        """
        try:
            return self._look_at(running)
        except Exception:
            self.log.exception("session not held against the new rules", export=running.name)
            return False

    def _look_at(self, running: Relayed) -> bool:
        session, relaying = running.membership.session, running.relaying
        ticket = running.opened.grant.route.ticket
        if ticket is not None and self.config.issued.get(running.name) is not ticket:
            why = "the ticket was over before the session began"
            relaying.finish(why, DENIED_SECONDS, Cause.EXPIRED)
            return True
        client = replace(session.client, at=clock.here())
        try:
            grant = self.access.again(client, running.name)
        except NotGranted as denied:
            if denied.disconnect:
                why = f"access denied: {denied}"
                cause = Cause.EXPORT_GONE if denied.name is None else Cause.DENIED_BY_RELOAD
                relaying.finish(why, DENIED_SECONDS, cause)
            return denied.disconnect
        limits = limits_of(grant.chain, session, self.bookkeeper)
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
                down = "upstream is down" if news.entirely else "one server of several is down"
                self.log.warning(down, upstream=upstream, why=news.why)
            case CameBack():
                seconds, attempts = round(news.outage.seconds, 1), news.outage.failures
                back = "upstream is back" if news.entirely else "one server of several is back"
                self.log.info(back, upstream=upstream, seconds=seconds, attempts=attempts)
            case TurnedAway():
                self.turned_away.add(upstream)
            case Unwell():
                self.log.warning("health check failed", upstream=upstream, why=news.why)
            case WellAgain():
                self.log.info("health check succeeds again", upstream=upstream)
            case Misnamed():
                few, count = [*news.names[:MISNAMED_IN_A_LINE]], len(news.names)
                why = "their names are no strings (UTF-8, no NUL), so nobody can ask for them"
                self.log.warning(
                    "exports left out of the list",
                    upstream=upstream,
                    names=few,
                    count=count,
                    why=why,
                )
            case ForClientsAlone():
                self.log.warning(
                    "upstream's certificate is for clients", upstream=upstream, why=news.why
                )

    def _say_turned_away(self, upstream: str, count: int, _last: str) -> None:
        self.log.warning("clients turned away: upstream is down", upstream=upstream, count=count)

    def let_nobody_open(self) -> None:
        """Begin to shut down: refuse to open exports. The sessions go on."""
        self.draining = True
        self.note_change()
        for negotiation in self.negotiations:
            negotiation.shutting_down = True

    def drain(self) -> None:
        """Refuse to open exports, and end the sessions in good order."""
        self.let_nobody_open()
        self.told_to_end = True
        for over in self.paused.values():
            over.set()
        self.paused.clear()
        self.hub.finish("shutting down", self.config.drain_seconds)
