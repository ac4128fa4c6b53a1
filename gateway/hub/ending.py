"""How a session's end is carried out. A table (`gateway.hub.ends`) decides what each event means for the
session. This module tells the table what has happened, and does what it says.

A session puts no limit on its own end. `ending` says that the end must not take long any more, because nobody
waits for the session or we are shutting down; `ended` says that it has ended. Whoever owns the session limits
the time between the two. A client that said DISC and is still there may take the time it needs for what it
asked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

import trio

from gateway.hub.ends import Cause, ClientIs, Event, LinkIs, Sides, Takes, Then, move
from gateway.hub.lane import BufferPool
from gateway.hub.lanes import not_any_more
from gateway.hub.pumped import Pumped
from gateway.losses.rule import MOST_TRIES
from gateway.net.options import RelaySocket
from gateway.protocol.asks import Ask, Outcome
from gateway.scan.traffic import Traffic
from gateway.throttle import Bucket, Gate
from gateway.wire.constants import Cmd, Errno

LOST_SECONDS = 30
"""How long what is under way may take after the client or the upstream has gone: as long as a server may
reasonably take for one command, and no longer than others may be kept from the link."""


class Ending(Pumped):
    """Two lanes that come to an end, together."""

    __slots__ = (
        "_farewells",
        "_gate",
        "cause",
        "ended",
        "ending",
        "link_lost",
        "reason",
        "seconds_to_end",
        "settled",
        "sides",
        "survive",
    )

    def __init__(
        self,
        client: RelaySocket,
        link: RelaySocket | None,
        traffic: Traffic,
        pool: BufferPool,
        watch: Callable[[RelaySocket, int], None],
    ) -> None:
        super().__init__(client, link, traffic, pool, watch)
        self.sides = Sides(ClientIs.ASKING, LinkIs.NONE if link is None else LinkIs.OPEN)
        """How far its end has come."""
        self._gate: Gate | None = None
        self._farewells = 0  # FLUSHes of what its client has left unflushed
        self.reason = ""
        """Why the session ends, for the log; empty if the client ended it in good order."""
        self.cause: Cause | None = None
        """The same in one word; None: it does not end yet."""
        self.seconds_to_end = float(LOST_SECONDS)
        """How long the end may take from `ending` on."""
        self.settled = False
        """Set from outside, while the session is held and quiet: nothing would be lost if the link died."""
        self.survive: Callable[[str], None] | None = None
        """Called with the reason when the link has died with commands under way: it has the session carried
        over. None: the session ends."""
        self.link_lost = ""
        """Why the link is gone, if that happened while it was `settled`."""
        self.ending = trio.Event()
        self.ended = trio.Event()

    def _happens(
        self, event: Event, reason: str = "", cause: Cause | None = None, *, busy: bool = False
    ) -> Then:
        """Note that something has happened, for a `reason` whose word is `cause`, and give what is to be done
        then; `busy`: commands were under way. The state of the two sides is set here and nowhere else.
        """
        self.sides, takes, hurries, then = move(self.sides, event)
        client, link = self.sides
        if takes is Takes.ALWAYS or (busy and takes is Takes.IF_BUSY):
            self.reason, self.cause = reason, cause
        if client is not ClientIs.ASKING and not self._stopping:
            self._stopping = self._requests.stopped = True
            if self._gate is not None:
                self._gate.close()
        self._client_gone = client is ClientIs.GONE
        self._link_mute, self._link_closed = link.takes_nothing, link.gives_nothing
        self._over = link is LinkIs.LEFT
        if hurries:
            self.ending.set()
        return then

    @property
    def held_at(self) -> Bucket | None:
        """The bucket that holds its next request back, if one does."""
        return None if self._gate is None else self._gate.waits_at

    @property
    def linger(self) -> bool:
        """The client is still there and has to be told: close in a way that it can read what we sent."""
        return self.sides.client is ClientIs.TOLD

    @property
    def quiet(self) -> bool:
        """Nothing is under way, in either direction; a session that has ended is quiet."""
        return self.ended.is_set() or (self._idle and not self._replies_lane.unscanned)

    # --- What has happened

    def _say_goodbye(self, cause: Cause) -> None:
        self._happens(Event.GOODBYE, "", cause)

    def _finish(self, reason: str, seconds: float, cause: Cause) -> None:
        if not self.ending.is_set():
            self.seconds_to_end = seconds
        self._happens(Event.FINISH, reason, cause)

    def _lose_client(self, reason: str, cause: Cause) -> None:
        if self._client_gone:
            return
        self._note_answered()
        in_write = bool(self._requests.payload_left)
        if in_write:
            self._note_unsent()
        lost = Event.CLIENT_LOST_IN_WRITE if in_write else Event.CLIENT_LOST
        then = self._happens(lost, reason, cause)
        self.traffic.debt.lose_client()
        self._replies_lane.discard()
        if then is Then.DROP_BOTH:
            self._requests_lane.discard()
            if self.traffic.trail is not None:
                self.traffic.trail.losses.left(self.traffic.trail)
            if self.link is not None:
                shut_down(self.link)

    def _lose_sending(self, reason: str) -> None:
        survives = self.survive is not None
        lost = Event.SEND_FAILED_SURVIVING if survives else Event.SEND_FAILED
        self._happens(lost, reason, Cause.UPSTREAM_LOST)
        self._requests_lane.discard()

    def _lose_link(self, reason: str, cause: Cause = Cause.UPSTREAM_LOST) -> None:
        if self.traffic.memory is not None:  # the scanner may have given up before it did so
            self.traffic.memory.remember(self.traffic.last_cookie)
        then = self._happens(self._how_lost(), reason, cause)
        if self.traffic.trail is not None and (then is not Then.SURVIVE or self.settled):
            trail = self.traffic.trail
            trail.losses.died(trail, f"the connection to the server was lost: {reason}")
        if then is Then.REST:
            self._replies_lane.release()
            self.link_lost = reason
        elif then is Then.SURVIVE:
            assert self.survive is not None
            survive, self.survive = self.survive, None
            survive(reason)
        elif then is Then.FAIL:
            self._fail(reason, cause)

    def _how_lost(self) -> Event:
        """Say which of the ways to lose the link this is."""
        if self.settled and self.quiet:
            return Event.LINK_LOST_AT_REST
        return Event.LINK_LOST if self.survive is None else Event.LINK_LOST_SURVIVING

    def _fail(self, reason: str, cause: Cause = Cause.UPSTREAM_LOST) -> None:
        """The link is lost, and with it what is under way."""
        self._requests_lane.close()
        traffic = self.traffic
        busy = bool(traffic.in_flight or traffic.jobs or self._replies.payload_left)
        self._happens(Event.FAILS, reason, cause, busy=busy)
        traffic.give_up_writes()
        answers = self._replies.fail(reason)
        traffic.locks.look_again()  # others may have waited for what was under way here
        if answers is None:
            why = f"{reason}, in the middle of a reply that cannot be taken back"
            self._lose_client(why, cause)
            return
        self._happens(Event.FAILED)
        if not self._client_gone:
            self._replies_lane.out += answers
            self._send_replies()

    # --- The end

    def _come_to_the_end(self) -> None:
        """Nothing is under way any more, and nothing is begun: FLUSH if something is unflushed, else end."""
        trail = self.traffic.trail
        unflushed = trail is not None and trail.unflushed and self._farewells < MOST_TRIES
        then = self._happens(Event.DONE_UNFLUSHED if unflushed else Event.DONE)
        if then in (Then.FLUSH, Then.FLUSH_ALONE):
            self._farewells += 1
            if then is Then.FLUSH_ALONE:
                shut_down(self.client, socket.SHUT_RDWR)
                self._want(self.client, 0)
            self.traffic.asks.send(Ask(Cmd.FLUSH, 0, 0), _nobody_waits)
            self._send_what_jobs_say()
            if not self._link_mute:
                assert self.link is not None
                self._want(self.link, self._link_interest())
                return
            then = self._happens(Event.DONE)
        if then is Then.PART:
            self._requests_lane.out.append(self.traffic.plan.link.disc())
            self._send_requests()
        if then is not Then.NOTHING:
            self.close()

    def cut_off(self) -> None:
        """End now: others have waited for its client long enough."""
        why = f"the client has held up others for {LOST_SECONDS} s"
        do_all(lambda: self._lose_client(why, Cause.CLIENT_STUCK), self.close)

    def cut(self) -> None:
        """End now: what is under way has not come to its end within `seconds_to_end`."""
        late = f"cut after {self.seconds_to_end:g} s with commands under way"
        self.reason = f"{self.reason}; {late}" if self.reason else late
        self.close()

    def close(self) -> None:
        """Stop at once; what is under way is lost. The sockets stay open, for their owner to close. If a bug
        breaks one step, the others are done all the same: others wait for them.
        """
        traffic = self.traffic
        traffic.jobs.woken = not_any_more
        unsent = bool(self._replies_lane.out)
        self.survive = None
        self._pump_no_more()
        do_all(
            self._note_answered,
            lambda: self._happens(Event.CLOSE, "stopped", Cause.INTERNAL),
            self._requests_lane.close,
            self._replies_lane.close,
            self._requests.forget_pin,
            traffic.give_up_writes,
            # Others may wait for what the session has under way, and for its ranges.
            traffic.postponed.clear,
            traffic.asks.drop,
            traffic.debt.lose_client if unsent else partial(setattr, traffic.debt, "deaf", True),
            lambda: traffic.jobs.fail(Errno.EIO, "the session has ended"),
            lambda: traffic.locks.leave(traffic.in_flight),
            *([] if traffic.memory is None else [traffic.memory.forget_all]),
            *(partial(self._want, sock, 0) for sock in self._interest),
            lambda: self._happens(Event.ENDED),
            self.ending.set,
            self.ended.set,
        )


def do_all(*steps: Callable[[], object]) -> None:
    """Do all of these, in order. If one raises an error, do the others all the same, and raise the error in the
    end.
    """
    with ExitStack() as stack:
        for step in reversed(steps):
            stack.callback(step)


def _nobody_waits(_outcome: Outcome) -> None:
    pass


def shut_down(sock: RelaySocket, how: int = socket.SHUT_WR) -> None:
    """Shut a socket down, for sending or both ways; its peer may have gone already."""
    with suppress(OSError):  # the other side was quicker
        sock.shutdown(how)
