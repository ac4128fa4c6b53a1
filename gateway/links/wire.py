"""The sockets of a bundle's lines, in the hub.

A wire hands what it receives to the scanner of its line. The answers go to the sessions, and what these ask
then is sent with the rest. So a round of the hub costs a line one receive and one send, whatever its sessions
do. If the line's turn is over before everything is scanned, the rest is scanned in the next round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.bundle.core import Bundle
from gateway.bundle.line import SPARE, Line
from gateway.hub.crowd import GONE, READ, WRITE, crowd_of
from gateway.hub.lane import BufferPool, Lane
from gateway.hub.tapped import Midway
from gateway.net.options import RelaySocket
from gateway.scan.early import unsent_writes
from gateway.scan.going import WHY
from gateway.scan.turn import Turn
from gateway.wire.errors import WireError

if TYPE_CHECKING:
    from gateway.hub.hub import Hub


Tap = Callable[["Wire"], RelaySocket]
"""Gives the socket by which somebody looks on, in place of a wire's own."""


class Wire:
    """The socket of one line. Its owner closes it when it is `lost`."""

    def __init__(
        self,
        sock: RelaySocket,
        line: Line,
        pool: BufferPool,
        watch: Callable[[RelaySocket, int], None],
        again: Callable[[RelaySocket], None],
        wires: Wires,
    ) -> None:
        self.socket = sock
        self.line = line
        self._requests = Lane(sock, sock, line.scan, pool)
        self._replies = Lane(sock, sock, line.scan, pool)
        self._watch = watch
        self._again = again
        self._wires = wires
        self._interest = 0
        self._more = False  # replies are left in the buffer, held back by nothing but others' turns
        self._lost = False
        line.traffic.turn = Turn(time.monotonic)

    def be_tapped(self, tap: Tap | None) -> None:
        """Have somebody look on; None: nobody any more. Called between two steps."""
        sock = self.socket if tap is None else tap(self)
        for lane in (self._requests, self._replies):
            lane.source = lane.sink = sock

    def midway(self) -> Midway:
        """Say where we are in what is said over it."""
        replies = self._replies
        return Midway(self.line.scan.rest, replies.unscanned_bytes, self._requests.unsent)

    def ready(self, events: int) -> int:
        """Go on after the socket has become ready; give the `Crowd`. Never raises."""
        self.line.traffic.turn.begin()
        if events & GONE:
            events |= READ
        if (events & READ or self._more) and not self._lost:
            try:
                self._receive()
            except Exception as error:
                self.end()
                self._wires.broken(error)
        self._wires.push()
        return self._crowd

    def _receive(self) -> None:
        lane = self._replies
        self._note_unsent()
        try:
            if self._more:
                lane.scan()
            else:
                lane.receive(self.line.traffic.in_flight)
            self._more = self.line.traffic.turn.over and lane.unscanned > 0
            lane.release()
            self._wires.bundle.heard(self.line)
        except WireError as error:
            self._lose(f"the upstream broke the protocol: {error}")
            return
        except OSError as error:
            self._lose(f"the upstream's connection failed: {error.strerror or error}")
            return
        if lane.ended:
            self._lose("the upstream closed the connection")

    def _note_unsent(self) -> None:
        """Note of which WRITEs not all data has been sent: a reply to one of these is early."""
        traffic = self.line.traffic
        if self._requests.out or self.line.to_send or traffic.early.unsent:
            unsent = sum(map(len, (*self._requests.out, *self.line.to_send)))
            header = traffic.plan.link.request.size
            traffic.early.unsent = unsent_writes(traffic.in_flight, unsent, header)

    def send(self) -> bool:
        """Send as much as goes of what the line has to send, and wait until the rest can go. Say whether there
        are answers now to what was asked before.
        """
        lane, line = self._requests, self.line
        if self._lost:
            return False
        if line.to_send:
            lane.out += line.to_send
            line.to_send.clear()
        try:
            lane.send()
        except OSError as error:
            self._lose(f"the upstream takes no more requests: {error.strerror or error}")
            return False
        self._want((0 if self._more else READ) | (WRITE if lane.out else 0))
        if self._more:
            self._again(self.socket)
        held = len(line.traffic.early.held)
        if held:
            self._note_unsent()
            line.scan.settle_early()
        return len(line.traffic.early.held) < held

    @property
    def _crowd(self) -> int:
        return crowd_of(self.line.traffic.in_flight)

    def _want(self, events: int) -> None:
        if self._interest != events:
            self._interest = events
            self._watch(self.socket, events)

    def _lose(self, why: str) -> None:
        self.end()
        self._wires.lost(self, why)

    @property
    def ended(self) -> bool:
        """Nothing more is taken from it."""
        return self._lost

    @property
    def may_leave(self) -> bool:
        """Its server goes, and everything is answered that will be; nothing is half sent."""
        return self.line.is_done and not self._requests.out

    def leave(self) -> None:
        """Give the link up, whose server goes."""
        self.say_disc()
        self._lose(WHY)

    def end(self) -> None:
        """Take nothing more from the socket, and send nothing more to it."""
        self._lost = True
        self._requests.close()
        self._replies.close()
        self._want(0)

    def say_disc(self) -> None:
        """Say goodbye, where nothing is half sent."""
        sink = self._requests.sink
        if not self._lost and not self._requests.out and sink is not None:
            with suppress(OSError):  # it has gone already
                traffic = self.line.traffic
                sink.send(traffic.plan.link.disc(unanswered=traffic.in_flight))


