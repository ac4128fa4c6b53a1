"""A worker, as it knows itself: which disks have their home here, and what the supervisor says.

It begins with nothing. The supervisor tells it over a channel (`gateway.handover.channel`) what it serves: the
listening sockets (`doors`), the configuration in force, the table of homes (`homes`); and later to begin, to
reload, to drain. The configuration is the supervisor's own, and is not read from the file again: that may have
been written to since.

Another configuration comes in two steps. `reload` brings it, and the worker does everything that may fail and
says `prepared`; then all workers go over to it (`commit`), or none does (`cancelled`).

When the supervisor has ended, however it ended, the worker drains: it takes no more clients, and ends in good
order.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from gateway.admin.asking import answer_of
from gateway.admin.control import ControlAnswer, ControlSocket, Misunderstood, Verb
from gateway.config import Config
from gateway.handover.channel import Channel
from gateway.handover.given import DiskSite, Given
from gateway.handover.message import NO_ROOM, ChannelMessage, NotUnderstood
from gateway.log.ids import RUN
from gateway.net.listen import Listener
from gateway.protocol.errors import Refusal
from gateway.sessions.opened import Location
from gateway.upstream.errors import Unreachable
from gateway.upstream.listing import exports_of
from gateway.upstream.server import Server
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport
from gateway.workers.borrower import Borrower
from gateway.workers.doors import GivenDoors
from gateway.workers.handing import Handing
from gateway.workers.homes import HomeOf, Table, addresses_of, home_of, key_of, table_said
from gateway.workers.office import WorkerOffice
from gateway.workers.rendezvous import worker_of

LIST_SECONDS = 15.0
"""How long another worker may take to list a server's exports, as long as the server may take."""


class NothingToServe(Exception):
    """The supervisor has ended, or says what is not understood, before there was anything to serve."""


