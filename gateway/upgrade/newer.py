"""The newer process: it is given the doors, and serves beside the older one until that has ended.

It begins as any gateway does, but with the older one's listening sockets. When all is there that its
configuration needs, it says so, and accepts when it is told to. What it does with whatever happens is
`steps.NEWER`.

As long as the older process is there, it is asked for every disk whose home is not known yet: the client is
handed over, and comes back if the disk is given (`homes`). We keep our copy of its socket until we know. What
was given is in `receiving`.
"""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import trio

from gateway import __version__
from gateway.admin.control import ControlAnswer
from gateway.handover.channel import Channel, closing_descriptors
from gateway.handover.given import DiskSite, Given, identity_of_said
from gateway.handover.homes import door_of
from gateway.handover.message import READ, ChannelMessage, NotUnderstood
from gateway.net.listen import Listener
from gateway.sessions.opened import Location
from gateway.sessions.service import Service
from gateway.sessions.whereabouts import Led, anywhere
from gateway.upgrade.asking import OnTheWay, take
from gateway.upgrade.beside import Beside
from gateway.upgrade.children import commands_of
from gateway.upgrade.doors import PIDFILE, Inherited
from gateway.upgrade.errands import Errands
from gateway.upgrade.office import UpgradeOffice, listener_at
from gateway.upgrade.receiving import Received
from gateway.upgrade.steps import Act, Happening, NewerIs, newer_step
from gateway.upgrade.switched import lead, switched_said
from gateway.upgrade.tickets import BEGIN, TicketsOfTwo, TicketsThere
from gateway.upstream.server import Server

GREETING_SECONDS = 10
"""How long the older process may take to give the next of its doors and tickets: it has nothing to wait for."""

FAREWELL_SECONDS = 1

OVERDUE_SECONDS = 60
"""How much longer than its deadline and `drain-seconds` an older process may take to end. Then it hangs."""


class NotGreeted(Exception):
    """The older process cannot be taken over from; the text says why."""


