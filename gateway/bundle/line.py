"""One link of a bundle: what is under way on it, and the scanner of its replies. No socket."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.peer import UNKNOWN, Peer
from gateway.protocol.export import Export, offer, view_of
from gateway.quirks import Dialect
from gateway.scan.chunks import reply_scan
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.wire.extents import Extents

SPARE = -1
"""The number of the spare line, which has no stripes."""


class Line:
    """A link that is asked. `number` is its number in the bundle. `ids` are the bundle's ids of the meta
    contexts, by name; the link's ids are turned into these. `peer` is who is at its other end.
    """

    def __init__(
        self,
        number: int,
        export: Export,
        dialect: Dialect,
        ids: Mapping[str, int],
        peer: Peer = UNKNOWN,
    ) -> None:
        self.number = number
        self.peer = peer
        self.traffic = Traffic(plan(offer(view_of(export), structured=False), export, dialect))
        self.scan = reply_scan(self.traffic)
        self._ids = {each.id: ids[each.name] for each in export.contexts if each.name in ids}
        self.heard_at = 0.0
        """When it last said something, or was asked something while nothing was under way."""
        self.recognised = False
        """What was flushed before was found over it, or nothing was flushed."""
        self.made_at = 0.0
        """When it was linked."""
        self.stalled = False
        """It has not answered for `stall-seconds`."""
        self.deaths_before = 0
        """How many lines of its bundle had died when it was linked."""
        self.leave_by = 0.0
        """When it is left at the latest, if it `goes`."""

    @property
    def to_send(self) -> list[memoryview | bytes]:
        """Requests that are not on the link yet. Whoever takes them clears it."""
        return self.traffic.to_upstream

    def as_the_bundle_has_it(self, status: Mapping[int, Extents]) -> dict[int, Extents]:
        """Give what a reply says of each meta context under the bundle's ids, where it is under the link's."""
        return {self._ids[ours]: said for ours, said in status.items() if ours in self._ids}

    @property
    def goes(self) -> bool:
        """Its server has said that it goes (`gateway.scan.going`): nothing is sent over it any more."""
        return self.traffic.going.begun

    @property
    def is_done(self) -> bool:
        """Whatever was sent over it is answered, if only by ESHUTDOWN."""
        return not self.traffic.going.waits(self.traffic.in_flight)

    @property
    def has_answered(self) -> bool:
        """Something that was asked over it has its answer."""
        return self.traffic.last_cookie > len(self.traffic.in_flight)

    @property
    def under_way(self) -> int:
        """How many asks have no answer yet."""
        return len(self.traffic.asks)
