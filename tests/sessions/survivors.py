"""A session that lives on when its link dies, without Trio: what `gateway.sessions.seat` and `surviving` do,
with links that the test makes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from gateway.bundle.core import Bundle
from gateway.bundle.line import Line
from gateway.bundle.ports import Port
from gateway.hub.lane import BufferPool
from gateway.hub.session import Session
from gateway.jobs.locks import RangeLocks
from gateway.links.uplink import note_writes
from gateway.links.wire import Wire
from gateway.links.wire import Wires as BundleWires
from gateway.losses.rule import Losses, Trail
from gateway.losses.survival import Doubt, Survival
from gateway.net.options import RelaySocket
from gateway.protocol.export import Export, Offer
from gateway.scan.memory import Memory
from gateway.scan.plan import PROPER, plan
from gateway.scan.traffic import Traffic
from gateway.throttle import Doors
from tests.hub.wires import Wires
from tests.tools.defaults import SURVIVAL, bundle_of

DURABLE = replace(
    SURVIVAL, unflushed=Doubt.ASSUME_DURABLE, late_write_seconds=0, check_identity=False
)
"""Before a server that loses nothing with its connections, and whose disk others write to of whom the session's
`Losses` know nothing."""


class Survivor:
    """`wires` are the session's, `wires.upstream` the far end of the link that it has now."""

    def __init__(
        self,
        promised: Offer,
        export: Export,
        *,
        survival: Survival = DURABLE,
        translated: str = "",
        losses: Losses | None = None,
        locks: RangeLocks | None = None,
        pool: BufferPool | None = None,
        doors: Doors | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._promised, self._export = promised, export
        self._survival, self._clock = survival, clock
        self._translated = translated
        self._locks = locks or RangeLocks()
        self.disk = losses or Losses()
        self.debt = self.disk.open()
        trail = self.disk.trail(self.debt)
        self.disk.came_up(trail)
        self.traffic = self._traffic()
        self.wires = Wires(self.traffic, pool, doors)
        self._has_link(trail)
        self.bundle: Bundle | None = None
        """While it has no link of its own."""
        self.port: Port | None = None
        self.losses = 0
        self.returns = 0
        """How often it had a link of its own again."""
        self._far: list[socket.socket] = []

    @property
    def session(self) -> Session:
        return self.wires.session

    def _traffic(self) -> Traffic:
        made = plan(self._promised, self._export, translated=self._translated)
        return Traffic(made, self._locks, debt=self.debt)

    def _has_link(self, trail: Trail) -> None:
        """What `gateway.sessions.seat` does for a session that has a link of its own."""
        link = self.session.link
        assert link is not None
        note_writes(trail, self.traffic, link, self.session.act)
        self.traffic.memory = Memory(trail)
        self.session.survive = self._carry_over

    def _carry_over(self, why: str) -> None:
        self.losses += 1
        memory, wires = self.traffic.memory, self.wires
        assert memory is not None
        trail = self.traffic.trail
        assert trail is not None
        bundle = bundle_of(self._export, 1, trail, clock=self._clock, survival=self._survival)
        port = Port(self.traffic, lambda: self.session.act(partial(bundle.answers, port)))
        wires.part_from_link()
        hub: Any = wires  # it has what of a hub is needed
        self._bundle_wires = BundleWires(bundle, hub, self._gone, _raise)
        memory.remember(self.traffic.last_cookie)
        self.traffic.locks.loosen(self.traffic.in_flight)
        bundle.begin_without(why)
        self.bundle, self.port = bundle, port
        translated = plan(self._promised, self._export, translated="its link was lost")
        self.session.carry_over(
            translated, partial(bundle.ask, port), partial(bundle.adopt, port), self.push
        )

    def push(self) -> None:
        if self.bundle is not None:
            self._bundle_wires.push()

    def _gone(self, wire: Wire, _why: str) -> None:
        self.losses += 1
        _close(wire.socket)

    @property
    def down(self) -> bool:
        """There is no link."""
        return self.bundle is not None and not self.bundle.lines

    def connect(self) -> socket.socket:
        """Make the link anew; give its far end."""
        assert self.bundle is not None
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
        self._far.append(far)
        self.wires.upstream.close()
        self.wires.upstream = far
        ids = {context.name: context.id for context in self._export.contexts}
        self._bundle_wires.add(near, Line(0, self._export, PROPER, ids))
        return far

    def go_back(self) -> bool:
        """Go back to a link of its own, if all is in order and quiet; say whether it did."""
        bundle, session = self.bundle, self.session
        if bundle is None or not bundle.in_order:
            return False
        if not session.held:
            session.hold()
        if not (session.quiet and session.held and bundle.idle and bundle.lines):
            return False
        [line] = bundle.lines.by_number.values()
        wire = self._bundle_wires._wires[line]
        self._bundle_wires.take_out(line)
        self.bundle = None
        trail = bundle.hand_on_trail()
        self.traffic = self._traffic()
        self.wires.relink_to(wire.socket, self.traffic)
        self._has_link(trail)
        session.go_on()
        self.returns += 1
        return True

    def hang_up(self) -> None:
        """Close the near ends."""
        if self.bundle is not None and self.port is not None:
            self.bundle.leave(self.port)
            self._bundle_wires.close()
            self.bundle = None
        self.disk.end(self.debt)
        self.wires.hang_up()

    def close(self) -> None:
        """Close everything."""
        if self.wires.open:
            self.hang_up()
        self.wires.close()
        for far in self._far:
            far.close()


def _close(sock: RelaySocket) -> None:
    assert isinstance(sock, socket.socket)
    sock.close()


def _raise(bug: Exception) -> None:
    raise bug