class Newer:
    """What we know of the older process, and what we have of it."""

    _office: UpgradeOffice
    _received: Received
    _tickets: TicketsOfTwo  # these from `begin` on

    def __init__(self, end: socket.socket) -> None:
        self.inherited = Inherited()
        self.state = NewerIs.PREPARING
        self.older_pid = 0
        self.older_version = ""
        self.beside: Beside | None = None
        self._channel = Channel(end)
        self.errands = Errands(self._channel.say)
        self._begun = False
        self._asking = OnTheWay()
        self._said_state: Mapping[str, Any] = {}
        self._overdue_at = math.inf
        self._ended = trio.Event()

    async def greet(self) -> None:
        """Greet the older process, and take what it gives. If it has gone without giving all of it, we begin as
        if there had been none. Raises `NotGreeted`.
        """
        hello = {"reads": [*READ], "pid": os.getpid(), "version": __version__}
        self._channel.say(ChannelMessage("hello", hello))
        try:
            with trio.fail_after(GREETING_SECONDS) as scope:
                await self._channel.send_waiting()
                last = False
                while not (last and self._said_state and self._has_tickets):
                    message = await self._channel.next()
                    scope.deadline = trio.current_time() + GREETING_SECONDS
                    if message is None:
                        self.state, _acts = newer_step(self.state, Happening.OTHER_DIED)
                        return
                    if message.kind == "doors":
                        self.inherited.add(message)
                        last = message["last"]
                        self.older_pid, self.older_version = message["pid"], message["version"]
                    elif message.kind == "state":
                        self._said_state = message.said
                    elif self.tickets is not None:
                        self.tickets.heard(message)
        except NotUnderstood as error:
            raise NotGreeted(f"the older process is not understood: {error}") from None
        except trio.TooSlowError:
            why = f"the older process has given nothing more of its own for {GREETING_SECONDS} s"
            raise NotGreeted(why) from None

    async def fail(self, why: str) -> None:
        """We cannot be: tell the older process."""
        self.state, acts = newer_step(self.state, Happening.FAILED)
        if Act.SAY_FAILED in acts:
            self._channel.say(ChannelMessage("failed", {"problems": [why]}))
            with trio.move_on_after(GREETING_SECONDS):
                await self._channel.send_waiting()

    def wait_for_children(self, servers: Mapping[str, Server]) -> None:
        """Have whoever connects to a server that the older process starts wait until that is given."""
        theirs = {str(each) for each in self._said_state.get("children", ())}
        for upstream, command in commands_of(servers.values()):
            if upstream in theirs and self.state is not NewerIs.ALONE_SOON:
                command.ours = trio.Event()

    @property
    def tickets(self) -> TicketsThere | None:
        """Where the older process has tickets, and which."""
        return self.inherited.tickets

    @property
    def _has_tickets(self) -> bool:
        return self.tickets is None or self.tickets.complete

    def go_where_it_was_switched(
        self, service: Service, switched_to: Callable[[str, str], Server]
    ) -> None:
        """Lead exports where the older process leads them. `switched_to` gives the server of a URI."""
        lead(service, self._said_state.get("switched", {}), switched_to)
        for upstream in self._said_state.get("disabled", ()):
            service.disable(str(upstream), disabled=True)

    @property
    def drained(self) -> list[str]:
        """The listeners at which an operator lets nobody in, by their URIs."""
        return [str(each) for each in self._said_state.get("drained", ())]

    # --- Beside the older process

    def begin(self, office: UpgradeOffice) -> None:
        """All is there: say so. Accepting begins when the older process has said `go`."""
        self._begun, self._office = True, office
        self._received = Received(office.service, self._channel.say)
        self.beside = Beside(office.service)
        office.service.homes = self
        office.service.named_elsewhere = self.beside.names
        self._tickets = TicketsOfTwo(
            office.service.tickets, self._channel.say, self.errands, office.tasks
        )
        office.pauses.may_lead, office.pauses.have_led = self._may_lead, self._say_switched
        office.tasks.start_soon(self._follow)
        self.happens(Happening.PREPARED)

    def happens(self, event: Happening) -> None:
        """Do what the table says."""
        self.state, acts = newer_step(self.state, event)
        for act in acts:
            _DO[act](self)

    async def farewell(self) -> None:
        """We were told to end: the older process, whose sessions end too, ends before we do."""
        wait = self._begun and self.state is NewerIs.STOPPING
        seconds = self._office.service.config.drain_seconds if wait else 0
        with trio.move_on_after(seconds + FAREWELL_SECONDS):
            await self._channel.all_sent()
            if wait:
                await self._ended.wait()

    async def all_said(self) -> None:
        """Wait until the older process will read all that we said, whatever becomes of us; or has ended."""
        await self._channel.all_sent()

    async def end_overdue(self) -> None:
        """End the older process, if its deadline was so long ago that it does not end by itself any more."""
        if self.alone or trio.current_time() < self._overdue_at:
            return
        self._office.service.log.error(
            "older process killed: its time was over", pid=self.older_pid
        )
        # It is there: else its end of the channel would be closed.
        os.kill(self.older_pid, signal.SIGKILL)
        with trio.move_on_after(GREETING_SECONDS):
            await self._ended.wait()

    @property
    def alone(self) -> bool:
        """The older process has ended, or there was none."""
        return self.state in (NewerIs.ALONE, NewerIs.ENDED)

    async def _follow(self) -> None:
        await self._channel.run(self._hear)
        if self._channel.why and not self.alone:
            # It is there, and we do not understand each other. It has all that we have, and ends us.
            self._office.service.log.error("upgrade broken off", why=self._channel.why)
            self.state = NewerIs.ENDED
            self._office.drain(now=False)
        else:
            self.happens(Happening.OTHER_DIED)
        self._ended.set()

    def _hear(self, message: ChannelMessage) -> None:
        with closing_descriptors(message):
            self._obey(message)

    def _obey(self, message: ChannelMessage) -> None:
        assert self.beside is not None
        match message.kind:
            case "go":
                deadline = message.said.get("deadline")
                if isinstance(deadline, int | float):
                    seconds = deadline + self._office.service.config.drain_seconds + OVERDUE_SECONDS
                    self._overdue_at = trio.current_time() + seconds
                self._pause(message.said.get("paused", {}))
                self.happens(Happening.GO)
            case "resumed":
                self._office.tasks.start_soon(self._office.pauses.go_on, message["exports"])
            case "answer":
                self.errands.answered(message)
            case "errand":
                self._office.tasks.start_soon(self.errands.do, message, self._do)
            case "switched":
                self._office.leads(message["exports"])
            case "ticket" | "ticket-over":
                self._tickets.heard(message, with_files=True)
            case "bye":
                self.happens(Happening.BYE)
            case "taken" | "yours":
                self._asking.answered(message["number"], taken=message.kind == "taken")
            case "here":
                who = identity_of_said(message["who"])
                export = message["export"] if message["open"] else None
                self.beside.here(message["id"], tuple(message["door"]), who, export)
            case "gone":
                self.beside.gone(message["id"])
            case "lost":
                self._received.lose(message)
            case "unnamed":
                self._received.lose_unnamed(message)
            case "runs":
                self._received.child_runs(message)
            case "child":
                self._received.adopt(message)
            case "client":
                self._take(message)
            case _:
                raise NotUnderstood(f"expected nothing of the kind {message.kind!r} now")

    def _pause(self, said: Any) -> None:
        """What is paused in the older process is paused here, too. Raises `NotUnderstood`."""
        try:
            self._office.pauses.take_over(said)
        except (AttributeError, KeyError, TypeError) as error:
            raise NotUnderstood(f"expected pauses, got {said!r:.80} ({error!r})") from None

    async def _do(
        self, verb: str, asked: Mapping[str, Any], _sessions: Collection[str]
    ) -> ControlAnswer:
        """Do an errand of the older process."""
        if verb == BEGIN:
            return await self._tickets.begin_use(asked)
        return ControlAnswer(False, problems=(f"{verb} is done by who is asked for it",))

    async def _may_lead(self, led: Led) -> None:
        """See `Pauses`: the older process was asked before, and has given the disks."""
        for _was, to in led.values():
            self._received.know(DiskSite.at(to.server.where, to.name))

    def _say_switched(self, locations: Mapping[str, Location], home: bool) -> None:
        said = switched_said(locations, home=home)
        self._channel.say(ChannelMessage("switched", {"exports": said}))

    # --- Clients

    async def takes(self, client: Given, descriptor: int, export: str | None) -> bool:
        """See `Homes`: ask the older process, which has it then, or gives us the disk."""
        if self.alone or self._received.has(client.site):
            os.close(descriptor)
            return False
        assert self.beside is not None
        self.beside.here(client.session_id, client.door, client.identity, export)
        taken = False
        try:
            taken = await self._asking.given(self._channel.say, client, descriptor)
        finally:
            if not taken:
                self.beside.gone(client.session_id)
        if not taken and client.site is not None:
            self._received.know(client.site)
        return taken

    def stays(self, client: str, site: DiskSite | None) -> None:
        """See `Homes`: what is ours stays ours."""

    def _take(self, message: ChannelMessage) -> None:
        """A client of the older process asks for a disk that is ours."""
        client = Given.of(message["client"], message.data)
        listener = listener_at(self._office, client.door)
        if listener is None or len(message.descriptors) != 1:
            return  # it is hung up on, when the older process waits no longer, and comes again
        begin = partial(self._begin, listener, client)
        take(self._channel.say, client, message.descriptors[0], begin)

    def _begin(self, listener: Listener, client: Given, stream: trio.SocketStream) -> None:
        self._office.take(listener, stream, client)

    # --- What is done

    def _say_ready(self) -> None:
        commands = {
            upstream: command.words
            for upstream, command in commands_of(self._office.service.servers.values())
        }
        file = self._office.doors.pidfile
        if file is not None and file.fd == self.inherited.pidfile:
            self.inherited.taken.append([PIDFILE])
        self.inherited.close()
        said = {"doors": self.inherited.taken, "commands": commands}
        self._channel.say(ChannelMessage("ready", said))

    def _accept(self) -> None:
        for listener in self._office.listeners:
            listener.closed = partial(self._say_closed, list(door_of(listener.settings.uri)))
        if not self.alone:
            self._tickets.keep()
        self._office.serves()

    def _say_closed(self, door: list[object]) -> None:
        self._channel.say(ChannelMessage("closed", {"door": door}))

    def _have_all(self) -> None:
        assert self.beside is not None
        self.beside.all_gone()
        self._asking.all_stay()
        self.errands.nobody_answers()
        self._tickets.are_ours_alone()
        self._office.pauses.may_lead, self._office.pauses.have_led = anywhere, _nothing
        self._office.service.homes, self._office.service.named_elsewhere = None, tuple
        self._ended.set()
        for listener in self._office.listeners:
            listener.closed = _nothing
        self._office.tasks.start_soon(self._received.start_ourselves)
        self._office.is_alone()

    def _end(self) -> None:
        self._office.drain(now=False)

    def _say_serving(self) -> None:
        self._channel.say(ChannelMessage("serving"))

    def _say_thanks(self) -> None:
        self._channel.say(ChannelMessage("thanks"))

    def _say_stop(self) -> None:
        self._channel.say(ChannelMessage("stop"))


def _nothing(*_what: object) -> None:
    """Nobody minds."""


_DO = {
    Act.SAY_READY: Newer._say_ready,
    Act.ACCEPT: Newer._accept,
    Act.SAY_SERVING: Newer._say_serving,
    Act.HAVE_ALL: Newer._have_all,
    Act.SAY_THANKS: Newer._say_thanks,
    Act.SAY_STOP: Newer._say_stop,
    Act.DRAIN: Newer._end,
}