class Member:
    """The worker that this process is. `end` is its end of the channel."""

    def __init__(self, end: socket.socket) -> None:
        self._channel = Channel(end)
        self.number = 0
        self.workers = 1
        self.control = ControlSocket(None)
        """Who comes there is answered as over a control socket; so is who the supervisor passes on."""
        self.config: Config
        self._homes: Table = {}
        self._next_homes: Table = {}
        self.doors = GivenDoors()
        self._handing = Handing(self._channel)
        self.borrower = Borrower(self._channel.say)
        self._agreed: trio.MemorySendChannel[bool] | None = None
        self._office: WorkerOffice

    # --- The beginning

    async def greet(self) -> None:
        """Hear what there is to serve. Raises `NothingToServe`."""
        while True:
            try:
                message = await self._channel.next()
            except NotUnderstood as error:
                raise NothingToServe(str(error)) from None
            if message is None:
                raise NothingToServe("the supervisor has ended")
            if message.kind == "door":
                self.doors.add(message)
            elif message.kind == "serve":
                self.number, self.workers = message["worker"], message["workers"]
                self.borrower.loans.workers = self.workers
                self._homes = table_said(message["homes"])
                config, places = message.descriptors
                self.config = _config_in(config)
                self.doors.count_in(places)
                return

    async def failed(self, why: str) -> None:
        """Tell the supervisor why there is nothing to serve."""
        self._channel.say(ChannelMessage("prepared", {"run": RUN, "problems": [why]}))
        with trio.move_on_after(1):
            await self._channel.send_waiting()
        self._channel.close()

    async def run(self, office: WorkerOffice) -> None:
        """Say that all is there, and do what the supervisor says until it has ended; then drain."""
        self._office = office
        self._channel.say(ChannelMessage("prepared", {"run": RUN, "problems": []}))
        try:
            await self._channel.run(self._heard, self._lost)
        finally:
            self._handing.end()
            self.borrower.end()
        office.drain()

    # --- Places

    def comes(self, listener: Listener, number: int) -> None:
        """Count a client at a listener (1), or count it no more (-1)."""
        self.doors.count(listener, self.number, number)

    def there(self, listener: Listener) -> int:
        """Give how many clients a listener has in all workers."""
        return self.doors.there(listener)

    # --- Homes

    async def takes(self, client: Given, descriptor: int, export: str | None) -> bool:
        """See `gateway.handover.homes.Homes`. Raises `Hangup` if nobody knows who has the client now."""
        home = None if client.site is None else self._home_at(client.site)
        try:
            if home is None or home == self.number:
                return False
            await self._handing.give(client, descriptor, home)
        finally:
            os.close(descriptor)
        return True

    def stays(self, client: str, site: DiskSite | None) -> None:
        """See `gateway.handover.homes.Homes`: homes do not move, so nothing is to be remembered."""

    def _home_at(self, site: DiskSite) -> int | None:
        for address in site.where:
            at = address
            if address[0] == "upstream":
                command = self._office.servers[address[1]].settings.command
                assert command is not None  # the checks have refused what else has no address
                at = ("command", *command)
            key = key_of(self._homes[at], site.name)
            return None if key is None else worker_of(key, self.workers)
        return None

    def check(self, location: Location) -> None:
        """Serve no disk whose home is elsewhere: nobody should come here with one. Raises `Refusal`."""
        home = home_of(self._homes, location.server.settings, location.name, self.workers)
        if home not in (None, self.number):
            text = f"its home is worker {home}, and this is worker {self.number}"
            raise Refusal(Rep.ERR_SHUTDOWN, text)

    def cares_for(self, server: Server) -> bool:
        """Say whether to look after a server while no client asks: not if all its disks are elsewhere."""
        return self._is_elsewhere(server) is None

    def _is_elsewhere(self, server: Server) -> int | None:
        """Give the home of all disks of a server, if there is one and it is not here."""
        [first, *_] = addresses_of(server.settings)
        homed = self._homes[first]
        key = key_of(homed, "") if homed.kind is HomeOf.SERVER else None
        home = None if key is None else worker_of(key, self.workers)
        return None if home == self.number else home

    # --- Lists

    async def list_of(self, server: Server) -> list[ListedExport]:
        """Give a server's exports; where all its disks have another home, that one asks. Raises `Refusal`."""
        home = self._is_elsewhere(server)
        if home is None:
            return await exports_of(server)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._channel.say(ChannelMessage("wants", {"to": home}, descriptors=(theirs.detach(),)))
        answer: ControlAnswer | None = None
        async with stream:
            try:
                with trio.move_on_after(LIST_SECONDS):
                    answer = await answer_of(stream, "list", {"upstream": server.name}, None)
            except (Misunderstood, trio.BrokenResourceError):
                pass
        if answer is None or not answer.ok or answer.data is None:
            why = "it does not answer" if answer is None else "; ".join(answer.problems)
            raise Unreachable(f"upstream {server.name!r}, which worker {home} asks: {why}")
        return [ListedExport(name, text) for name, text in answer.data["exports"]]

    def verbs(self, goes_round: Callable[[], Awaitable[None]]) -> dict[str, Verb]:
        """Give the verbs that other workers ask for, and the supervisor; `goes_round` comes back if the hub
        does.
        """

        async def alive(_arguments: Mapping[str, Any]) -> ControlAnswer:
            await goes_round()
            return ControlAnswer(True, data={})

        async def list_(arguments: Mapping[str, Any]) -> ControlAnswer:
            server = self._office.servers.get(arguments.get("upstream", ""))
            if server is None:
                raise Misunderstood('"upstream" is the name of one')
            try:
                listed = await exports_of(server)
            except Refusal as refusal:
                return ControlAnswer(False, problems=(str(refusal),))
            return ControlAnswer(
                True, data={"exports": [(each.name, each.description) for each in listed]}
            )

        return {"list": list_, "alive": alive}

    # --- What the supervisor says

    def _heard(self, message: ChannelMessage) -> None:
        match message.kind:
            case "begin":
                self._office.begin_to_accept()
            case "client":
                self._handing.take(message, self._office)
            case "taken" | "refused":
                self._handing.answered(message)
            case "lent":
                self.borrower.heard(message.said)
            case "tokens":
                self.borrower.loans.granted(message["key"], *message["tokens"])
            case "asks":
                self._asked(message)
            case "door":
                self.doors.add(message)
            case "reload":
                self._next_homes = table_said(message["homes"])
                send, receive = trio.open_memory_channel[bool](1)
                self._agreed = send
                [descriptor] = message.descriptors
                self._office.beside(self._reload, _config_in(descriptor), receive)
            case "commit" | "cancelled" if self._agreed is not None:
                self._agreed.send_nowait(message.kind == "commit")
            case "drain":
                self._office.drain(message["milliseconds"] / 1000)
            case _:
                for descriptor in message.descriptors:
                    os.close(descriptor)

    def _lost(self, message: ChannelMessage) -> None:
        """Go on without what could not be taken here. Of a question whoever asks sees the end; of a listening
        socket, the reload that it is for says so.
        """
        if message.kind == "client":
            why = f"worker {self.number}: {NO_ROOM}"
            self._handing.refuse(message["client"]["number"], why)
        elif message.kind == "reload":
            self.doors.forget()
            said = {"run": RUN, "problems": [NO_ROOM]}
            self._channel.say(ChannelMessage("prepared", said))

    def _asked(self, message: ChannelMessage) -> None:
        [descriptor] = message.descriptors
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._office.beside(self.control.serve, stream)

    async def _reload(self, config: Config, agreed: trio.MemoryReceiveChannel[bool]) -> None:
        said = False

        async def agree() -> bool:
            nonlocal said
            said = True
            self._channel.say(ChannelMessage("prepared", {"run": RUN, "problems": []}))
            yes = await agreed.receive()
            if yes:
                self._homes, self.config = self._next_homes, config
            return yes

        answer = await self._office.reload_to(config, agree)
        if not said:
            self._channel.say(
                ChannelMessage(
                    "prepared", {"run": RUN, "problems": [*answer.problems] or ["it failed"]}
                )
            )
        self._agreed = None
        self.doors.forget()
        if answer.ok:
            said_now = {"done": [*answer.done], "problems": [*answer.problems]}
            self._channel.say(ChannelMessage("reloaded", said_now))


def _config_in(descriptor: int) -> Config:
    """Read the configuration that the supervisor has put into a file in memory, and close that."""
    try:  # not by reading on: all workers have one place in the file
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    config: Config = pickle.loads(content)
    return config
