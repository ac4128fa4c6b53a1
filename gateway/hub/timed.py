"""A session of which some requests are timed (`gateway.scan.timing` says which): this has what is done around
the steps in which they come, and in which their replies do. All other steps cost a look at a number.
"""

from __future__ import annotations

from gateway.hub.ending import Ending
from gateway.scan.timing import BATCHES, NOTHING


class Timed(Ending):
    """Two lanes that come to an end, and are timed."""

    __slots__ = ("_rest", "_timed", "_untimed")

    def _begin_timing(self) -> None:
        self._untimed = 0  # how many batches are left without a sample
        self._timed = NOTHING  # the cookie of the request that is timed
        self._rest = 0  # the bytes of its reply that are missing, once that has begun

    def _time_no_more(self) -> None:
        """Forget what is timed over a link that is left."""
        self._timed = NOTHING

    def client_ready(self, events: int) -> int:
        """See `Session`."""
        raise NotImplementedError

    def link_ready(self, events: int) -> int:
        """See `Session`."""
        raise NotImplementedError

    def _time_client(self, events: int) -> int:
        """Do a step for the client, and time one of the requests that come."""
        self._untimed = BATCHES
        traffic = self.traffic
        timing = traffic.timing
        if timing is None or self._timed or not timing.comes():
            return self.client_ready(events)
        before, link = traffic.last_cookie, self.link
        crowd = self.client_ready(events)
        timed = timing.sent(before, traffic.last_cookie, traffic.in_flight)
        if self.traffic is traffic and self.link is link:
            self._timed, self._rest = timed, 0
        return crowd

    def _time_link(self, events: int) -> int:
        """Do a step for the link, and see whether it brings the reply, to its end."""
        traffic, link, timed = self.traffic, self.link, self._timed
        timing = traffic.timing
        self._timed = NOTHING
        received = 0.0 if timing is None else timing.now()
        crowd = self.link_ready(events)
        if timing is None or self.traffic is not traffic or self.link is not link:
            return crowd
        if self._link_closed:  # so it was no answer of the server's
            return crowd
        if timed in traffic.in_flight:
            self._timed = timed
            return crowd
        before, self._rest = self._rest, self._replies.payload_left
        if self._rest and (not before or self._rest < before):
            self._timed = timed
        else:  # nothing is missing, or another reply has begun
            timing.answered(received)
        return crowd
