"""A worker, as it knows itself: which disks have their home here, who is handed over, what the supervisor says.

It begins with nothing. The supervisor tells it over a channel (`gateway.handover.channel`) what it serves: the
listening sockets, the configuration in force, the table of homes (`gateway.workers.homes`); and later to begin,
to reload, to drain. The configuration is the supervisor's own, and is not read from the file again: that may
have been written to since.

A client that asks for a disk with another home is handed to the supervisor, which hands it to that worker, and
says what came of it. Until then nobody here reads from the client or tells it anything, and there is no limit
of time: the other worker may be serving it already. If the supervisor dies meanwhile, nobody knows; so the
client's socket is closed here without a word.

When the supervisor has ended, however it ended, the worker drains: it takes no more clients, and ends in good
order.

This is longer than other modules: what the supervisor says and what is done then are in one place.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import trio

from gateway.admin.asking import answer_of
from gateway.admin.control import ControlAnswer, ControlSocket, Misunderstood, Verb
from gateway.config import Config, Listen
from gateway.handover.channel import Channel
from gateway.handover.given import DiskSite, Given
from gateway.handover.homes import door_of
from gateway.handover.message import NO_ROOM, ChannelMessage, NotUnderstood
from gateway.log.ids import RUN
from gateway.net.listen import Listener, ListenError
from gateway.protocol.errors import Hangup, Refusal
from gateway.sessions.opened import Location
from gateway.upstream.errors import Unreachable
from gateway.upstream.listing import exports_of
from gateway.upstream.server import Server
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport
from gateway.workers.borrower import Borrower
from gateway.workers.homes import HomeOf, Table, addresses_of, home_of, key_of, table_said
from gateway.workers.places import Places
from gateway.workers.rendezvous import worker_of

LIST_SECONDS = 15.0
"""How long another worker may take to list a server's exports, as long as the server may take."""


MOST_TIMES = 3
"""How often a client is handed over whose home dies meanwhile."""


