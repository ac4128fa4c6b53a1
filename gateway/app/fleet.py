"""The gateway as one of a fleet: what of `gateway.fleet` it begins, and ends. Nothing of that is loaded where
there is none.

A client that is led here by another gateway comes in as if its TLS were in another process: it is given one end
of a socket pair, and its bytes are relayed between the other end and the connection to that gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.loading import PolicyError
from gateway.admin.control import ControlAnswer, Verb
from gateway.app.descriptors import why_short
from gateway.config import Config
from gateway.handover.homes import door_of
from gateway.net.listen import take_clients
from gateway.upstream.configured import StartError

if TYPE_CHECKING:
    from gateway.fleet.etcd import Etcd
    from gateway.fleet.member import FleetMember
    from gateway.handover.given import DiskSite, Given
    from gateway.net.listen import Listener
    from gateway.net.options import RelaySocket
    from gateway.sessions.service import Service
    from gateway.tls.credentials import ClientCredentials, ServerCredentials
    from gateway.uri import NbdUri

HANDSHAKE_SECONDS = 10.0
"""How long another gateway may take from connecting to the end of its header."""

MOST_LED = 10_000
"""Clients that other gateways have led here, at a time; each costs two descriptors beside its own."""

REFUSED = {
    "reload": "a gateway of a fleet does not reload yet: end it, and start it with the other configuration",
    "pause": "an export is paused at its home, and it is not yet asked from anywhere else",
    "resume": "in a fleet nothing is paused yet",
    "switch": "in a fleet an export is not led to another server yet",
    "upgrade": "a gateway of a fleet does not upgrade under its clients yet: start another one in its place",
}
"""Verbs that a gateway of a fleet refuses, and what to do instead."""


def refusals() -> dict[str, Verb]:
    """Give what a gateway of a fleet answers to the verbs that it refuses."""

    async def refuse(text: str, _arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(False, problems=(text,))

    return {verb: partial(refuse, text) for verb, text in REFUSED.items()}


@asynccontextmanager
async def fleet_of(config: Config, ends_with: str) -> AsyncIterator[FleetPart | None]:
    """Become one of the fleet that a configuration names, if it names one. `ends_with`: what the gateway ends
    with beside signals, in words. Raises `StartError`.
    """
    if config.fleet is None:
        yield None
        return
    if ends_with:
        raise StartError(f"a gateway of a fleet does not end with {ends_with}: leave [fleet] out")
    try:
        from gateway.fleet.opening import EtcdNotOpened, opened_etcd
    except ImportError as error:
        raise StartError(
            f"[fleet] needs the extra fleet, pip install '.[fleet]': {error}"
        ) from None
    from gateway.tls.credentials import client_credentials, server_credentials
    from gateway.tls.errors import CredentialsError

    settings = config.fleet
    try:
        server = server_credentials(settings.certificates)

        def client(address: NbdUri) -> ClientCredentials:
            return client_credentials(settings.certificates, hostname=address.host)

        client(settings.address)
        etcd = opened_etcd(settings)
    except CredentialsError as error:
        raise StartError(f"fleet: {error}") from None
    except EtcdNotOpened as error:
        raise StartError(f"fleet: {error}") from None
    async with etcd:
        part = FleetPart(config, etcd, server, client)
        await part.open()
        try:
            yield part
        finally:
            await part.aclose()


class FleetPart:
    """What the gateway has of a fleet (a `FleetOffice`, and `gateway.handover.homes.Gateways`)."""

    def __init__(
        self,
        config: Config,
        etcd: Etcd,
        server: ServerCredentials,
        client: Callable[[NbdUri], ClientCredentials],
    ) -> None:
        from gateway.fleet.member import FleetMember
        from gateway.log import logger
        from gateway.workers.homes import counted_by, table_of

        assert config.fleet is not None
        self.settings = config.fleet
        self._log = logger(config.log)
        try:
            table = table_of(config, counted=counted_by(config, kept=False))
        except PolicyError as error:
            raise StartError(f"policies: {error}") from None
        self.member: FleetMember = FleetMember(config, table, etcd, self, self._log)
        self._server, self._client = server, client
        self._doors: list[trio.SocketListener] = []
        self._service: Service
        self._listeners: list[Listener]
        self._take: Callable[[Listener, trio.SocketStream, Given], None]
        self._led = 0

    async def open(self) -> None:
        """Listen for the others, and become one of them. Raises `StartError`."""
        from gateway.fleet.member import NotJoined

        address = self.settings.address
        try:
            self._doors = list(await trio.open_tcp_listeners(address.port or 0, host=address.host))
        except OSError as error:
            raise StartError(f"fleet: cannot listen on {address}: {error}") from None
        try:
            await self.member.join()
        except NotJoined as error:
            await self.aclose()
            raise StartError(f"fleet: {error}") from None
        self._log.info("joined a fleet", gateway=self.settings.name, uri=str(address))

    async def aclose(self) -> None:
        """Listen no more."""
        for door in self._doors:
            with trio.CancelScope(shield=True):
                await door.aclose()

    def begin(
        self,
        service: Service,
        listeners: list[Listener],
        take: Callable[[Listener, trio.SocketStream, Given], None],
    ) -> None:
        """Serve disks as one of the fleet from now on."""
        self._service, self._listeners, self._take = service, listeners, take
        service.gateways = self
        for server in service.servers.values():
            server.guard = partial(self.member.guard, server.settings)

    async def run(self) -> None:
        """Keep the lease, and take whom others lead here, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.member.run)

            def take(stream: trio.SocketStream) -> None:
                attempt = self._service.hub.attempt
                nursery.start_soon(attempt, partial(self._comes, stream))

            for door in self._doors:
                nursery.start_soon(take_clients, door, take, self._short)

    def _short(self, number: int) -> None:
        self._log.error("could not accept a gateway", why=why_short(number))

    # --- What the member asks of the gateway

    def end_sessions(self, disk: str, why: str) -> None:
        """See `FleetOffice`."""
        from gateway.hub.ends import Cause

        for running in list(self._service.running):
            location = running.opened.location
            if self.member.disk_of(location.server.settings, location.name) == disk:
                running.relaying.finish(why, 0, Cause.UPSTREAM_LOST)

    def is_used(self, disk: str) -> bool:
        """See `FleetOffice`."""
        service = self._service
        locations = [each.opened.location for each in service.running]
        locations += [each.location for each in service.opening]
        return any(
            self.member.disk_of(each.server.settings, each.name) == disk for each in locations
        )

    # --- Clients that go

    async def takes(self, client: Given) -> tuple[RelaySocket, bytes] | None:
        """See `Gateways`."""
        from gateway.fleet.door import NotTaken, lead
        from gateway.fleet.member import AGAIN_SECONDS
        from gateway.protocol.errors import Refusal
        from gateway.uri import UriError, parse_nbd_uri
        from gateway.wire.constants import Rep

        assert client.site is not None
        why = ""
        with trio.move_on_after(self.member.most_seconds(client.site)):
            while True:
                home = await self.member.home_of(client.site, take=False)
                if home is None:
                    return None
                try:
                    address = parse_nbd_uri(home.address)
                    quiet = self.settings.lease_seconds
                    led = await lead(address, self._client(address), client, quiet)
                except NotTaken as error:
                    why = f"its home is {home.gateway}: {error}"
                    if not error.again:
                        raise Refusal(Rep.ERR_SHUTDOWN, why) from None
                except UriError as error:
                    why = f"its home is {home.gateway}, and says that it is at {error}"
                else:
                    self._log.info(
                        "client led to its home", session=client.session_id, gateway=home.gateway
                    )
                    return led
                await trio.sleep(AGAIN_SECONDS)
        raise Refusal(Rep.ERR_SHUTDOWN, why or "the disk has no home in the fleet now")

    # --- Clients that come

    async def _comes(self, plain: trio.SocketStream) -> None:
        """Take a client that another gateway leads here. Never raises for anything that a peer does."""
        from gateway.fleet.door import answer, received
        from gateway.handover.message import NotUnderstood
        from gateway.handover.relay import relay, stream_pair
        from gateway.net.drive import take_socket
        from gateway.net.options import tune
        from gateway.net.secure import TlsError
        from gateway.wire.errors import WireError

        seconds = self.settings.lease_seconds
        async with plain:
            if self._led >= MOST_LED:
                return
            self._led += 1
            try:
                tune(plain.socket, keepalive_seconds=seconds, user_timeout_seconds=seconds)  # type: ignore[arg-type] # as a plain one
                with trio.fail_after(HANDSHAKE_SECONDS):
                    stream, given = await received(plain, self._server)
                said, why = await self._home_here(given.site)
                await answer(stream, said, why)
                if said != "taken":
                    return
                ours, theirs = stream_pair()
                inside = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
                self._take(self._listener_for(given), inside, given)
                sock, early = take_socket(stream)
                try:
                    await relay(sock, ours, early)
                finally:
                    sock.close()
                    ours.close()
            except (TlsError, WireError, NotUnderstood, OSError) as error:
                self._log.warning("nobody of the fleet", why=str(error))
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                self._log.warning("nobody of the fleet", why=str(error) or "it says nothing")
            finally:
                self._led -= 1

    async def _home_here(self, site: DiskSite | None) -> tuple[str, str]:
        """Say whether a disk is served here now, and if not, why."""
        from gateway.protocol.errors import Refusal

        if site is None or not all(self.member.knows(each) for each in site.where):
            return "refused", "this gateway has no upstream with that server: configurations differ"
        if self._service.draining:
            return "elsewhere", "the gateway is shutting down"
        try:
            home = await self.member.home_of(site, take=True)
        except Refusal as refusal:
            return "refused", str(refusal)
        return ("taken", "") if home is None else ("elsewhere", f"its home is {home.gateway}")

    def _listener_for(self, given: Given) -> Listener:
        """Give the listener whose settings a client has: the same as where it came in, or else the first."""
        same = (each for each in self._listeners if door_of(each.settings.uri) == given.door)
        return next(same, self._listeners[0])
