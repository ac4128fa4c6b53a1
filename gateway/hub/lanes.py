"""The two lanes of a session, and what passes between them: what is received, scanned and sent, and which
events are waited for next.

The lanes are independent: replies are read while a request cannot be written, and the other way round. If one
direction could hold up the other, clients that write and read at once would hang. What we say by ourselves
(answers of our own, what jobs ask and say) is put between two messages.

`Lanes` finds out that a client or a link has failed. A subclass (`gateway.hub.ending`) decides what becomes of
the session then, and says so by a few flags, which each step looks at. The classes inherit from each other, and
do not hold each other, because each hop from object to object would cost every step something.

This is longer than other modules: what comes in by one lane may go out by the other, so that each step has to
know what has become of both sides.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from gateway.hub.crowd import READ, WRITE
from gateway.hub.ends import Cause
from gateway.hub.lane import BufferPool, Lane
from gateway.jobs.locks import Held
from gateway.jobs.steps import Answer
from gateway.net.options import RelaySocket, has_gone
from gateway.protocol.asks import Ask, Done
from gateway.protocol.errors import Hangup
from gateway.scan.carrying import carry_over, rest_of
from gateway.scan.chunks import reply_scan
from gateway.scan.early import unsent_writes
from gateway.scan.plan import Plan
from gateway.scan.requests import MAX_ANSWERS, RequestScan
from gateway.scan.traffic import Traffic
from gateway.scan.turn import Turn
from gateway.wire.errors import WireError
from gateway.wire.transmission import REQUEST


class Lanes(ABC):
    """Both directions between `client` and `link` (non-blocking sockets), as the plan of `traffic` says.

    They call `watch(socket, events)` when the events that they wait for have changed.
    """

    __slots__ = (
        "_client_gone",
        "_flowing",
        "_interest",
        "_link_closed",
        "_link_mute",
        "_more_replies",
        "_more_requests",
        "_over",
        "_replies",
        "_replies_lane",
        "_requests",
        "_requests_lane",
        "_stopping",
        "_watch",
        "client",
        "link",
        "traffic",
    )

    def __init__(
        self,
        client: RelaySocket,
        link: RelaySocket | None,
        traffic: Traffic,
        pool: BufferPool,
        watch: Callable[[RelaySocket, int], None],
    ) -> None:
        self.client = client
        self.link = link
        self.traffic = traffic
        traffic.debt.has_gone = partial(has_gone, client)
        traffic.turn = Turn(time.monotonic)
        self._requests = RequestScan(self.traffic)
        self._replies = reply_scan(self.traffic)
        self._requests_lane = Lane(client, link, self._requests, pool)
        self._requests.pin = self._requests_lane.pin
        self._replies_lane = Lane(link, client, self._replies, pool)
        self._watch = watch
        self._interest = {client: 0} if link is None else {client: 0, link: 0}
        self._flowing = False  # we wait for both sockets to become readable, and for nothing else
        # Something is left in the buffer, and only waits for its next turn:
        self._more_requests = False
        self._more_replies = False
        # What has become of the two sides, as far as a step has to know. The subclass sets these:
        self._stopping = False  # no request is begun any more
        self._client_gone = False  # nothing can be sent to the client, or comes from it
        self._link_mute = False  # nothing can be sent to the link
        self._link_closed = False  # nothing comes from the link
        self._over = False  # the session has ended

    # --- What the subclass decides

    @abstractmethod
    def _say_goodbye(self, cause: Cause) -> None:
        """The client has said DISC, or closed between two requests."""

    @abstractmethod
    def _lose_client(self, reason: str, cause: Cause) -> None:
        """Nothing can be sent to the client any more, and nothing comes from it."""

    @abstractmethod
    def _lose_sending(self, reason: str) -> None:
        """Nothing can be sent to the link any more."""

    @abstractmethod
    def _lose_link(self, reason: str, cause: Cause = Cause.UPSTREAM_LOST) -> None:
        """Nothing comes from the link any more, either."""

    @abstractmethod
    def _have_pumped(self) -> None:
        """There is another link, or none: have the usual case done over what there is."""

    @property
    @abstractmethod
    def _begins_nothing(self) -> bool:
        """No request is begun any more; one that has begun is taken to its end."""

    # --- What comes and goes

    def _guard_requests(self, step: Callable[[], object]) -> None:
        """Do a step of the request lane. If the client has broken the protocol, or its connection fails, it is
        lost.
        """
        try:
            step()
        except (WireError, Hangup) as error:
            self._send_requests()
            self._lose_client(f"the client broke the protocol: {error}", Cause.CLIENT_PROTOCOL)
            return
        except OSError as error:
            self._fail_client(error)
            return
        requests = self._requests
        if requests.answers:
            for answer in requests.answers:
                self._replies.interject(answer, self._replies_lane.out)
            requests.answers.clear()
            self._send_replies()
        self._send_what_jobs_say()
        self._send_requests()
        if requests.disconnected or self._requests_lane.ended:
            self.traffic.debt.deaf = True  # it may no longer read what it is told
        if requests.disconnected:
            self._say_goodbye(Cause.CLIENT_DISC)
        elif self._requests_lane.ended:
            if requests.between_messages and not self._requests_lane.unscanned:
                self._say_goodbye(Cause.CLIENT_EOF)
            else:
                why = "the client closed its connection inside a request"
                self._lose_client(why, Cause.CLIENT_EOF)

    def _receive_replies(self) -> None:
        lane = self._replies_lane
        if self._requests_lane.out or self._requests.waiting or self.traffic.early.unsent:
            self._note_unsent()  # (the scanner knows itself what the client has not sent yet)
        if self._more_replies:
            self._guard_replies(lane.scan)
        else:
            self._guard_replies(lane.receive, self.traffic.in_flight)

    def _guard_replies(self, step: Callable[..., object], *given: object) -> None:
        """Do a step of the reply lane, with what it is `given`; the link bears what follows of what it sent."""
        lane = self._replies_lane
        try:
            step(*given)
        except WireError as error:
            self._lose_link(f"the upstream broke the protocol: {error}", Cause.UPSTREAM_PROTOCOL)
            return
        except OSError as error:
            self._lose_link(f"the upstream's connection failed: {error.strerror or error}")
            return
        if lane.ended:
            self._lose_link("the upstream closed the connection")
            return
        self._more_replies = self.traffic.turn.over and lane.unscanned > 0
        self._send_replies()
        self._note_answered()
        self._requests_lane.release_what_nobody_needs()
        if self.traffic.locks.busy:
            self.traffic.locks.look_again()
        self._send_what_jobs_say()

    def _note_answered(self) -> None:
        """Note the writes that the client was told are done."""
        memory = self.traffic.memory
        if memory is not None and memory.answered:
            memory.remember(self.traffic.last_cookie)

    def _note_unsent(self) -> None:
        """Note for which WRITEs the data is not sent yet: a reply to one of them is early."""
        if self._link_mute:
            return  # what was not sent before never will be
        requests, traffic = self._requests, self.traffic
        unsent = sum(map(len, (*self._requests_lane.out, *requests.waiting)))
        header = traffic.plan.link.request.size
        traffic.early.unsent = unsent_writes(
            traffic.in_flight, unsent + requests.payload_left, header
        )

    def _settle_early(self) -> None:
        """Take the replies that are no longer early."""
        self._note_unsent()
        for reply in self._replies.settle_early():
            self._replies.interject(reply, self._replies_lane.out)
        self._requests_lane.release_what_nobody_needs()
        if self.traffic.locks.busy:
            self.traffic.locks.look_again()
        self._send_what_jobs_say()
        self._send_replies()

    def _send_what_jobs_say(self) -> None:
        traffic = self.traffic
        if traffic.to_upstream:
            for request in traffic.to_upstream:
                self._requests.interject(request, self._requests_lane.out)
            traffic.to_upstream.clear()
            self._send_requests()
        if traffic.to_client:
            for reply in traffic.to_client:
                self._replies.interject(reply, self._replies_lane.out)
            traffic.to_client.clear()
            self._send_replies()

    def _send_replies(self) -> None:
        if self._client_gone:
            self._replies_lane.discard()
            return
        lane = self._replies_lane
        try:
            lane.send()
        except OSError as error:
            self._fail_client(error)
        if self.link is None:  # with a link, nothing comes while something is unsent
            self.traffic.backlog = sum(map(len, lane.out))

    def _send_requests(self) -> None:
        if self._link_mute:
            self._requests_lane.discard()
            return
        try:
            self._requests_lane.send()
        except OSError as error:
            self._fail_sending(error)
            return
        if self.traffic.early.held:
            self._settle_early()

    def _fail_client(self, error: OSError) -> None:
        why = f"the client's connection failed: {error.strerror or error}"
        # What OpenSSL says has no errno.
        self._lose_client(why, Cause.CLIENT_RESET if error.errno else Cause.TLS_LOST)

    def _fail_sending(self, error: OSError) -> None:
        # What the upstream has answered may still be there to read. The end of the link is seen then.
        self._note_unsent()
        self._lose_sending(f"the upstream takes no more requests: {error.strerror or error}")

    # --- Which events we wait for

    def _resume_requests(self) -> None:
        """Take up requests that were left in the buffer because too many were under way, too many of our
        answers waited, or the turn was over. No event of a socket will tell of them again.
        """
        lane = self._requests_lane
        left = lane.unscanned
        self._more_requests = False
        while left >= REQUEST.size and self._may_read_requests():
            if self.traffic.turn.over:
                self._more_requests = True
                return
            self._guard_requests(lane.scan)
            if lane.unscanned == left:
                return
            left = lane.unscanned

    def _may_read_requests(self) -> bool:
        if self._client_gone or self._link_closed or self._link_mute or self._requests_lane.out:
            return False
        if self._requests_lane.ended:
            return False
        if self._begins_nothing:  # only the rest of a request that is half sent
            return not self._requests.between_messages
        if self.traffic.room <= 0:  # the same
            return not self._requests.between_messages
        waiting = len(self._replies.waiting) + len(self._replies_lane.out)
        return waiting < MAX_ANSWERS

    def _client_interest(self) -> int:
        if self._client_gone:
            return 0
        events = WRITE if self._replies_lane.out else 0
        if self._more_requests:  # they come before anything new, even its end
            return events
        return events | READ if self._may_read_requests() else events

    def _link_interest(self) -> int:
        if self._link_closed:
            return 0
        events = WRITE if self._requests_lane.out else 0
        return events if self._replies_lane.out or self._more_replies else events | READ

    def _want(self, sock: RelaySocket, events: int) -> None:
        if self._interest[sock] != events:
            self._interest[sock] = events
            self._watch(sock, events)

    # --- The session's state

    @property
    def _idle(self) -> bool:
        """Nothing is under way in either direction."""
        return (
            not self.traffic.in_flight
            and not self.traffic.jobs
            and not self.traffic.postponed
            and not self._replies_lane.out
            and not self._requests_lane.out
            and self._replies.between_messages
            and not self._more_replies
            and (self._client_gone or self._requests.between_messages)
        )

    @property
    def between_requests(self) -> bool:
        """No request has begun of which the client has sent only a part."""
        return self._requests.between_messages

    @property
    def waits_for_the_rest(self) -> bool:
        """Its client has sent a part of a request, and the server has nothing else to answer. Of a WRITE the
        server may have that part already, so the WRITE is under way.
        """
        traffic, lane = self.traffic, self._requests_lane
        if lane.out or traffic.jobs:
            return False
        if self._requests.between_messages:
            header = traffic.plan.offer.framing.request.size
            return 0 < lane.unscanned < header and not traffic.in_flight
        return len(traffic.in_flight) <= bool(self._requests.payload_left)

    @property
    def takes_no_replies(self) -> bool:
        """Its client has still to take what was sent last."""
        return bool(self._replies_lane.out) and not self._client_gone

    @property
    def sends_no_requests(self) -> bool:
        """Its server has still to take what was sent last."""
        return bool(self._requests_lane.out) and not self._link_mute

    @property
    def progress(self) -> tuple[int, ...]:
        """Something that changes whenever anything goes on in it."""
        requests, replies = self._requests_lane, self._replies_lane
        return (
            self.traffic.last_cookie,
            len(self.traffic.in_flight),
            requests.sent_bytes,
            replies.sent_bytes,
            requests.unscanned,
            replies.unscanned,
            self._requests.payload_left,
        )

    @property
    def said_disc(self) -> bool:
        """The client has said DISC."""
        return self._requests.disconnected

    @property
    def bytes_relayed(self) -> tuple[int, int]:
        """How many bytes were sent to the link, and to the client."""
        return self._requests_lane.sent_bytes, self._replies_lane.sent_bytes

    @property
    def held_up(self) -> list[Held]:
        """Claims of other sessions that wait for what this session has under way, if its client is the reason:
        it has sent half a WRITE, or does not take its replies.
        """
        if self._replies_lane.out or not self._requests.between_messages:
            return self.traffic.locks.waiting_for(self.traffic.in_flight)
        return []

    # --- Another link, or none

    def _lead_over(self, link: RelaySocket | None, traffic: Traffic) -> None:
        """Go on over another link, or without one, while nothing is under way; `traffic` is made for it."""
        old = self.traffic
        old.jobs.woken = not_any_more
        old.locks.leave(old.in_flight)
        traffic.take_over(old)
        traffic.debt.has_gone = old.debt.has_gone
        traffic.turn = old.turn
        self.traffic = traffic
        self._requests = RequestScan(traffic)
        self._requests.stopped = True
        self._requests.pin = self._requests_lane.pin
        self._replies = reply_scan(traffic)
        self._requests_lane.lead_to(link, self._requests)
        self._replies_lane.come_from(link, self._replies)
        if self.link is not None:
            del self._interest[self.link]
        if link is not None:
            self._interest[link] = 0
        self.link = link
        self._have_pumped()
        self._flowing = self._more_replies = False

    def _lead_nowhere(
        self,
        plan: Plan,
        ask: Callable[[Ask, Done], None],
        adopt: Callable[[Ask, Done], None],
    ) -> None:
        """Go on without the link, which has died with commands under way. They are asked again: by `adopt` what
        the server may have done, by `ask` the others, and all that comes from now on.
        """
        assert self.link is not None
        traffic, replies = self.traffic, self._replies
        del self._interest[self.link]
        self.link = None
        self._have_pumped()
        end, length = replies.cut_off()
        refusals = replies.refusals()
        if refusals:
            self._requests.refuse_half_sent(b"".join(refusals))
        self._replies_lane.come_from_nowhere()
        if length:
            rest = rest_of(plan, end, length)
            traffic.jobs.ask_elsewhere(ask)
            traffic.jobs.ask(rest, self._complete)
        carry_over(traffic, self._requests, plan, ask, adopt)
        self._requests_lane.lead_nowhere()
        self._requests.stopped = self._begins_nothing
        self._more_replies = False

    def _complete(self, answer: Answer) -> None:
        """The rest has come of a reply that was half sent to the client."""
        replies = self._replies
        if answer.error:
            out = replies.complete_without(answer.text)
            if out is None:
                why = "a reply had begun that cannot be ended"
                self._lose_client(f"{answer.text}, and {why}", Cause.UPSTREAM_LOST)
                return
        else:
            out = replies.complete([memoryview(data) for _offset, data in answer.data])
        self._replies_lane.out += out
        self._send_replies()


def not_any_more(_go_on: Callable[[], None]) -> None:
    """Stand in for `Jobs.woken` of a traffic that is left: wake nobody."""