class Office(Protocol):
    """The gateway of which this is a worker."""

    def begin_to_accept(self) -> None:
        """Take clients from now on."""

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client that another worker has handed over."""

    def listener_at(self, door: tuple[object, ...]) -> Listener | None:
        """Give the listener at a door."""

    def drain(self, seconds: float = 0) -> None:
        """End in good order, and let sessions go on for so many seconds before."""

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers of the configuration, by their names."""

    @property
    def ends(self) -> bool:
        """Nothing new is begun."""

    async def reload_to(
        self, config: Config, agreed: Callable[[], Awaitable[bool]]
    ) -> ControlAnswer:
        """Go over to another configuration, if nothing is in the way here and it is `agreed`."""

    def beside(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Do something beside the clients."""


class NothingToServe(Exception):
    """The supervisor has ended, or says what is not understood, before there was anything to serve."""


@dataclass(eq=False)
class _OnItsWay:
    """A client on its way to another worker."""

    answered: trio.Event = field(default_factory=trio.Event)
    taken: bool | None = None
    """None: nobody knows."""
    why: str = ""
    again: bool = False
    """The worker has died that was to have it, and there is another one, or will be."""

    def end(self, *, taken: bool, why: str = "", again: bool = False) -> None:
        """Note what came of it."""
        self.taken, self.why, self.again = taken, why, again
        self.answered.set()


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
        self._places: Places
        self._rows: dict[tuple[object, ...], int] = {}
        self._doors: dict[tuple[object, ...], list[tuple[socket.socket, int]]] = {}
        self._handed: dict[int, _OnItsWay] = {}
        self._arriving: set[trio.SocketStream] = set()
        self._numbers = count(1)
        self.borrower = Borrower(self._channel.say)
        self._agreed: trio.MemorySendChannel[bool] | None = None
        self._office: Office

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
                self._add_door(message)
            elif message.kind == "serve":
                self.number, self.workers = message["worker"], message["workers"]
                self.borrower.loans.workers = self.workers
                self._homes = table_said(message["homes"])
                config, places = message.descriptors
                self.config = _config_in(config)
                self._places = Places(places)
                os.close(places)
                return

    def _add_door(self, message: ChannelMessage) -> None:
        door = tuple(message["door"])
        [descriptor] = message.descriptors
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        self._rows[door] = message["place"]
        self._doors.setdefault(door, []).append((sock, message["port"]))

    async def open(self, settings: Listen) -> Listener:
        """Give the listener that the supervisor has opened. Raises `ListenError`."""
        there = self._doors.pop(door_of(settings.uri), None)
        if there is None:
            raise ListenError(f"the supervisor has not opened {settings.uri}")
        sockets = [
            trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock, _port in there
        ]
        uri = replace(settings.uri, port=there[0][1] or None)
        return Listener(settings, uri, sockets, keeps_file=True)

    async def open_doors(self, listeners: list[Listener]) -> None:
        """Add all listeners of the configuration. Raises `ListenError`."""
        for settings in self.config.listen:
            listeners.append(await self.open(settings))

    async def failed(self, why: str) -> None:
        """Tell the supervisor why there is nothing to serve."""
        self._channel.say(ChannelMessage("prepared", {"run": RUN, "problems": [why]}))
        with trio.move_on_after(1):
            await self._channel.send_waiting()
        self._channel.close()

    async def run(self, office: Office) -> None:
        """Say that all is there, and do what the supervisor says until it has ended; then drain."""
        self._office = office
        self._channel.say(ChannelMessage("prepared", {"run": RUN, "problems": []}))
        try:
            await self._channel.run(self._heard, self._lost)
        finally:
            for handed in self._handed.values():
                handed.answered.set()
            for stream in self._arriving:
                stream.socket.close()
            self.borrower.end()
        office.drain()

    # --- Places

    def comes(self, listener: Listener, number: int) -> None:
        """Count a client at a listener (1), or count it no more (-1)."""
        self._places.add(self._rows[door_of(listener.settings.uri)], self.number, number)

    def there(self, listener: Listener) -> int:
        """Give how many clients a listener has in all workers."""
        return self._places.there(self._rows[door_of(listener.settings.uri)])

    # --- Homes

    async def takes(self, client: Given, descriptor: int, export: str | None) -> bool:
        """See `gateway.handover.homes.Homes`. Raises `Hangup` if nobody knows who has the client now."""
        home = None if client.site is None else self._home_at(client.site)
        try:
            if home in (None, self.number):
                return False
            for _ in range(MOST_TIMES):
                handed = await self._hand_over(client, os.dup(descriptor), home)
                if not handed.again:
                    break
        except OSError as error:  # as many are open as may be
            raise Refusal(Rep.ERR_SHUTDOWN, f"not handed over: {error.strerror}") from None
        finally:
            os.close(descriptor)
        if handed.taken is None:
            raise Hangup("the supervisor has ended while the client was handed over")
        if not handed.taken:
            raise Refusal(Rep.ERR_SHUTDOWN, handed.why)
        return True

    async def _hand_over(self, client: Given, descriptor: int, home: int) -> _OnItsWay:
        """Hand a client over, and give what came of it."""
        number = next(self._numbers)
        handed = self._handed[number] = _OnItsWay()
        said = {"to": home, "client": replace(client, number=number).as_said()}
        goes = ChannelMessage("goes", said, client.unread, (descriptor,))

        def unsent() -> None:
            handed.end(taken=False, why=_TOO_LONG)

        try:
            try:
                self._channel.say(goes, unsent=unsent)
            except ValueError:
                unsent()
            if not self._channel.over:
                await handed.answered.wait()
        finally:
            del self._handed[number]
        return handed

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
                self._take(message)
            case "taken" | "refused" if message["number"] in self._handed:
                handed = self._handed[message["number"]]
                if message.kind == "taken":
                    handed.end(taken=True)
                else:
                    handed.end(taken=False, why=message["why"], again=message["again"])
            case "lent":
                self.borrower.heard(message.said)
            case "tokens":
                self.borrower.loans.granted(message["key"], *message["tokens"])
            case "asks":
                self._asked(message)
            case "door":
                self._add_door(message)
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
            self._refuse(message["client"]["number"], f"worker {self.number}: {NO_ROOM}")
        elif message.kind == "reload":
            self._forget_doors()
            said = {"run": RUN, "problems": [NO_ROOM]}
            self._channel.say(ChannelMessage("prepared", said))

    def _refuse(self, number: int, why: str) -> None:
        said = {"number": number, "why": why, "again": False}
        self._channel.say(ChannelMessage("refused", said))

    def _take(self, message: ChannelMessage) -> None:
        """Take a client, and say so; or say why not."""
        [descriptor] = message.descriptors
        given = Given.of(message["client"], message.data)
        listener = self._office.listener_at(given.door)
        why = ""
        if self._office.ends:
            why = "the gateway is shutting down"
        elif listener is None:
            why = "the listener that it came by is closed"
        if why:
            os.close(descriptor)
            self._refuse(given.number, why)
            return
        assert listener is not None
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._arriving.add(stream)

        def take() -> None:
            self._arriving.discard(stream)
            self._office.take(listener, stream, given)

        # Not before that is sent: should we die, whoever had the client must not tell it anything more.
        self._channel.say(ChannelMessage("taken", {"number": given.number}), sent=take)

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
        self._forget_doors()
        if answer.ok:
            said_now = {"done": [*answer.done], "problems": [*answer.problems]}
            self._channel.say(ChannelMessage("reloaded", said_now))

    def _forget_doors(self) -> None:
        """Close those of a reload that came to nothing: else their addresses stay in use."""
        for there in self._doors.values():
            for sock, _port in there:
                sock.close()
        self._doors.clear()


_TOO_LONG = "what it has sent is too long to be handed over"


def _config_in(descriptor: int) -> Config:
    """Read the configuration that the supervisor has put into a file in memory, and close that."""
    try:  # not by reading on: all workers have one place in the file
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    config: Config = pickle.loads(content)
    return config
