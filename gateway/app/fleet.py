"""The gateway as one of a fleet: what of `gateway.fleet` it begins, and ends. Nothing of that is loaded where
there is none.

A client that is led here by another gateway comes in as if its TLS were in another process: it is given one end
of a socket pair, and its bytes are relayed between the other end and the connection to that gateway. One that
was led to another gateway, and whose disk has its home here by now, has the other end itself.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
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
    from gateway.fleet.terms import Terms
    from gateway.fleet.tickets import EtcdTickets
    from gateway.handover.given import DiskSite, Given
    from gateway.net.listen import Listener
    from gateway.sessions.service import Service
    from gateway.tickets.book import Book
    from gateway.tls.credentials import ClientCredentials, ServerCredentials
    from gateway.uri import NbdUri

HANDSHAKE_SECONDS = 10.0
"""How long another gateway may take from connecting to the end of its header."""

MOST_LED = 10_000
"""Connections by which other gateways lead clients here, at a time; each costs two descriptors beside its
client's own."""

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


class ToldToEnd(Exception):
    """A signal to end has come before the gateway was one of its fleet."""


@asynccontextmanager
async def fleet_of(
    config: Config, ends_with: str, signals: AsyncIterator[int]
) -> AsyncIterator[FleetPart | None]:
    """Become one of the fleet that a configuration names, if it names one. `ends_with`: what the gateway ends
    with beside signals, in words. Raises `StartError`, `ToldToEnd`.
    """
    if config.fleet is None:
        yield None
        return
    if ends_with:
        raise StartError(f"a gateway of a fleet does not end with {ends_with}: leave [fleet] out")
    try:
        from gateway.fleet.opening import EtcdNotOpened, opened_etcd
        from gateway.fleet.terms import terms_of
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
        terms = terms_of(settings)
        etcd = opened_etcd(settings)
    except CredentialsError as error:
        raise StartError(f"fleet: {error}") from None
    except EtcdNotOpened as error:
        raise StartError(f"fleet: {error}") from None
    async with etcd:
        part = FleetPart(config, etcd, server, client, terms)
        await part.open(signals)
        try:
            yield part
        finally:
            await part.aclose()


class FleetPart:
    """What the gateway has of a fleet."""

    def __init__(
        self,
        config: Config,
        etcd: Etcd,
        server: ServerCredentials,
        client: Callable[[NbdUri], ClientCredentials],
        terms: Terms,
    ) -> None:
        from gateway.app.fleet_disks import DisksHere
        from gateway.fleet.led import Ways
        from gateway.fleet.member import FleetMember
        from gateway.log import logger
        from gateway.workers.homes import counted_by, table_of

        assert config.fleet is not None
        self.settings = config.fleet
        self._terms = terms
        self._log = logger(config.log)
        self._etcd = etcd
        self._tickets: EtcdTickets | None = None
        try:
            table = table_of(config, counted=counted_by(config, kept=False))
        except PolicyError as error:
            raise StartError(f"policies: {error}") from None
        self._led = 0
        """Connections that other gateways have here. Two may be of one client: the older one has ended, and
        that has not been noticed here."""
        self._disks = DisksHere()
        self.member: FleetMember = FleetMember(config, table, etcd, self._disks, self._log)
        self._server = server
        self._ways = Ways(self.member, client, self._taken, self._disks.has_kept, self._log)
        self._doors: list[trio.SocketListener] = []
        self._service: Service
        self._listeners: list[Listener]
        self._take: Callable[[Listener, trio.SocketStream, Given], None]

    async def open(self, signals: AsyncIterator[int]) -> None:
        """Listen for the others, and become one of them, if no signal to end comes before. Raises `StartError`,
        `ToldToEnd`.
        """
        address = self.settings.address
        try:
            self._doors = list(await trio.open_tcp_listeners(address.port or 0, host=address.host))
        except OSError as error:
            raise StartError(f"fleet: cannot listen on {address}: {error}") from None
        try:
            await self._join(signals)
        except BaseException:
            await self.aclose()
            raise
        self._log.info("joined a fleet", gateway=self.settings.name, uri=str(address))

    async def _join(self, signals: AsyncIterator[int]) -> None:
        """It may have to be waited for longer than whoever ends the gateway waits."""
        from gateway.fleet.held import NotJoined

        why: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                nonlocal why
                async for number in signals:
                    if number in (signal.SIGTERM, signal.SIGINT):
                        why = ToldToEnd(signal.Signals(number).name)
                        nursery.cancel_scope.cancel()

            nursery.start_soon(hear)
            try:
                await self.member.join()
            except NotJoined as error:
                why = StartError(f"fleet: {error}")
            nursery.cancel_scope.cancel()
        if why is not None:
            raise why

    async def opened_book(self, config: Config) -> Book | None:
        """Give the tickets of the fleet, if it has any made. Raises `StartError`."""
        if not config.tickets.etcd:
            return None
        from gateway.fleet.answers import EtcdRefused, EtcdUnavailable
        from gateway.fleet.tickets import EtcdTickets
        from gateway.tickets.book import Book

        self._tickets = EtcdTickets(self._etcd, self.settings)
        book = Book(self._tickets, config)
        try:
            await self._tickets.read(book)
        except (EtcdUnavailable, EtcdRefused) as error:
            raise StartError(f"tickets: etcd: {error}") from None
        return book

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
        service.gateways = self._ways
        self._disks.begin(service, self.member.disk_of)
        for server in service.servers.values():
            server.guard = partial(self.member.guard, server.settings)

    async def run(self) -> None:
        """Keep the lease, and take whom others lead here, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.member.run)
            if self._tickets is not None:
                nursery.start_soon(self._tickets.run)
            nursery.start_soon(self._ways.leave_silent, self._service)
            nursery.start_soon(self._warn)

            def take(stream: trio.SocketStream) -> None:
                attempt = self._service.hub.attempt
                nursery.start_soon(attempt, partial(self._comes, stream))

            for door in self._doors:
                nursery.start_soon(take_clients, door, take, self._short)

    def _short(self, number: int) -> None:
        self._log.error("could not accept a gateway", why=why_short(number))

    async def _warn(self) -> None:
        """Warn of certificates that end, until cancelled."""
        from gateway.fleet.terms import ending
        from gateway.tls.keyring import WARN_SECONDS

        while True:
            for whose, what in ending(self._terms, datetime.now(UTC)):
                self._log.warning("certificate", of=whose, what=what)
            await trio.sleep(WARN_SECONDS)

    def shown(self) -> dict[str, Any]:
        """Show what the gateway is in its fleet (docs/status.md has the names)."""
        member = self.member
        drained = member.draining.shown()
        return {"gateway": self.settings.name, "homes": len(member.homes()), "drained": drained}

    # --- Clients that come

    async def _comes(self, plain: trio.SocketStream) -> None:
        """Take a client that another gateway leads here. Never raises for anything that a peer does."""
        from gateway.fleet.door import answer, received
        from gateway.handover.message import NotUnderstood
        from gateway.handover.relay import relay
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
                if isinstance(given, str):
                    kept = self._disks.has_kept(given)
                    await answer(stream, "kept" if kept else "not known")
                    return
                said, why = await self._home_here(given.site)
                await answer(stream, said, why)
                if said != "taken":
                    return
                ours, _nothing = take_socket(self._taken(given))
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

    def _taken(self, given: Given) -> trio.SocketStream:
        """Take a client, and give what leads to it. Raises `OSError`."""
        from gateway.handover.relay import stream_pair

        ours, inside = (
            trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in stream_pair()
        )
        self._take(self._listener_for(given), inside, given)
        return ours

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
