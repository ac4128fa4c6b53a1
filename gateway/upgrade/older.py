"""The older process: it starts the newer one, hands over, and drains.

What it does with whatever happens is `steps.OLDER`; here is how. As long as it drains, it looks around every
`LOOK_SECONDS`, and when a client leaves: who has come and gone is told to the newer process, disks whose last
user has gone are given, and when nobody is left, so is the rest.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from gateway.admin.control import ControlAnswer
from gateway.handover.channel import Channel, closing_descriptors, pair
from gateway.handover.message import ChannelMessage, NotUnderstood, common
from gateway.plural import plural
from gateway.sessions.opened import Location
from gateway.sessions.whereabouts import anywhere
from gateway.upgrade.begin import started_by
from gateway.upgrade.children import commands_of
from gateway.upgrade.draining import Draining
from gateway.upgrade.errands import Errands
from gateway.upgrade.office import Started, UpgradeOffice
from gateway.upgrade.sharing import SharedDoors
from gateway.upgrade.steps import Act, Happening, OlderIs, older_step
from gateway.upgrade.switched import switched_said
from gateway.upgrade.tickets import TicketsOfTwo

READY_SECONDS = 60
"""How long the newer process may take until it is ready: it loads what `serve` loads, and credentials perhaps
over a network. All goes on meanwhile."""

SERVING_SECONDS = 10
"""How long it may take to accept when it is told to: clients wait in the kernel's queue meanwhile."""

THANKS_SECONDS = 10
"""How long it may take to say that it has all that was left."""

LOOK_SECONDS = 0.25


