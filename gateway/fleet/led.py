"""The way of one client to the home of its disk, wherever that is: what connects, for the upstream that the
home is to its session (`gateway.sessions.led`).

Whoever connects, at first or after a loss, asks etcd where the home is, and asks again until there is one that
takes the client, or nobody waits any more. If the home has come here meanwhile, the connection is a pair of
sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR
from typing import TYPE_CHECKING

import trio

from gateway.fleet.door import NotTaken, lead
from gateway.fleet.member import AGAIN_SECONDS
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
    from gateway.tls.credentials import ClientCredentials

NO_HOME = "the disk has no home in the fleet now"

LAST_SECONDS = 1.0
"""How much sooner a search ends by itself than whoever waits for it gives it up: so it can say why."""


class WayHome:
    """The way of a client to the home of the disk at a `site`. `here` takes the client where the home is this
    gateway, and gives what leads there.
    """

    def __init__(
        self,
        member: FleetMember,
        given: Given,
        site: DiskSite,
        credentials: Callable[[NbdUri], ClientCredentials],
        here: Callable[[Given], trio.SocketStream],
        log: FilteringBoundLogger,
    ) -> None:
        self.site = site
        self.home: HomeRun | None = None
        """Where it has led last; None: here, or nowhere yet."""
        self._is_found = False
        self._member = member
        self._given = given
        self._credentials = credentials
        self._here = here
        self._log = log.bind(session=given.session_id)

    def server(self, server: Server) -> Server:
        """Give the home as the upstream of the client, in place of the server of the disk."""
        most = self._member.most_seconds(self.site) + LAST_SECONDS
        settings = led_settings(server.settings, most, self._member.settings.lease_seconds)
        backend = Backend(
            server.recipe.backend.target, (self.connect,), disks=disks_at_home(server)
        )
        return Server(Recipe(server.recipe.upstream, settings, backend, at_home=True))

    async def find(self) -> bool:
        """Find where the home is, for whoever connects next, and say whether it is another gateway. Raises
        `Refusal`.
        """
        self.home = await self._member.home_of(self.site, take=False)
        self._is_found = True
        return self.home is not None

    async def connect(self) -> Stream:
        """Connect to the home. Raises `DialError`."""
        why = NO_HOME
        with trio.move_on_after(self._member.most_seconds(self.site)):
            while True:
                try:
                    if not self._is_found:
                        await self.find()
                    self._is_found = False
                    return self._led_here() if self.home is None else await self._led_there()
                except Refusal as refusal:
                    why = str(refusal)
                except NotTaken as error:
                    assert self.home is not None
                    why = f"its home is {self.home.gateway}: {error}"
                    if not error.again:
                        raise DialError(why) from None
                except OSError as error:  # as many are open as may be
                    raise DialError(f"its home is here: {error.strerror}", down=True) from None
                await trio.sleep(AGAIN_SECONDS)
        raise DialError(why, down=True)

    def _led_here(self) -> Stream:
        self._log.info("client led to its home", gateway=self._member.settings.name)
        return self._here(self._given)

    async def _led_there(self) -> Stream:
        home = self.home
        assert home is not None
        try:
            address = parse_nbd_uri(home.address)
        except UriError as error:
            raise NotTaken(f"it says that it is at {error}", again=True) from None
        quiet = self._member.settings.lease_seconds
        stream = await lead(address, self._credentials(address), self._given, quiet)
        self._log.info("client led to its home", gateway=home.gateway)
        return stream

    def leave(self, holder: HomeRun | None, server: Server) -> None:
        """Cut what leads to a gateway that is not the home any more, for `holder` is, or (None) nobody: it need
        not know that, for it may be stopped, or cut off. Its sockets are those of `server`.
        """
        if self.home in (None, holder):
            return
        self._log.warning("home that says nothing is left", gateway=self.home.gateway)
        for sock in list(server.links):
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)
