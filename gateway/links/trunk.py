"""A bundle with its sockets, and the tasks that make its links, and make them again.

The first link is there when a trunk begins. Clients are promised what its export is. The other links that are
wanted are made beside it. They are used only if all of them can be made and all say the same
(`gateway.upstream.coherence`).

A link that is lost is made again, in the same way and for the same export. If the server then offers less than
was promised (another size, or a flag is missing), nobody is served over it: the trunk ends, and its sessions
end. They also end if no link can be made within `reconnect_seconds`, or if the server does not have the export
any more (`making`).

This is longer than other modules: links, users, time and the end of a trunk come in any order, and what is done
for each has to leave the trunk right for all the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import trio

from gateway.bundle.again import Pause, shrunk
from gateway.bundle.core import Bundle
from gateway.bundle.line import SPARE, Line
from gateway.bundle.lines import State
from gateway.bundle.ports import Port
from gateway.bundle.recovery import OWN_DISK, AnotherDisk, has_left_its_disk
from gateway.jobs.fences import Fences
from gateway.links.fencing import LOOK_FOR_ENDS_SECONDS
from gateway.links.making import AGAIN_SECONDS, Gone, Making
from gateway.links.wire import Tap, Wire, Wires
from gateway.losses.eras import KEPT
from gateway.losses.rule import MOST_TRIES, Debt, Losses, Trail
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.scan.traffic import Traffic
from gateway.upstream.allowance import Allowance
from gateway.upstream.coherence import Decision, offered
from gateway.upstream.link import Link, Terms
from gateway.upstream.server import Server
from gateway.upstream.slots import Slot
from gateway.wire.constants import TransmissionFlag

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.hub.hub import Hub

FAREWELL_SECONDS = 30.0
"""How long we wait for what is under way when nobody wants it any more. We do wait, because a server need not
bear that its replies are not taken (nbdkit 1.32 ends over it)."""

LOOK_IF_DONE_SECONDS = 0.01
"""How often we look whether that has come to its end."""


class TrunksDisk(Protocol):
    """What a trunk needs of its disk (`gateway.links.disk`, which knows trunks)."""

    fences: Fences
    losses: Losses
    trunks: WeakSet[Trunk]
    """All trunks of it that somebody has."""

    def is_left(self) -> None:
        """The trunk has gone."""
        ...

    def wrote_again(self, size: int) -> None:
        """So many bytes were written once more after a loss."""
        ...


class Trunk:
    """The links of one export. Whoever uses a trunk has a port of it (`gateway.links.uplink.Share`). It begins
    with `start`, and ends when the last port is left.
    """

    def __init__(
        self,
        server: Server,
        terms: Terms,
        first: Link,
        hub: Hub,
        disk: TrunksDisk,
        log: FilteringBoundLogger,
        trail: Trail | None = None,
    ) -> None:
        """`trail`: what was written over `first`, if that was used, and is lost."""
        self.server = server
        self.terms = terms
        self.first = first
        self.disk = disk
        self._hub = hub
        self._log = log.bind(upstream=server.name)
        mode = server.mode
        disk.trunks.add(self)
        self._making = Making(server, terms, first, self._say)
        self.export = offered(first.export, self.decision)
        """What clients may be promised."""
        self.joined: set[Port] = set()
        self.over = trio.Event()
        """There is no link any more, and there will be none."""
        self.closed = trio.Event()
        """All links have been closed, too."""
        self.retired = False
        self._broken = False  # by a bug
        self._lingers = False  # it waits for the server, though nobody has a port any more
        self.loose = False
        """A link is lost: no session of another disk waits for what is asked here (`gateway.jobs.locks`)."""
        self.tapped = False
        """Somebody looks on."""
        self._ids = {context.name: context.id for context in first.export.contexts}
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self.bundle = Bundle(
            first.export,
            self.decision.count,
            trail
            or disk.losses.trail(
                None,
                KEPT[mode.survival.unflushed],
                records=first.export.can_flush,
                alone=not speaks_for_all(first.export),
            ),
            clock=trio.current_time,
            stripe_bytes=mode.stripe,
            strong=mode.strong,
            survival=mode.survival,
            say=self._say,
            changed=self._note_change,
            fences=disk.fences,
            wrote_again=disk.wrote_again,
        )
        self._wires = Wires(self.bundle, hub, self._gone, self._break)
        self._links: dict[Line, Link] = {}
        self.pauses: defaultdict[int, Pause] = defaultdict(Pause)
        """When to make each link again, by the number of its line."""
        self._slots: dict[int, Slot] = {}
        """The upstream's slots that the links have, by the numbers of their lines. A slot is kept while its
        link is lost: a client that waits for a slot would take it, and not give it back."""

    @property
    def decision(self) -> Decision:
        """Over how many links the export is served, and why not over more."""
        return self._making.decision

    # --- Its life

    async def agree(self, allowance: Allowance | None = None) -> None:
        """Make all links that are wanted, before anybody is promised anything. That may take what is left of
        `allowance`. Raises `Refusal` if the configuration wants all of them or none, and they cannot be had.
        """
        await self._making.agree(allowance)

    def abandon(self) -> None:
        """Do not begin, after all: close the first link."""
        self.first.close()

    def start(self) -> None:
        """Begin."""
        self._making.say_why_fewer()
        self._use(0, self.first)
        self._hub.start_soon(self._keep)

    def start_without(self, why: str) -> None:
        """Begin although the first link is lost already."""
        self._log.warning("upstream connection lost", why=why, left=0)
        self._slots[0] = self.first.slot
        self.bundle.begin_without(why, self.first.peer)
        self._hub.start_soon(self._keep)

    async def restored(self) -> None:
        """Wait until the links are there again, and nothing is left to be done about what was lost with them;
        or until the trunk has ended.
        """
        look_seconds = LOOK_IF_DONE_SECONDS
        while not (self.ended or self.bundle.in_order):
            await trio.sleep(look_seconds)
            look_seconds = min(2 * look_seconds, AGAIN_SECONDS)  # many may wait, and for long

    async def recognised(self, left: Collection[Trail]) -> None:
        """Wait until we know whether its links lead to the disk that was left with others, whose place they
        take; or until the trunk has ended. Raises `AnotherDisk`.
        """
        trail = self.bundle.work.trail
        for before in left:
            trail.follows(before)
            if not self.server.mode.wanted.shared:
                trail.owner = before.owner  # as it was; `belongs_to` says who it is from now on
        self.bundle.look_again()
        await self.restored()
        if self.bundle.is_another:
            raise AnotherDisk(self.bundle.why)

    def be_tapped(self, tap: Tap | None) -> None:
        """Have somebody look on at all its links; None: nobody any more."""
        self.tapped = tap is not None
        self._wires.be_tapped(tap)

    def belongs_to(self, debt: Debt) -> None:
        """A session has begun. It alone relies on what is written over these links, unless they speak for
        all.
        """
        debt.trail = self.bundle.work.trail
        debt.trail.owner = None if self.speaks_for_all else debt

    @property
    def speaks_for_all(self) -> bool:
        """A FLUSH over its links covers what was written over any other link."""
        return self.server.mode.wanted.shared or speaks_for_all(self.first.export)

    def dissolve(self) -> tuple[Link, Trail]:
        """End, and give the only link and what was written over it: its owner goes on with the link alone. All
        is in order, and nothing is asked.
        """
        assert self.bundle.in_order
        assert self.bundle.idle
        [line] = self.bundle.lines.by_number.values()
        self._wires.take_out(line)
        self._scope.cancel()
        link = replace(self._links.pop(line), slot=self._slots.pop(line.number))
        return link, self.bundle.hand_on_trail()

    async def _keep(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._look_at_the_clock)
                    nursery.start_soon(self._keep_spare)
                    await self._use_others()
                    for number in range(self.decision.count):
                        nursery.start_soon(self._keep_link, number)
            with trio.move_on_after(FAREWELL_SECONDS):
                for _ in range(MOST_TRIES):
                    if not self.bundle.say_farewell():
                        break
                    self.push()
                    while self._wires.busy:
                        await trio.sleep(LOOK_IF_DONE_SECONDS)
                while self._wires.busy:
                    await trio.sleep(LOOK_IF_DONE_SECONDS)
        except Exception as error:
            self._break(error)
        finally:
            self._close()

    def _close(self) -> None:
        """Leave everything. If a bug breaks one step, the others are done all the same."""
        try:
            self.contain(self._wires.close)
            while self._links:  # a bug may have left some
                self.contain(self._links.popitem()[1].close)
            self.contain(self.bundle.left)
            self.contain(self.disk.is_left)
            for link in self._making.unused:
                self.contain(link.close)
            for slot in self._slots.values():
                self.contain(slot.leave)
        finally:
            self.closed.set()

    def contain(self, step: Callable[[], object]) -> None:
        """Do something; if there is a bug in it, that ends this trunk and nothing else."""
        try:
            step()
        except Exception as error:
            self._break(error)

    async def _use_others(self) -> None:
        for number, link in enumerate(await self._making.others(), start=1):
            self._use(number, link)

    # --- Links

    def _use(self, number: int, link: Link) -> None:
        self.pauses[number].made(trio.current_time())
        line = Line(number, link.export, link.dialect, self._ids, link.peer)
        self._links[line] = link
        if number != SPARE:
            self._slots.setdefault(number, link.slot)
        self._wires.add(link.socket, line)

    def _gone(self, wire: Wire, why: str) -> None:
        link = self._links.pop(wire.line)
        link.socket.close()
        if wire.line.number == SPARE:
            link.slot.leave()
        if why and not self._scope.cancel_called:
            self._log.warning("upstream connection lost", why=why, left=len(self.bundle.lines))
        self._note_change()

    async def _keep_link(self, number: int) -> None:
        """Make the link of a number again whenever it is lost."""
        pause = self.pauses[number]
        while True:
            while number in self.bundle.lines.by_number:
                await self._next_change()
            self._loosen()
            if self._has_left_its_disk:
                self._give_up(OWN_DISK)
                return
            pause.lost(trio.current_time())
            await trio.sleep(pause.seconds)
            try:
                link = await self._making.again(self.bundle, has_slot=number in self._slots)
            except Gone as gone:
                self._give_up(str(gone))
                return
            problems = shrunk(self.first.export, link.export)
            if problems:
                link.close()
                self._give_up(f"the server came back with {', '.join(problems)}")
                return
            lost_for = trio.current_time() - self.bundle.lost_at
            self._log.info("upstream connection made again", seconds=round(lost_for, 1))
            self._use(number, link)

    @property
    def _has_left_its_disk(self) -> bool:
        """The last connection is lost, and the disk was lost with it."""
        trail, survival = self.bundle.work.trail, self.server.mode.survival
        return not self.bundle.lines and has_left_its_disk(self.first.dialect, survival, trail)

    async def _keep_spare(self) -> None:
        """Have a spare link for READs while another says nothing. The silent one is never given up for that: it
        may still be writing what it was asked to write.
        """
        bundle = self.bundle
        while True:
            while not bundle.wants_spare:
                await self._next_change()
            with suppress(Refusal):
                link = await self._making.new(beside=True)
                if shrunk(self.first.export, link.export) or not bundle.wants_spare:
                    link.close()
                else:
                    self._log.info("reads go over another connection meanwhile")
                    self._use(SPARE, link)
            while bundle.wants_spare and bundle.lines.spare is not None:
                await trio.sleep(AGAIN_SECONDS)
            self._wires.drop_spare()
            await trio.sleep(AGAIN_SECONDS)

    # --- Time

    def _loosen(self) -> None:
        """A link is lost. Only sessions of this disk still wait for what was under way."""
        self.loose = True
        for traffic in self._traffics:
            traffic.locks.loosen(traffic.in_flight)
            traffic.locks.tell()
        self._tighten_if_up()

    def _tighten_if_up(self) -> None:
        if self.loose and self.bundle.state is State.UP:
            self.loose = False
            for traffic in self._traffics:
                traffic.locks.tighten(traffic.in_flight)

    @property
    def _traffics(self) -> list[Traffic]:
        traffics = [port.traffic for port in self.joined]
        return [traffic for traffic in traffics if traffic is not None]

    def _note_change(self) -> None:
        self._tighten_if_up()
        self._changed.set()
        self._changed = trio.Event()

    async def _next_change(self) -> None:
        await self._changed.wait()

    async def _look_at_the_clock(self) -> None:
        bundle = self.bundle
        while not self.over.is_set():
            if bundle.state is State.OVER:  # of itself: it has found another disk
                self._give_up(bundle.why)
                return
            gives_up_at = math.inf
            if bundle.state is State.DOWN:
                gives_up_at = bundle.lost_at + bundle.survival.reconnect_seconds
            if trio.current_time() >= gives_up_at:
                seconds = bundle.survival.reconnect_seconds
                waited = f", and for {seconds:g} s there was no other" if seconds else ""
                why = self.server.why_down or bundle.why
                self._give_up(f"the connection to the server was lost{waited}: {why}")
                return
            changed = self._changed
            look_at = math.inf
            if bundle.hopes:
                look_at = trio.current_time() + LOOK_FOR_ENDS_SECONDS
            with trio.move_on_at(min(gives_up_at, bundle.due, look_at)):
                await changed.wait()
            if min(bundle.due, look_at) <= trio.current_time():
                bundle.tick()
                self.push()

    def _break(self, error: Exception) -> None:
        """A bug has broken it. Nobody can say any more whether what was written is lost, so the sessions are
        told that it may be. This holds at the trunk's end as well, for later nobody could tell them.
        """
        self._hub.failed(error)
        if self._broken:
            return
        self._broken = self.retired = True
        self.over.set()
        self._scope.cancel()
        try:
            self.bundle.break_down("an internal error")
        except Exception as another:  # it works on what is broken
            self._hub.failed(another)

    def _give_up(self, why: str) -> None:
        self.bundle.give_up(why)
        self.push()
        self._log.error("upstream connections given up", export=self.terms.name, why=why)
        self.over.set()
        self._scope.cancel()

    # --- Its users

    @property
    def ended(self) -> bool:
        """It has ended, or is about to: nobody can join."""
        return self._scope.cancel_called

    def push(self) -> None:
        """Do what has been asked for."""
        self._wires.push()

    def join(self) -> Port:
        """Give a port to somebody who takes part from now on."""
        port = Port(None, _not_yet)
        self.joined.add(port)
        return port

    def leave(self, port: Port) -> None:
        """Take a port back. When the last one is left, the trunk ends."""
        self.joined.discard(port)
        if not (self.joined or self.closed.is_set()):
            self._hub.see_off(self.closed)
        bundle = self.bundle
        unsettled = bundle.is_in_doubt or bundle.is_to_be_flushed
        if unsettled and not (self.joined or self.ended or self._lingers):
            self._lingers = True
            self._hub.start_soon(self._linger)
        elif not self._lingers:
            self._end_if_left()

    async def _linger(self) -> None:
        """The last port was left while something was unsettled. Before the trunk ends, find out what is lost,
        and mend it if possible. And FLUSH what was written, while all is there that may be needed for that: the
        server may go meanwhile.
        """
        try:
            with trio.move_on_after(FAREWELL_SECONDS):
                for _ in range(MOST_TRIES):
                    await self.restored()
                    if self.joined or self.ended or not self.bundle.say_farewell():
                        break
                    self.push()
                    while not (self.bundle.idle or self.joined or self.ended):
                        await trio.sleep(LOOK_IF_DONE_SECONDS)
        except Exception as error:
            self._break(error)
        self._lingers = False
        self.contain(self._end_if_left)

    def _end_if_left(self) -> None:
        if not self.joined:
            self.bundle.end()
            self._scope.cancel()
            self.over.set()

    def retire(self) -> None:
        """Another trunk has its place. Whoever still uses this one may finish, and nobody may join."""
        self.retired = True
        self._end_if_left()

    def end(self, why: str) -> None:
        """End, whoever takes part in it, and close the links in good order."""
        if not self.over.is_set():
            self.retired = True
            self.bundle.give_up(why)
            self.push()
            self.over.set()
            self._scope.cancel()

    @property
    def stands(self) -> bool:
        """A client that comes may still join."""
        return not (self.retired or self.ended)

    def _say(self, what: str, details: Mapping[str, object]) -> None:
        self._log.warning(what, export=self.terms.name, **details)


def speaks_for_all(export: Export) -> bool:
    """Say whether a FLUSH over one link to this export covers what was written over any other link to it."""
    return bool(export.flags & TransmissionFlag.CAN_MULTI_CONN)


def _not_yet() -> None:
    pass
