"""The way of one client to the home of its disk, wherever that is: what connects, for the upstream that the
home is to its session (`gateway.sessions.led`).

Whoever connects, at first or after a loss, asks etcd where the home is, and asks again until there is one that
takes the client, or nobody waits any more. If the home has come here meanwhile, the connection is a pair of
sockets. A gateway that cannot be reached from here is passed over, where there is another one to take the disk.
It may be in etcd for as long as it likes: nobody but those who come in here knows.

A home that has ended a session is asked first whether it has kept all (`HomePeer`). If it has given the disk
away in good order it has: then nothing is lost, and nothing comes late. One that was killed says nothing, so
that there is a loss, as there is with any server. It is asked of one connection, by a name that no other has
(`Given.way`): the home may still have the session of an earlier connection, whose loss it has not noticed, and
what it has kept of that says nothing of this one.

A home that is stopped says nothing either, and its connections stay open. So whoever has waited for an answer
for longer than half of a lease has etcd asked whether that is the home still (`Ways.leave_silent`). Then the
connection is cut. The home may only have been about to say that it has given the disk away, so it is asked what
it has kept, as ever; one that is stopped costs the seconds that `gateway.fleet.door` gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from socket import SHUT_RDWR
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from gateway.fleet.door import NotTaken, ask_if_kept, lead
from gateway.fleet.following import AGAIN_SECONDS
from gateway.fleet.taking import NOT_ANSWERED
from gateway.log.ids import new_id
from gateway.net.dial import DialError
from gateway.protocol.errors import Refusal
from gateway.sessions.led import disks_at_home, led_settings
from gateway.upstream.backends import Backend
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server
from gateway.uri import NbdUri, UriError, parse_nbd_uri

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.fleet.member import FleetMember
    from gateway.fleet.record import HomeRun
    from gateway.handover.given import DiskSite, Given
    from gateway.net.drive import Stream
    from gateway.peer import Connection
    from gateway.sessions.service import Relayed, Service
    from gateway.tls.credentials import ClientCredentials

NO_HOME = "the disk has no home in the fleet now"

LAST_SECONDS = 1.0
"""How much sooner a search ends by itself than whoever waits for it gives it up: so it can say why."""

ONE_ANSWER = 0.5
"""What part of a search one gateway may take to answer. It may have to wait for as long as the search does, and
then it is asked once more; if it is stopped, it is known to be no home by then, and another one has time."""


class HomePeer:
    """A home at the other end of a connection (a `gateway.peer.Peer`); None: it was this gateway. `way`: what
    the connection is called.
    """

    provable = True

    def __init__(self, home: HomeRun | None, way: str) -> None:
        self.home = home
        self.way = way
        self.has_kept = False
        """It has said that all is durable that it has acknowledged, and that it has begun nothing else."""

    def gone(self) -> bool:
        """See `Peer`."""
        return self.has_kept

    def kept(self) -> bool:
        """See `Peer`."""
        return self.has_kept

    def serves(self, sock: Connection) -> None:
        """See `Peer`."""


class WayHome:
    """The way of a client to the home of the disk at a `site`. `here` takes the client where the home is this
    gateway, and gives what leads there; `kept_here` says whether this one, when it was the home, has kept all
    that was answered on the connection of this name.
    """

    def __init__(
        self,
        member: FleetMember,
        given: Given,
        site: DiskSite,
        credentials: Callable[[NbdUri], ClientCredentials],
        here: Callable[[Given], trio.SocketStream],
        kept_here: Callable[[str], bool],
        log: FilteringBoundLogger,
    ) -> None:
        self.site = site
        self.home: HomeRun | None = None
        """Where it has led last; None: here, or nowhere yet."""
        self.id_here = new_id()
        """What the client is called where it is led here: it is here twice then."""
        self._way = ""
        """What the newest connection is called."""
        self._is_found = False
        self._not_reached: set[str] = set()
        """Gateways that have not answered since it is looked for the home."""
        self._left: HomePeer | None = None
        """Where the last connection led, as long as that was not asked what it has kept."""
        self._member = member
        self._given = given
        self._credentials = credentials
        self._here, self._kept_here = here, kept_here
        self._quiet = member.settings.lease_seconds
        self._log = log.bind(session=given.session_id)

    def server(self, server: Server) -> Server:
        """Give the home as the upstream of the client, in place of the server of the disk."""
        most = self._member.most_seconds(self.site) + LAST_SECONDS
        settings = led_settings(server.settings, most, self._member.settings.lease_seconds)
        backend = Backend(
            server.recipe.backend.target,
            (self.connect,),
            peer_of=self._peer_of,
            disks=disks_at_home(server),
        )
        return Server(Recipe(server.recipe.upstream, settings, backend, at_home=True))

    async def find(self) -> bool:
        """Find where the home is, for whoever connects next, and say whether it is another gateway. Raises
        `Refusal`.
        """
        self.home = await self._member.home_of(self.site, take=False, but=self._not_reached)
        self._is_found = True
        return self.home is not None

    async def connect(self) -> Stream:
        """Connect to the home. Raises `DialError`."""
        why = NO_HOME
        with trio.move_on_after(self._member.most_seconds(self.site)):
            await self._hear_out()
            self._not_reached.clear()
            while True:
                try:
                    if not self._is_found:
                        await self.find()
                    self._is_found = False
                    self._way = new_id()
                    return self._led_here() if self.home is None else await self._led_there()
                except Refusal as refusal:
                    why = str(refusal)
                except NotTaken as error:
                    assert self.home is not None
                    why = f"its home is {self.home.gateway}: {error}"
                    if not error.again:
                        raise DialError(why) from None
                    if not error.answered:
                        self._not_reached.add(self.home.gateway)
                except OSError as error:  # as many are open as may be
                    raise DialError(f"its home is here: {error.strerror}", down=True) from None
                await trio.sleep(AGAIN_SECONDS)
        raise DialError(why, down=True)

    async def _hear_out(self) -> None:
        """Ask the home that was left what it has kept, once."""
        left, self._left = self._left, None
        if left is None:
            return
        if left.home is None:
            left.has_kept = self._kept_here(left.way)
        else:
            with suppress(UriError):
                address, credentials = self._at(left.home)
                left.has_kept = await ask_if_kept(address, credentials, left.way, self._quiet)

    def _peer_of(self, _stream: Stream) -> HomePeer:
        """Give who is at the other end of the connection that was just made."""
        self._left = HomePeer(self.home, self._way)
        return self._left

    def _at(self, home: HomeRun) -> tuple[NbdUri, ClientCredentials]:
        """Give what it takes to connect to a home. Raises `UriError`."""
        address = parse_nbd_uri(home.address)
        return address, self._credentials(address)

    def _led_here(self) -> Stream:
        self._log.info("client led to its home", gateway=self._member.settings.name)
        return self._here(replace(self._given, session_id=self.id_here, way=self._way))

    async def _led_there(self) -> Stream:
        home = self.home
        assert home is not None
        try:
            address, credentials = self._at(home)
        except UriError as error:
            raise NotTaken(f"it says that it is at {error}", again=True) from None
        given = replace(self._given, way=self._way)
        most = ONE_ANSWER * self._member.most_seconds(self.site)
        stream = await lead(address, credentials, given, self._quiet, most)
        self._log.info("client led to its home", gateway=home.gateway)
        return stream

    def leave(self, holder: HomeRun | None, server: Server) -> None:
        """Cut what leads to a gateway that is not the home any more, for `holder` is, or (None) nobody: it need
        not know that, for it may be stopped, or cut off. Or it gives the disk away at this moment, and holds
        what waits: so it is asked all the same what it has kept. Its sockets are those of `server`.
        """
        if self.home in (None, holder):
            return
        self._log.warning("home that says nothing is left", gateway=self.home.gateway)
        for sock in list(server.links):
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)


class Ways:
    """The ways of all clients that came in here, to homes elsewhere (`gateway.sessions.led.Gateways`). The rest
    is as for `WayHome`.
    """

    def __init__(
        self,
        member: FleetMember,
        credentials: Callable[[NbdUri], ClientCredentials],
        here: Callable[[Given], trio.SocketStream],
        kept_here: Callable[[str], bool],
        log: FilteringBoundLogger,
    ) -> None:
        self._member = member
        self._credentials = credentials
        self._here, self._kept_here = here, kept_here
        self._log = log
        self._ways: WeakKeyDictionary[Server, WayHome] = WeakKeyDictionary()

    async def leads(self, client: Given, server: Server) -> Server | None:
        """See `Gateways`."""
        assert client.site is not None
        way = WayHome(
            *(self._member, client, client.site, self._credentials),
            *(self._here, self._kept_here, self._log),
        )
        if not await way.find():
            return None
        home = way.server(server)
        self._ways[home] = way
        return home

    async def leave_silent(self, service: Service) -> None:
        """Leave homes that say nothing and are none any more, until cancelled."""
        waited: dict[str, frozenset[int]] = {}
        while True:
            await trio.sleep(self._member.settings.lease_seconds / 2)
            # Nothing here holds on to a session while it sleeps: it may end.
            waited = await self._leave_silent(service, waited)

    async def _leave_silent(
        self, service: Service, waited: dict[str, frozenset[int]]
    ) -> dict[str, frozenset[int]]:
        """Leave those by which something has waited since it was looked last, and give what waits now, by the
        ids of sessions.
        """
        led = [each for each in service.running if each.opened.location.server in self._ways]
        waits = {_id(each): frozenset(each.traffic.in_flight) for each in led}
        silent = [each for each in led if waits[_id(each)] & waited.get(_id(each), frozenset())]
        ways = [self._ways[each.opened.location.server] for each in silent]
        homes = [way.home for way in ways]
        holders: dict[DiskSite, HomeRun | None] = {}
        for running, way, home in zip(silent, ways, homes, strict=True):
            with suppress(*NOT_ANSWERED):
                if way.site not in holders:
                    holders[way.site] = await self._member.holder_of(way.site)
                # While etcd was asked, it may have been answered, or have gone over to another home.
                waits_still = (
                    waits[_id(running)] & waited[_id(running)] & {*running.traffic.in_flight}
                )
                if waits_still and way.home is home:
                    way.leave(holders[way.site], running.opened.location.server)
        return waits


def _id(running: Relayed) -> str:
    return running.membership.session.client.id