class Wires:
    """The wires of one bundle. `gone` is called with a wire that is to be closed, and why. `broken` is called
    with a bug of ours, which must end no session but those of this bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        hub: Hub,
        gone: Callable[[Wire, str], None],
        broken: Callable[[Exception], None],
    ) -> None:
        self.bundle = bundle
        self._hub = hub
        self._gone = gone
        self.broken = broken
        self._wires: dict[Line, Wire] = {}
        self._tap: Tap | None = None

    def be_tapped(self, tap: Tap | None) -> None:
        """Have somebody look on at all wires, those that come included; None: nobody any more."""
        self._tap = tap
        for wire in self._wires.values():
            wire.be_tapped(tap)

    def add(self, sock: RelaySocket, line: Line) -> None:
        """A link has been made: use it."""
        hub = self._hub
        wire = Wire(sock, line, hub.pool, hub.watch, hub.again, self)
        self._wires[line] = wire
        if self._tap is not None:
            wire.be_tapped(self._tap)
        hub.enter(sock, wire.ready, self)
        if line.number == SPARE:
            self.bundle.spare_linked(line)
        else:
            self.bundle.linked(line)
        self.push()

    def drop_spare(self) -> None:
        """Leave the spare line."""
        spare = self.bundle.lines.spare
        if spare is not None:
            wire = self._wires[spare]
            wire.say_disc()
            wire.end()
            self.lost(wire, "")
            self.push()

    def lost(self, wire: Wire, why: str) -> None:
        """A wire has failed."""
        self._hub.leave(wire.socket)
        del self._wires[wire.line]
        if wire.line is self.bundle.lines.spare:
            self.bundle.spare_lost()
        else:
            self.bundle.lost(wire.line, why)
        self._gone(wire, why)

    def push(self) -> None:
        """Have the bundle do what it can do, and send what comes of it. Never raises."""
        try:
            self._push()
        except Exception as error:
            self.broken(error)

    def _push(self) -> None:
        # If a line is lost while we send, or is left, the others may do more; and so they may after an answer.
        again = True
        while again:
            lines = len(self._wires)
            self.bundle.push()
            answered = [wire.send() for wire in list(self._wires.values())]
            for line in list(self.bundle.to_be_left):
                wire = self._wires.get(line)  # none: all were closed
                if wire and (line.number == SPARE or wire.may_leave or self.bundle.is_late(line)):
                    wire.leave()
            again = any(answered) or lines != len(self._wires)

    def take_out(self, line: Line) -> None:
        """Take no more care of a line's socket: from now on its link is used in another way."""
        wire = self._wires.pop(line)
        wire.end()
        self._hub.leave(wire.socket)

    @property
    def busy(self) -> bool:
        """Replies are still to come."""
        return any(line.under_way for line, wire in self._wires.items() if not wire.ended)

    def close(self) -> None:
        """Leave all links, in good order where nothing is under way."""
        for wire in list(self._wires.values()):
            if not wire.line.under_way:
                wire.say_disc()
            wire.end()
            self._hub.leave(wire.socket)
            self._gone(wire, "")
        self._wires.clear()
