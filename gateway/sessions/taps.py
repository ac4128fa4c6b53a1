"""The taps by which a trace looks on at a session: on its client's connection, and on its server's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from gateway.access.chain import Membership
from gateway.hub.session import Session
from gateway.hub.tapped import Midway, Tapped
from gateway.jobs.locks import ASK
from gateway.links.trunk import Trunk
from gateway.links.wire import Wire
from gateway.net.options import RelaySocket
from gateway.scan.plan import Plan
from gateway.scan.traffic import Traffic
from gateway.sessions.opened import Opened
from gateway.trace.asked import AskedFor
from gateway.trace.decode import Answers, Decoder, Requests
from gateway.trace.message import Direction, Message, Requested

SHARED = ""
"""What stands for a session where a link is shared by several."""


class Traced(Protocol):
    """What is needed of a session that is relayed (`gateway.sessions.service`)."""

    name: str
    membership: Membership
    opened: Opened
    traffic: Traffic
    relaying: Session


class Looks(Protocol):
    """What a tap needs of the trace (`gateway.sessions.tracing`)."""

    payloads: int
    failed: Callable[[BaseException], None]

    def say(self, message: Message) -> None:
        """A message was seen."""

    def clock(self) -> float:
        """Give the seconds since it began."""

    def new_connection(self) -> int:
        """Give the number of one more connection."""


class _Tap:
    """A tap on one connection."""

    def __init__(
        self,
        trace: Looks,
        sock: RelaySocket,
        direction: Callable[[bool], Direction],
        midway: Midway,
        asked: list[tuple[int, Requested]],
        whose: Callable[[int], str] | None = None,
    ) -> None:
        """`direction` gives the two directions; True: what we send."""
        here, there = direction(False), direction(True)
        known, more = AskedFor(asked), (trace.say, trace.clock, trace.payloads)
        received: Decoder
        sent: Decoder
        if here.side == "client":
            received, sent = Requests(here, known, *more), Answers(there, known, *more)
        else:
            received = Answers(here, known, *more)
            sent = Requests(there, known, *more, whose or _nobody_asks)
        received.skip(midway.rest_received)
        sent.skip(midway.rest_sent)
        self._decoders = received, sent
        self.socket = Tapped(sock, received.feed, sent.feed, trace.failed)
        self.socket.show_received(midway.received)

    def end(self) -> None:
        """Nobody looks on any more."""
        for decoder in self._decoders:
            decoder.end()


class SessionTap:
    """The taps of one session: on its client, and on the link that it has."""

    def __init__(self, trace: Looks, relayed: Traced) -> None:
        self._trace = trace
        self._session = relayed.relaying
        self._id = relayed.membership.session.client.id
        offer = relayed.opened.offer
        direction = partial(
            Direction,
            self._id,
            trace.new_connection(),
            "client",
            framing=offer.framing,
            contexts={context.id: context.name for context in offer.contexts},
        )
        asked = [
            (cookie, (word, offset - offer.base, length))
            for cookie, word, offset, length in relayed.traffic.in_flight.values()
            if not word & ASK
        ]
        midway, _of_link = self._session.midway()
        self._client = _Tap(trace, self._session.client, direction, midway, asked)
        self.client = self._client.socket
        self._link: tuple[RelaySocket, _Tap] | None = None

    def sockets(self) -> tuple[RelaySocket, RelaySocket | None]:
        """Give the sockets that the session has now, each with a tap. Never raises."""
        try:
            return self._sockets()
        except Exception as error:  # no session may end over a bug here
            self._trace.failed(error)
            return self._session.client, self._session.link

    def _sockets(self) -> tuple[RelaySocket, RelaySocket | None]:
        link = self._session.link
        if self._link is not None and self._link[0] is not link:
            self._link[1].end()
            self._link = None
        if link is None:
            return self.client, None
        if self._link is None:
            _of_client, midway = self._session.midway()
            traffic = self._session.traffic
            tap = _tap_link(self._trace, link, traffic, midway, self._id, self._whose)
            self._link = link, tap
        return self.client, self._link[1].socket

    def _whose(self, ours: int) -> str:
        """Say for which request of the client we ask a server."""
        entry = self._session.traffic.in_flight.get(ours)
        if entry is None:
            return ""
        cookie, word, _offset, _length = entry
        return "the gateway's own" if word & ASK else f"the client's {cookie}"

    def end(self) -> None:
        """Nobody looks on any more."""
        self._client.end()
        if self._link is not None:
            self._link[1].end()


class TrunkTap:
    """The taps on links that sessions share."""

    def __init__(self, trace: Looks, trunk: Trunk) -> None:
        self._trace = trace
        self._trunk = trunk
        self._taps: dict[RelaySocket, _Tap] = {}
        trunk.be_tapped(self._socket)

    def _socket(self, wire: Wire) -> RelaySocket:
        sock, traffic = wire.socket, wire.line.traffic
        tap = self._taps[sock] = _tap_link(self._trace, sock, traffic, wire.midway(), SHARED)
        return tap.socket

    def end(self) -> None:
        """Nobody looks on any more."""
        self._trunk.be_tapped(None)
        for tap in self._taps.values():
            tap.end()


def _tap_link(
    trace: Looks,
    link: RelaySocket,
    traffic: Traffic,
    midway: Midway,
    session: str,
    whose: Callable[[int], str] | None = None,
) -> _Tap:
    asked = [
        (ours, (word & 0xFFFFFFFF, offset, length))
        for ours, (_cookie, word, offset, length) in traffic.in_flight.items()
    ]
    plan = traffic.plan
    direction = partial(
        Direction,
        session,
        trace.new_connection(),
        "server",
        framing=plan.link,
        contexts=_names(plan),
    )
    return _Tap(trace, link, direction, midway, asked, whose)


def _names(plan: Plan) -> dict[int, str]:
    """Give the names of the meta contexts by the ids that a link has for them."""
    names = {context.id: context.name for context in plan.offer.contexts}
    return {link_id: names[ours] for link_id, ours in plan.context_ids.items() if ours in names}


def _nobody_asks(_cookie: int) -> str:
    return ""
