"""Lanes whose usual steps are done by a pump (`gateway.hub.pump`), and what is done where that has stopped.
Where a side is TLS, the pump does only their scans.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from gateway.hub import pump
from gateway.hub.lane import BufferPool
from gateway.hub.lanes import Lanes
from gateway.hub.pump import Pump, is_plain, pump_for
from gateway.hub.tapped import Midway
from gateway.net.options import RelaySocket
from gateway.scan.traffic import Traffic

Tap = Callable[[], tuple[RelaySocket, RelaySocket | None]]
"""Gives the sockets by which somebody looks on, in place of a session's own: its client's, and that of the link
which it has now.
"""


class Pumped(Lanes):
    """Two lanes with a pump."""

    __slots__ = ("_pool", "_pump", "_tap")

    def __init__(
        self,
        client: RelaySocket,
        link: RelaySocket | None,
        traffic: Traffic,
        pool: BufferPool,
        watch: Callable[[RelaySocket, int], None],
    ) -> None:
        super().__init__(client, link, traffic, pool, watch)
        self._pool = pool
        self._pump: Pump | None = None
        self._tap: Tap | None = None

    def be_tapped(self, tap: Tap | None) -> None:
        """Have somebody look on; None: nobody any more. This is called between two steps. Never raises."""
        self._tap = None if self._over else tap
        self._go_over(self.client, self.link)
        if not self._over:
            self._have_pumped()

    def _go_over(self, client: RelaySocket, link: RelaySocket | None) -> None:
        """Go on over other sockets, by which the same comes and goes."""
        self._requests_lane.source = self._replies_lane.sink = client
        self._requests_lane.sink = self._replies_lane.source = link

    def midway(self) -> tuple[Midway, Midway]:
        """Say where we are in what is said over the client's connection, and over the link."""
        requests, replies = self._requests_lane, self._replies_lane
        begun, answered = self._requests, self._replies
        of_client = Midway(
            begun.rest, requests.unscanned_bytes, replies.unsent + answered.payload_left
        )
        of_link = Midway(
            answered.rest, replies.unscanned_bytes, requests.unsent + begun.payload_left
        )
        return of_client, of_link

    def _have_pumped(self) -> None:
        """See `Lanes`."""
        if self._tap is not None:
            self._pump_no_more()
            self._go_over(*self._tap())
            return
        lanes = self._requests_lane, self._replies_lane
        made = pump_for(
            self,
            self.client,
            self.link,
            self.traffic,
            self._requests,
            self._replies,
            lanes,
            self._pool,
        )
        self._pump_no_more()
        if made is not None and is_plain(self.client) and is_plain(self.link):
            self._pump = made
        elif made is not None:
            self._requests_lane.usual = made.scan_requests
            self._replies_lane.usual = made.scan_replies

    def _pump_no_more(self) -> None:
        self._pump = None
        self._requests_lane.usual = self._replies_lane.usual = None

    def _take_up_requests(self, said: int) -> None:
        """Go on where the pump has come to the end of the usual case."""
        match said:
            case pump.GO_ON:
                self._guard_requests(self._requests_lane.scan)
            case pump.RECEIVE_FAILED:
                self._guard_requests(self._raise_what_failed)
            case pump.SEND_FAILED:
                self._fail_sending(self._what_failed())
            case _:
                self._guard_requests(_nothing)

    def _take_up_replies(self, said: int) -> None:
        """The same for replies."""
        match said:
            case pump.GO_ON:
                self._guard_replies(self._replies_lane.scan)
            case pump.RECEIVE_FAILED:
                self._guard_replies(self._raise_what_failed)
            case pump.SEND_FAILED:
                self._fail_client(self._what_failed())
                self._guard_replies(_nothing)
            case _:
                self._guard_replies(_nothing)

    def _what_failed(self) -> OSError:
        assert self._pump is not None
        error = self._pump.error
        return OSError(error, os.strerror(error))

    def _raise_what_failed(self) -> None:
        raise self._what_failed()


def _nothing() -> None:
    pass