class Older:
    """An upgrade, as the process sees it that was there. `deadline_seconds`: how long sessions may go on; None:
    as long as they like.
    """

    _doors: SharedDoors
    _errands: Errands
    _tickets: TicketsOfTwo  # these from when the newer process is started

    def __init__(
        self, office: UpgradeOffice, program: Sequence[str], deadline_seconds: float | None
    ) -> None:
        self.state = OlderIs.ALONE
        self.problems: list[str] = []
        self.deadline_at: float | None = None
        """When sessions end here, as Trio's clock has it; None: when they like."""
        self.gone = trio.Event()
        """Nothing is left to do."""
        self._office = office
        self._program = [*program]
        self._deadline_seconds = deadline_seconds
        self._process: Started | None = None
        self._channel: Channel | None = None
        self._draining: Draining | None = None
        self._answer: trio.Event = trio.Event()
        self._done = False
        self._greeted = False
        self._left = trio.Event()
        self._manager = office.manager.environment

    # --- Who asks

    async def upgrade(self) -> ControlAnswer:
        """Upgrade; give what came of it. If this is cancelled before the newer process was told to go, all is
        as it was.
        """
        self.happens(Happening.ASKED)
        try:
            await self._answer.wait()
        except trio.Cancelled:
            if self.state is OlderIs.STARTING:
                self.problems.append("who asked has gone")
                self.happens(Happening.FAILED)
            raise
        if not self._done:
            return ControlAnswer(False, problems=tuple(self.problems or ["it was told to end"]))
        number = 0 if self._process is None else self._process.pid
        done = [f"process {number} serves; {self.who_is_here()}"]
        return ControlAnswer(True, tuple(done), tuple(self.problems))

    def who_is_here(self) -> str:
        """Say who is here still, in words."""
        count_ = len(self._office.clients)
        if not count_:
            return f"process {os.getpid()} has no clients and ends"
        until = "until they leave"
        if self.deadline_at is not None:
            left = max(0.0, self.deadline_at - trio.current_time())
            until += f", for {left:.0f} s at most"
        return f"process {os.getpid()} has {plural(count_, 'client')} {until}"

    def how_far(self) -> str | None:
        """Say how far this is, to who asks for another upgrade; None: the gateway was told to end."""
        number = 0 if self._process is None else self._process.pid
        if self.state in (OlderIs.STARTING, OlderIs.GOING):
            return f"process {number} is being prepared"
        if self.state in (OlderIs.DRAINING, OlderIs.ENDING, OlderIs.LEAVING):
            return f"process {number} serves; {self.who_is_here()}"
        return None

    def happens(self, event: Happening) -> None:
        """Do what the table says."""
        self.state, acts = older_step(self.state, event)
        for act in acts:
            _DO[act](self)

    # --- The newer process

    def _start(self) -> None:
        try:
            ours, theirs = pair()
            with theirs:
                self._process = self._office.start(self._program, theirs)
        except OSError as error:
            self.problems.append(f"cannot start {self._program[0]}: {error.strerror}")
            self._office.tasks.start_soon(self._soon, Happening.FAILED)
            return
        self._channel = Channel(ours)
        self._doors = SharedDoors(self._office, self._channel.say)
        self._draining = Draining(self._office, self._channel)
        self._errands = Errands(self._channel.say)
        self._tickets = TicketsOfTwo(
            self._office.service.tickets, self._channel.say, self._errands, self._office.tasks
        )
        # They wait for it in the channel: whenever we are killed from now on, the newer process has them, and
        # clients wait in their queues.
        self._give_doors()
        self._office.tasks.start_soon(self._follow, self._process, self._channel)
        self._office.tasks.start_soon(
            self._late, OlderIs.STARTING, READY_SECONDS, "the newer process was not ready"
        )

    async def _soon(self, event: Happening) -> None:
        self.happens(event)

    async def _follow(self, process: Started, channel: Channel) -> None:
        """Hear the newer process until it has ended."""
        await channel.run(self._hear)
        if channel.why:
            self.problems.append(channel.why)
        if self.state in (OlderIs.STARTING, OlderIs.GOING) and not self.problems:
            with trio.move_on_after(1):
                await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            status = process.poll()
            how = "has closed its end" if status is None else f"has ended with status {status}"
            self.problems.append(f"the newer process {how}; standard error says why")
        self.happens(Happening.OTHER_DIED)

    async def _late(self, state: OlderIs, seconds: float, what: str) -> None:
        """If we are at something for too long, that has failed."""
        with trio.move_on_after(seconds):
            await self.gone.wait()
        if self.state is state:
            self.problems.append(f"{what} within {seconds:g} s")
            self.happens(Happening.FAILED)

    def _hear(self, message: ChannelMessage) -> None:
        with closing_descriptors(message):
            self._obey(message)

    def _obey(self, message: ChannelMessage) -> None:
        assert self._draining is not None
        match message.kind:
            case "hello":
                common(message["reads"])
                self._greeted = True
            case "failed":
                self.problems += [str(each) for each in message["problems"]]
                self.happens(Happening.FAILED)
            case "ready":
                self._draining.gifts.wanted = message["commands"]
                self._doors.are_taken(message)
                self._tickets.when_at_rest(partial(self.happens, Happening.READY))
            case "serving":
                self.happens(Happening.SERVING)
            case "client":
                self._draining.given(message)
            case "taken":
                self._draining.asking.answered(message["number"], taken=True)
            case "child-taken":
                self._draining.gifts.taken(message["upstream"])
            case "closed":
                self._doors.close(message)
            case "errand":
                self._office.tasks.start_soon(self._errands.do, message, self._do)
            case "undo":
                self._office.tasks.start_soon(self._errands.undo, message["number"])
            case "answer":
                self._errands.answered(message)
            case "switched":
                self._office.leads(message["exports"])
            case "ticket" | "ticket-over":
                self._tickets.heard(message)
            case "stop":
                self.happens(Happening.STOP)
            case "thanks":
                self.happens(Happening.THANKS)
            case _:
                raise NotUnderstood(f"expected nothing of the kind {message.kind!r} now")

    def _give_doors(self) -> None:
        try:
            self._doors.give()
        except OSError as error:
            self.problems.append(f"sockets cannot be given: {error.strerror}")
            self.happens(Happening.FAILED)
            return
        office = self._office
        service = office.service
        switched = switched_said(service.switched)
        children = [upstream for upstream, _command in commands_of(service.servers.values())]
        said = {
            "switched": switched,
            "disabled": [*service.disabled],
            "drained": [*office.drained],
            "children": children,
        }
        self._say(ChannelMessage("state", said))
        self._tickets.begin()

    def _say(self, message: ChannelMessage) -> None:
        assert self._channel is not None
        self._channel.say(message)

    # --- What is done

    def _refuse(self) -> None:
        """Whoever asks is told so by who knows us."""

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # One that has said hello is a gateway, and what it has started has a keeper.
            others = [] if self._greeted else started_by(self._process.pid)
            self._process.kill()
            for other in others:
                with suppress(OSError):
                    os.kill(other, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()  # it is killed: that takes no time

    def _stop_accepting(self) -> None:
        assert self._draining is not None
        self._office.doors.accept_nobody()
        self._draining.begin()

    def _say_go(self) -> None:
        for upstream, command in commands_of(self._office.service.servers.values()):
            command.started = partial(self._say_runs, upstream)
            if (running := command.running) is not None:
                self._say_runs(upstream, running[0])
        self._doors.let_go_of_pidfile()
        paused = self._office.pauses.as_said()
        assert self._draining is not None
        self._office.pauses.have_gone_on = lambda exports: self._say(
            ChannelMessage("resumed", {"exports": [*exports]})
        )
        self._office.pauses.may_lead = self._draining.may_lead
        self._office.pauses.have_led = self._say_switched
        self._tickets.go()
        self._say(ChannelMessage("go", {"deadline": self._deadline_seconds, "paused": paused}))
        self._office.tasks.start_soon(
            self._late, OlderIs.GOING, SERVING_SECONDS, "the newer process did not serve"
        )

    async def _do(
        self, verb: str, asked: Mapping[str, Any], sessions: Collection[str]
    ) -> ControlAnswer:
        assert self._draining is not None
        with self._draining.sessions_elsewhere(sessions):
            return await self._office.do(verb, asked)

    def _say_switched(self, locations: Mapping[str, Location], home: bool) -> None:
        said = switched_said(locations, home=home)
        self._say(ChannelMessage("switched", {"exports": said}))

    def _say_runs(self, upstream: str, number: int) -> None:
        self._say(ChannelMessage("runs", {"upstream": upstream, "pid": number}))

    def _say_done(self) -> None:
        self._done = True
        office = self._office
        self._doors.let_go()
        if self._deadline_seconds is not None:
            self.deadline_at = trio.current_time() + self._deadline_seconds
        assert self._process is not None
        office.service.log.info(
            "upgraded: a newer process serves", pid=self._process.pid, clients=len(office.clients)
        )
        self._answer.set()
        office.tasks.start_soon(office.manager.hand_over, self._process.pid)
        office.tasks.start_soon(self._look_around)

    def _say_not_done(self) -> None:
        for why in self.problems:
            self._office.service.log.error("not upgraded, and all is as it was", why=why)
        if self._channel is not None:
            self._tickets.take_back()
        self._answer.set()

    def _accept_again(self) -> None:
        self._office.pauses.have_gone_on = _nothing
        self._office.pauses.may_lead = anywhere
        self._office.pauses.have_led = _nothing
        self._office.tasks.start_soon(self._errands.undo_all)
        for command in dict(commands_of(self._office.service.servers.values())).values():
            command.started = _nothing
        if self._done:
            self._office.service.log.error(
                "the newer process has died: all is as it was before the upgrade",
                clients=len(self._office.clients),
            )
        self._office.manager.goes_on(self._manager)
        self._office.serves()
        self._office.tasks.start_soon(self._doors.open_again)

    def _take_back(self) -> None:
        if self._draining is not None:
            self._draining.take_back()
            self._errands.nobody_answers()
            self._tickets.take_back()
        self.gone.set()
        for _upstream, command in commands_of(self._office.service.servers.values()):
            command.ours.set()

    def _finish(self) -> None:
        assert self._draining is not None
        self._draining.ending = True
        service = self._office.service
        service.log.info("the time of this process is over", sessions=len(service.running))

    def _drain(self) -> None:
        # Where a newer one serves, clients connect again there: no reason to wait for them here.
        self._office.drain(now=self.state is not OlderIs.ENDED)

    def _go(self) -> None:
        self.gone.set()

    # --- While it drains

    async def _look_around(self) -> None:
        assert self._draining is not None
        while self.state in (OlderIs.DRAINING, OlderIs.ENDING):
            if self.deadline_at is not None and trio.current_time() >= self.deadline_at:
                self.happens(Happening.DEADLINE)
            if self._draining.look():
                self.happens(Happening.EMPTY)
            self._left = trio.Event()
            with trio.move_on_after(LOOK_SECONDS):
                await self._left.wait()

    def client_left(self) -> None:
        """A client has left."""
        self._left.set()

    # --- What is left

    async def farewell(self) -> None:
        """All clients have left, for we were told to end. Give what is left to the newer process."""
        if self.state is OlderIs.STOPPING:
            self.happens(Happening.EMPTY)
            await self.gone.wait()
        elif self._channel is not None:
            with trio.move_on_after(SERVING_SECONDS):
                await self._channel.all_sent()

    def _give_rest(self) -> None:
        self._office.tasks.start_soon(self._give_all)

    async def _give_all(self) -> None:
        assert self._draining is not None
        assert self._channel is not None
        await self._draining.gifts.give_all()
        self._draining.tell_changes()
        if self._channel.over:
            self.happens(Happening.OTHER_DIED)
            return
        self._say(ChannelMessage("bye"))
        await self._late(self.state, THANKS_SECONDS, "the newer process did not take what is left")


def _nothing(*_what: object) -> None:
    """Nobody minds."""


_DO = {
    Act.START: Older._start,
    Act.REFUSE: Older._refuse,
    Act.KILL_NEWER: Older._kill,
    Act.STOP_ACCEPTING: Older._stop_accepting,
    Act.SAY_GO: Older._say_go,
    Act.SAY_DONE: Older._say_done,
    Act.SAY_NOT_DONE: Older._say_not_done,
    Act.ACCEPT_AGAIN: Older._accept_again,
    Act.TAKE_BACK: Older._take_back,
    Act.FINISH: Older._finish,
    Act.GIVE_REST: Older._give_rest,
    Act.DRAIN: Older._drain,
    Act.GO: Older._go,
}
