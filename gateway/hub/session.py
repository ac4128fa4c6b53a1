"""One session, as the hub drives it: two lanes between a client's socket and a link's (`lanes`), which come to
an end together (`ending`). This module has what does not end a session.

A session can be *held*: it begins no request any more, takes to its end what has begun, and is `quiet` then.
What its client sends meanwhile stays unread, DISC included, until the session may `go_on`. While it is held and
quiet, its link may be exchanged for another (`relink`). Once all that it has written is known to be durable
(`settled`), the death of its link (or of the bundle that it asks) harms nothing: the session waits for another
one, and ends only if there is none when it goes on.

If the link of a session that is to `survive` dies, a bundle is asked for all that is under way (`carry_over`),
and the client notices no more than a slow server. If the server goes in good order (`scan.going`), the session
begins no request any more. It gives its link up as soon as everything is answered that will be, or when it has
to (`leave_link`). From then on that link is like any other that has died.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial

from gateway.hub.crowd import CALM_STEPS, FEW_COMMANDS, GONE, READ, WRITE, Crowd, crowd_of
from gateway.hub.ending import shut_down
from gateway.hub.ends import Cause, Event
from gateway.hub.lane import LONG_ASIDE_BYTES, BufferPool
from gateway.hub.pump import NOT_MINE
from gateway.hub.timed import Timed
from gateway.net.options import RelaySocket
from gateway.protocol.asks import Ask, Done
from gateway.scan.going import WHY
from gateway.scan.plan import Plan
from gateway.scan.traffic import Traffic
from gateway.throttle import Charge, Charges, Doors, Gate, Watch
from gateway.wire.transmission import REQUEST

Watched = Sequence[tuple[str, Charge]]
"""Names of policies that are only observed, and what they would charge requests to."""


class Hold(Enum):
    """Why a session begins no request."""

    PAUSED = "its export is paused"
    COMES_LATE = "it is not known yet what was lost before it came (`gateway.sessions.settling`)"
    GOES_BACK = "it goes back to a link of its own (`gateway.sessions.surviving`)"


class Session(Timed):
    """Relays between `client` and `link` (non-blocking sockets) as the plan of `traffic` says. Without a link
    its jobs ask a bundle; `push` has that send what they ask. The session calls `watch(socket, events)` when
    the events that it waits for have changed, and `again(socket)` to be called once more when its turn comes.
    """

    __slots__ = ("_again", "_calm", "_doors", "_goes", "_holds", "_push", "bug")

    def __init__(
        self,
        client: RelaySocket,
        link: RelaySocket | None,
        traffic: Traffic,
        pool: BufferPool,
        watch: Callable[[RelaySocket, int], None],
        again: Callable[[RelaySocket], None],
        doors: Doors,
        push: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(client, link, traffic, pool, watch)
        traffic.jobs.woken = self.act
        self._again = again
        self._doors = doors
        self._push = push
        self._goes = False  # the client has gone; we look at that after its requests
        self._holds: set[Hold] = set()  # no request is begun as long as there is one
        self._calm = 0  # steps since many commands were under way
        self._begin_timing()
        self.bug: Exception | None = None
        """The bug of ours that ended the session, if any did."""

    def begin(self, client_data: bytes = b"") -> None:
        """Begin; `client_data` are bytes that the client sent after its last option."""
        self._have_pumped()
        self.traffic.turn.begin()
        self._step(
            lambda _: self._guard_requests(lambda: self._requests_lane.take_over(client_data)), 0
        )

    def throttle(self, charges: Charges, watched: Watched = ()) -> None:
        """Charge requests to these buckets from now on, or to none; the session may be running. Buckets that
        are only `watched` hold nothing back. Never raises.
        """
        if self._gate is None and not (charges or watched):
            return
        observed, watches = self.traffic.observed, []
        for policy, charge in watched:
            observed.watch(policy, str(charge))
            held = partial(observed.hold, policy, str(charge))
            watches.append(Watch(charge.bucket, charge.unit, held))
        if self._gate is None:
            self._gate = Gate(charges, self._let_through, self._doors, watches)
        else:
            self._gate.replace(charges, watches)
        self.traffic.gate = self._gate if charges or watches else None

    def _let_through(self) -> None:
        """The gate lets the request that it held try again: `_go_on` takes it up in the buffer."""
        self._step(self._hold_no_more, 0)

    def _hold_no_more(self, _events: int) -> None:
        self.traffic.held = False

    # --- What the hub calls

    def client_ready(self, events: int) -> int:
        """Go on after the client's socket has become ready; give the `Crowd`. Never raises."""
        self._untimed -= 1
        if self._untimed < 0:
            return self._time_client(events)
        if events == READ and self._pump is not None:
            said = self._pumped(self._pump.requests)
            if said >= Crowd.CALM:
                return said  # the usual case
            if said != NOT_MINE:
                return self._step(self._take_up_requests, said)
        self.traffic.turn.begin()
        return self._step(self._client_ready, events)

    def link_ready(self, events: int) -> int:
        """Go on after the link's socket has become ready; give the `Crowd`. Never raises."""
        if self._timed:
            return self._time_link(events)
        if events == READ and self._pump is not None:
            said = self._pumped(self._pump.replies)
            if said >= Crowd.CALM:
                return said  # the usual case
            if said != NOT_MINE:
                return self._step(self._take_up_replies, said)
        self.traffic.turn.begin()
        return self._step(self._link_ready, events)

    def _pumped(self, step: Callable[[], int]) -> int:
        try:
            return step()
        except Exception as error:
            self._break(error)
            return Crowd.NONE

    def _step(self, step: Callable[[int], None], events: int) -> int:
        if self._over:  # it has ended in this very round of the hub
            return Crowd.NONE
        try:
            step(events)
            self._go_on()
        except Exception as error:
            self._break(error)
        self.traffic.locks.tell()  # no scanner is at work now
        if self._push is not None:
            self._push()
        crowd = crowd_of(self.traffic.in_flight)
        # What a bundle is asked, or we answer by ourselves, is not in flight.
        if crowd or self._more_requests or self.traffic.jobs.waiting > FEW_COMMANDS:
            self._calm = 0
            return crowd
        self._calm += 1
        return Crowd.CALM if self._calm > CALM_STEPS else Crowd.NONE

    def _break(self, bug: Exception) -> None:
        """End over a bug of ours, which must end no session but this one. The session's owner raises it."""
        self.bug = bug
        try:
            self.close()
        except Exception as another:  # its traceback shows the first bug as well
            self.bug = another

    def _client_ready(self, events: int) -> None:
        if events & GONE and self._more_requests:
            self._goes = True
            events &= ~GONE
        if events & GONE:
            if self._holds and self._requests.between_messages and not self._replies_lane.out:
                return  # what it said before it went, and its end, are read when the session goes on
            events |= self._interest[self.client]  # to read or write will tell what is wrong
            if not self._interest[self.client]:
                self._lose_client("the client has vanished", Cause.CLIENT_RESET)
        if events & WRITE:
            self._send_replies()
        if events & READ and not self._client_gone:
            self._guard_requests(self._requests_lane.receive)

    def _link_ready(self, events: int) -> None:
        assert self.link is not None
        if events & GONE:
            events |= self._interest[self.link]
        if events & WRITE:
            self._send_requests()
        if self._link_closed or self._replies_lane.out:
            return
        if events & READ or self._more_replies:
            self._receive_replies()

    def _go_on(self) -> None:
        """Take up what can go on; say what to wait for next; end if there is nothing."""
        if self.traffic.postponed:
            self.traffic.begin_postponed()
            self._send_what_jobs_say()
        if (
            self._flowing
            and not self._holds
            and self._requests_lane.unscanned < REQUEST.size
            and not self._requests_lane.out
            and not self._replies_lane.out
            and not self._more_replies
            and not self._stopping
            and self.traffic.room > 0
        ):
            return  # the usual case: both sides are read already
        if self._may_leave_link:
            self._leave_link()
        self._resume_requests()
        if self._holds:
            self._requests_lane.put_aside(LONG_ASIDE_BYTES)
        elif self.traffic.held:
            self._requests_lane.put_aside()
        if self._stopping and (self._link_closed or self._idle) and not self._replies_lane.out:
            self._come_to_the_end()
            return
        self._want(self.client, self._client_interest())
        if self._more_requests:
            self._again(self.client)
        elif self._goes:
            self._goes = False
            self._watch(self.client, self._interest[self.client])  # so that we are told once more
        if self.link is not None:
            self._want(self.link, self._link_interest())
            if self._more_replies and not self._replies_lane.out:
                self._again(self.link)
        self._flowing = all(interest == READ for interest in self._interest.values())

    # --- What others have it do

    def act(self, go_on: Callable[[], None]) -> None:
        """Let a job go on, or begin, between two steps of the session: it was granted a range that another
        session had, or a hook has come to an end. Never raises; what goes wrong ends the session.
        """

        def step(_events: int) -> None:
            go_on()
            self._send_what_jobs_say()

        self._step(step, 0)

    def finish(self, reason: str, seconds: float, cause: Cause = Cause.SHUTDOWN) -> None:
        """End in good order, within `seconds`: begin no more requests, answer those under way, then close.

        Never raises.
        """
        self._step(lambda _: self._finish(reason, seconds, cause), 0)

    # --- Holding

    def hold(self, why: Hold = Hold.PAUSED) -> None:
        """Begin no request any more, until `go_on` was called for each `Hold`. Never raises."""
        self._step(lambda _events: self._hold(why), 0)

    def _hold(self, why: Hold) -> None:
        self._holds.add(why)
        self._requests.stopped = True

    def go_on(self, why: Hold = Hold.PAUSED) -> None:
        """Take requests up again, in the buffer first, unless another `Hold` is left. Never raises."""
        self._step(lambda _events: self._hold_it_no_more(why), 0)

    def _hold_it_no_more(self, why: Hold) -> None:
        self._holds.discard(why)
        if why is Hold.PAUSED:
            self.settled = False
        self.traffic.has_waited()
        self._requests.stopped = self._begins_nothing
        # If the client went meanwhile, we ignored that, and epoll tells it a second time only if asked.
        self._watch(self.client, self._interest[self.client])
        if not self.settled and self.link_lost:
            lost, self.link_lost = self.link_lost, ""
            self._lose_link(lost)

    @property
    def held(self) -> bool:
        """It begins no request, and has not ended."""
        return bool(self._holds) and not self.ended.is_set()

    @property
    def has_to_do(self) -> bool:
        """Something is under way in it, or waits to be begun."""
        traffic = self.traffic
        return bool(
            traffic.in_flight
            or traffic.jobs
            or traffic.held
            or self._holds
            or self._replies_lane.out
            or self.waits_for_the_rest
        )

    def is_held(self, why: Hold) -> bool:
        """Say whether it is held for this reason."""
        return why in self._holds

    @property
    def _begins_nothing(self) -> bool:
        """No request is begun; only what has begun is taken to its end."""
        return self._stopping or bool(self._holds) or self.traffic.going.begun

    # --- Another link, while it is held

    def part_from_link(self) -> None:
        """Say DISC to the upstream and close the connection, while `settled` and quiet. The session lives on,
        and waits for another link. Never raises.
        """
        self._step(self._part_from_link, 0)

    def _part_from_link(self, _events: int) -> None:
        assert self.link is not None
        assert self.settled
        assert self.quiet
        if not self.link_lost:
            self._say_disc()
            self._lose_link("the connection to the upstream was closed to be made anew")
            shut_down(self.link, socket.SHUT_RDWR)

    def lose(self, reason: str, seconds: float, cause: Cause = Cause.UPSTREAM_LOST) -> None:
        """The bundle that a session without a link asks answers no more: wait for another one if `settled` and
        quiet, else end within `seconds`. Never raises.
        """
        self._step(lambda _: self._lose(reason, seconds, cause), 0)

    def _lose(self, reason: str, seconds: float, cause: Cause) -> None:
        if self.settled and self.quiet and not self._stopping:
            self._lose_link(reason, cause)
        else:
            self._finish(reason, seconds, cause)

    def relink(
        self,
        link: RelaySocket | None,
        traffic: Traffic,
        push: Callable[[], None] | None = None,
    ) -> None:
        """Go on over another link (or without one, and then with `push`), while held and quiet; `traffic` is
        made for it, on the same terms with the client. The caller has taken the old link's socket out of the
        hub and put the new one's in (`Hub.relink` does both), and closes the old one.
        """
        assert self._holds
        assert self.quiet
        self._time_no_more()
        self._lead_over(link, traffic)
        traffic.jobs.woken = self.act
        self._push = push
        self._happens(Event.UNLINKED if link is None else Event.RELINKED)
        self.link_lost = ""
        self.settled = False
        self._step(lambda _events: None, 0)

    # --- Living on without the link

    def server_goes(self) -> None:
        """The server has said that it goes: begin no request over this link any more. This is called in the
        middle of a step.
        """
        self._requests.stopped = True
        self._flowing = False

    def leave_link(self, traffic: Traffic) -> None:
        """Give up the link of this traffic, if the session still has it: the server has had its time to answer.
        Never raises.
        """
        if self.traffic is traffic and traffic.going.begun:
            self._step(lambda _events: self._leave_link(), 0)

    def _leave_link(self) -> None:
        assert self.link is not None
        if not (self._link_mute or self._requests.payload_left or self._requests_lane.out):
            self._say_disc()
        self._lose_link(WHY)

    def _say_disc(self) -> None:
        sink = self._requests_lane.sink
        with suppress(OSError):  # it has gone already
            if sink is not None:
                traffic = self.traffic
                sink.send(traffic.plan.link.disc(unanswered=traffic.in_flight))

    @property
    def _may_leave_link(self) -> bool:
        """Nothing more will be answered over a link whose server goes, and nothing is half sent."""
        traffic = self.traffic
        return (
            traffic.going.begun
            and not self._link_closed
            and not traffic.going.waits(traffic.in_flight)
            and self._replies.between_messages
            and not self._requests.payload_left
            and not self._requests_lane.out
        )

    def carry_over(
        self,
        plan: Plan,
        ask: Callable[[Ask, Done], None],
        adopt: Callable[[Ask, Done], None],
        push: Callable[[], None],
    ) -> None:
        """Go on without the link, which has died, by asking a bundle; `push` has that send what is asked. What
        was under way is asked again, by `adopt` what the server may have done. For `survive` to call.
        """
        self._push = push
        self._time_no_more()
        self._lead_nowhere(plan, ask, adopt)
        self._happens(Event.CARRIED_OVER)
        self._send_what_jobs_say()
