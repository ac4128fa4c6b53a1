"""One session: two lanes between a client's socket and a link's, and how they end.

The lanes are independent: replies go on being read while a request cannot be written, and the other way
round, because a relay that lets one direction hold up the other hangs clients that write and read at once.

How a session ends is a table, in `gateway.hub.ends`.

A session can be *held*, which is no end: it begins no request any more, takes to its end what has begun, and is
`quiet` then. What its client sends meanwhile stays where it is, DISC included, until it may `go_on`. While it
is held and quiet its link may be exchanged for another (`relink`). And once all that it has written is known to
be durable (`settled`), the death of its link (or of the bundle that it asks) harms nothing: it waits for
another one then, and ends only if there is none when it goes on.

A session that is to `survive` goes on without its link: all that is under way is asked of somebody else
(`carry_over`), and the client notices a slow server. If its server goes in good order (`scan.going`), it begins
no request any more, and gives its link up as soon as everything is answered that will be, or when it has to
(`leave_link`); then that is a link like any other that has died.

A session never waits by itself. It says when its end must not take long any more, because nobody waits for it
or we are shutting down (`ending`), and when it has ended (`ended`); whoever owns it puts the limit on the time
between the two. A client that said DISC and is still there may take the time it needs for what it asked.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial

import trio

from gateway.hub.crowd import CALM_STEPS, FEW_COMMANDS, GONE, READ, WRITE, Crowd, crowd_of
from gateway.hub.ends import ClientIs, Event, LinkIs, Sides, Takes, Then, move
from gateway.hub.lane import LONG_ASIDE_BYTES, BufferPool, Lane
from gateway.jobs.jobs import Answer
from gateway.jobs.locks import Held
from gateway.losses.rule import MOST_TRIES
from gateway.net.options import RelaySocket, has_gone
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.errors import Hangup
from gateway.scan.carrying import carry_over, rest_of
from gateway.scan.chunks import reply_scan
from gateway.scan.early import unsent_writes
from gateway.scan.going import WHY
from gateway.scan.plan import Plan
from gateway.scan.requests import MAX_ANSWERS, RequestScan
from gateway.scan.traffic import Traffic
from gateway.scan.turn import Turn
from gateway.throttle import Charge, Charges, Doors, Gate, Watch
from gateway.wire.constants import Cmd, Errno
from gateway.wire.errors import WireError
from gateway.wire.transmission import REQUEST

Watched = Sequence[tuple[str, Charge]]
"""Names of policies that are only observed, and what they would charge requests to."""

LOST_SECONDS = 30
"""How long what is under way may take when the client or the upstream has gone: as long as a server may
reasonably take for one command, and no longer than a link may be kept from other uses."""


class Hold(Enum):
    """Why a session begins no request."""

    PAUSED = "its export is paused"
    COMES_LATE = "it is not known yet what was lost before it came (`gateway.sessions.settling`)"
    GOES_BACK = "it goes back to a link of its own (`gateway.sessions.surviving`)"


class Session:
    """Relays between `client` and `link` (non-blocking sockets) as the plan of `traffic` says. Without a link
    its jobs ask somebody else (a bundle), whose `push` has sent what they ask.

    `watch(socket, events)` is called when the events that the session waits for have changed, `again(socket)`
    to be called once more when it is its turn.
    """

    __slots__ = (
        "_again",
        "_calm",
        "_client_gone",
        "_doors",
        "_farewells",
        "_flowing",
        "_gate",
        "_goes",
        "_holds",
        "_interest",
        "_link_closed",
        "_link_mute",
        "_more_replies",
        "_more_requests",
        "_push",
        "_replies",
        "_replies_lane",
        "_requests",
        "_requests_lane",
        "_stopping",
        "_watch",
        "bug",
        "client",
        "ended",
        "ending",
        "link",
        "link_lost",
        "reason",
        "seconds_to_end",
        "settled",
        "sides",
        "survive",
        "traffic",
    )

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
        self.client = client
        self.link = link
        self.traffic = traffic
        traffic.jobs.woken = self.act
        traffic.has_gone = partial(has_gone, client)
        traffic.turn = Turn(time.monotonic)
        self._requests = RequestScan(self.traffic)
        self._replies = reply_scan(self.traffic)
        self._requests_lane = Lane(client, link, self._requests, pool)
        self._requests.pin = self._requests_lane.pin
        self._replies_lane = Lane(link, client, self._replies, pool)
        self._watch = watch
        self._again = again
        self._doors = doors
        self._gate: Gate | None = None
        self._push = push
        self._interest = {client: 0} if link is None else {client: 0, link: 0}
        self._flowing = False  # both sockets are waited for to be read, and for nothing else
        # Left in the buffer, and held back by nothing but others' turns:
        self._more_requests = False
        self._more_replies = False
        self._goes = False  # the client has gone, which is looked at when its requests are
        self._holds: set[Hold] = set()  # no request is begun as long as there is one
        self.sides = Sides(ClientIs.ASKING, LinkIs.NONE if link is None else LinkIs.OPEN)
        """How far its end has come (`gateway.hub.ends`)."""
        # What follows from that, for each step to look at; `_happens` alone sets it:
        self._stopping = False  # no request is begun any more
        self._client_gone = False  # nothing can be sent to the client, or comes from it
        self._link_mute = False  # nothing can be sent to the link
        self._link_closed = False  # nothing comes from the link
        self._calm = 0  # steps since many commands were under way
        self._farewells = 0  # FLUSHes of what its client has left
        self.reason = ""
        """Why the session ends, for the log; empty if the client ended it in good order."""
        self.bug: Exception | None = None
        """What went wrong in here, if anything did."""
        self.seconds_to_end = float(LOST_SECONDS)
        """How long the end may take from `ending` on."""
        self.settled = False
        """Set from outside, while it is held and quiet: nothing would be lost with the link."""
        self.survive: Callable[[str], None] | None = None
        """Called with the reason when the link has died under what is under way: it has the session carried
        over. None: the session ends."""
        self.link_lost = ""
        """Why the link is gone, if that happened while it was `settled`."""
        self.ending = trio.Event()
        self.ended = trio.Event()

    def begin(self, client_data: bytes = b"") -> None:
        """Begin; `client_data` are bytes that the client sent behind its last option."""
        self.traffic.turn.begin()
        self._step(
            lambda _: self._guard_requests(lambda: self._requests_lane.take_over(client_data)), 0
        )

    def throttle(self, charges: Charges, watched: Watched = ()) -> None:
        """Charge requests to these buckets from now on, or to none; also while it runs. Those that are only
        `watched` hold nothing back. Never raises.
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
        """The request that was held may be tried again; so `_go_on` takes it up, where it lies."""
        self._step(self._hold_no_more, 0)

    def _hold_no_more(self, _events: int) -> None:
        self.traffic.held = False

    # --- Holding

    def hold(self, why: Hold = Hold.PAUSED) -> None:
        """Begin no request any more, until `go_on` is said for all that hold it. Never raises."""
        self._step(lambda _events: self._hold(why), 0)

    def _hold(self, why: Hold) -> None:
        self._holds.add(why)
        self._requests.stopped = True

    def go_on(self, why: Hold = Hold.PAUSED) -> None:
        """Take requests up again, where the client's bytes lie, unless it is held for more. Never raises."""
        self._step(lambda _events: self._hold_it_no_more(why), 0)

    def _hold_it_no_more(self, why: Hold) -> None:
        self._holds.discard(why)
        if why is Hold.PAUSED:
            self.settled = False
        self.traffic.has_waited()
        self._requests.stopped = self._begins_nothing
        # If the client has gone meanwhile, that was passed over, and is not told a second time unless asked.
        self._watch(self.client, self._interest[self.client])
        if not self.settled and self.link_lost:
            lost, self.link_lost = self.link_lost, ""
            self._lose_link(lost)

    @property
    def held(self) -> bool:
        """It begins no request, and has not ended."""
        return bool(self._holds) and not self.ended.is_set()

    def is_held(self, why: Hold) -> bool:
        """Say whether it is held for this."""
        return why in self._holds

    @property
    def quiet(self) -> bool:
        """Nothing is under way, in either direction; a session that has ended is quiet."""
        return self.ended.is_set() or (self._idle and not self._replies_lane.unscanned)

    @property
    def between_requests(self) -> bool:
        """The client has no request half sent that has begun."""
        return self._requests.between_messages

    def part_from_link(self) -> None:
        """Say DISC to the upstream and close the connection, while `settled` and quiet: the session lives on
        for another link. Never raises.
        """
        self._step(self._part_from_link, 0)

    def _part_from_link(self, _events: int) -> None:
        assert self.link is not None
        assert self.settled
        assert self.quiet
        if not self.link_lost:
            link = self.traffic.plan.link
            with suppress(OSError):  # it has gone already
                self.link.send(link.disc())
            self._lose_link("the connection to the upstream was closed to be made anew")
            _shut_down(self.link, socket.SHUT_RDWR)

    def lose(self, reason: str, seconds: float) -> None:
        """Nobody answers what it asks any more (a session without a link of its own): live on for others while
        `settled` and quiet, else end within `seconds`. Never raises.
        """
        self._step(lambda _: self._lose(reason, seconds), 0)

    def _lose(self, reason: str, seconds: float) -> None:
        if self.settled and self.quiet and not self._stopping:
            self._lose_link(reason)
        else:
            self._finish(reason, seconds)

    def relink(
        self,
        link: RelaySocket | None,
        traffic: Traffic,
        push: Callable[[], None] | None = None,
    ) -> None:
        """Go on over another link (or without one, and then with `push`), while held and quiet; `traffic` is
        made for it, on the same terms with the client. The socket of the old link is the caller's, and has been
        taken out of the hub, as the new one is to be put in (`Hub.relink` does both).
        """
        assert self._holds
        assert self.quiet
        old = self.traffic
        old.jobs.woken = _not_any_more
        old.locks.leave(old.in_flight)
        traffic.take_over(old)
        traffic.jobs.woken = self.act
        traffic.has_gone = old.has_gone
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
        self._push = push
        self._flowing = self._more_replies = False
        self._happens(Event.UNLINKED if link is None else Event.RELINKED)
        self.link_lost = ""
        self.settled = False
        self._step(lambda _events: None, 0)

    @property
    def _begins_nothing(self) -> bool:
        """No request is begun; only what has begun is taken to its end."""
        return self._stopping or bool(self._holds) or self.traffic.going.begun

    # --- Living on without the link

    def server_goes(self) -> None:
        """The server has said that it goes: begin no request over this link any more. Called in the middle of a
        step.
        """
        self._requests.stopped = True
        self._flowing = False

    def leave_link(self, traffic: Traffic) -> None:
        """Give up the link that this traffic is about, if it still has that: the server has had its time to
        answer. Never raises.
        """
        if self.traffic is traffic and traffic.going.begun:
            self._step(lambda _events: self._leave_link(), 0)

    def _leave_link(self) -> None:
        assert self.link is not None
        if not (self._link_mute or self._requests.payload_left or self._requests_lane.out):
            with suppress(OSError):  # it has gone already
                self.link.send(self.traffic.plan.link.disc())
        self._lose_link(WHY)

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
        """Go on without the link, which has died: by asking somebody else, whose `push` has sent what is asked.
        What was under way is asked again, by `adopt` what may have been done. To be called by `survive`.
        """
        assert self.link is not None
        traffic, replies = self.traffic, self._replies
        del self._interest[self.link]
        self.link = None
        self._push = push
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
        self._happens(Event.CARRIED_OVER)
        self._send_what_jobs_say()

    def _complete(self, answer: Answer) -> None:
        """The rest of what was half sent to the client has come."""
        replies = self._replies
        if answer.error:
            out = replies.complete_without(answer.text)
            if out is None:
                why = "a reply had begun that cannot be ended"
                self._lose_client(f"{answer.text}, and {why}")
                return
        else:
            out = replies.complete([memoryview(data) for _offset, data in answer.data])
        self._replies_lane.out += out
        self._send_replies()

    # --- What the hub calls

    def client_ready(self, events: int) -> int:
        """Go on after the client's socket has become ready; give the `Crowd`. Never raises."""
        self.traffic.turn.begin()
        return self._step(self._client_ready, events)

    def link_ready(self, events: int) -> int:
        """Go on after the link's socket has become ready; give the `Crowd`. Never raises."""
        self.traffic.turn.begin()
        return self._step(self._link_ready, events)

    def _step(self, step: Callable[[int], None], events: int) -> int:
        if (
            self.sides.link is LinkIs.LEFT
        ):  # in this very round of the hub, which has not been told yet
            return Crowd.NONE
        try:
            step(events)
            self._go_on()
        except Exception as error:
            # Our bug; it must end no session but this one. Its owner raises it.
            self.bug = error
            self.close()
        self.traffic.locks.tell()  # no scanner is at work now
        if self._push is not None:
            self._push()
        crowd = crowd_of(self.traffic.in_flight)
        # What others are asked for it, or is answered here, is not in flight.
        if crowd or self._more_requests or self.traffic.jobs.waiting > FEW_COMMANDS:
            self._calm = 0
            return crowd
        self._calm += 1
        return Crowd.CALM if self._calm > CALM_STEPS else Crowd.NONE

    def _client_ready(self, events: int) -> None:
        if events & GONE and self._more_requests:
            self._goes = True
            events &= ~GONE
        if events & GONE:
            if self._holds and self._requests.between_messages and not self._replies_lane.out:
                return  # what it said before it went is read when the session goes on, as its end is
            events |= self._interest[self.client]  # reading or writing tells what is wrong
            if not self._interest[self.client]:
                self._lose_client("the client has vanished")
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

    def finish(self, reason: str, seconds: float) -> None:
        """End in good order, within `seconds`: begin no more requests, answer those under way, then close.

        Never raises.
        """
        self._step(lambda _: self._finish(reason, seconds), 0)

    def _finish(self, reason: str, seconds: float) -> None:
        if not self.ending.is_set():
            self.seconds_to_end = seconds
        self._happens(Event.FINISH, reason)

    @property
    def held_up(self) -> list[Held]:
        """Claims of other sessions that wait for what this one has under way, while its client does not let it
        go on: it has sent half a WRITE, or does not take its replies.
        """
        if self._replies_lane.out or not self._requests.between_messages:
            return self.traffic.locks.waiting_for(self.traffic.in_flight)
        return []

    def cut_off(self) -> None:
        """End now: others have waited for its client long enough."""
        self._lose_client(f"the client has held up others for {LOST_SECONDS} s")
        self.close()

    def cut(self) -> None:
        """End now: what is under way has not come to its end within `seconds_to_end`."""
        late = f"cut after {self.seconds_to_end:g} s with commands under way"
        self.reason = f"{self.reason}; {late}" if self.reason else late
        self.close()

    # --- The lanes

    def _guard_requests(self, step: Callable[[], object]) -> None:
        """Do a step of the request lane; the client bears the consequences of what it sent."""
        try:
            step()
        except (WireError, Hangup) as error:
            self._send_requests()
            self._lose_client(f"the client broke the protocol: {error}")
            return
        except OSError as error:
            self._lose_client(f"the client's connection failed: {error.strerror or error}")
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
            self.traffic.debt.deaf = True  # it may not read what it is told any more
        if requests.disconnected:
            self._happens(Event.GOODBYE)
        elif self._requests_lane.ended:
            if requests.between_messages and not self._requests_lane.unscanned:
                self._happens(Event.GOODBYE)
            else:
                self._lose_client("the client closed its connection inside a request")

    def _receive_replies(self) -> None:
        lane = self._replies_lane
        if self._requests_lane.out or self._requests.waiting or self.traffic.early.unsent:
            self._note_unsent()  # what has not come yet from the client, who scans knows
        try:
            if self._more_replies:
                lane.scan()
            else:
                lane.receive()
        except WireError as error:
            self._lose_link(f"the upstream broke the protocol: {error}")
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
        """Note what has been written that the client has been told of."""
        memory = self.traffic.memory
        if memory is not None and memory.answered:
            memory.remember(self.traffic.last_cookie)

    def _note_unsent(self) -> None:
        """Note which WRITEs' data the link has not been given: a reply to one of them is early."""
        if self._link_mute:
            return  # what was not sent by then never is
        requests, traffic = self._requests, self.traffic
        unsent = sum(map(len, (*self._requests_lane.out, *requests.waiting)))
        header = traffic.plan.link.request.size
        traffic.early.unsent = unsent_writes(
            traffic.in_flight, unsent + requests.payload_left, header
        )

    def _settle_early(self) -> None:
        """Take the replies that were early until now."""
        self._note_unsent()
        for reply in self._replies.settle_early():
            self._replies.interject(reply, self._replies_lane.out)
        self._requests_lane.release_what_nobody_needs()
        if self.traffic.locks.busy:
            self.traffic.locks.look_again()
        self._send_what_jobs_say()
        self._send_replies()

    @property
    def bytes_relayed(self) -> tuple[int, int]:
        """How many have been sent to the link, and to the client."""
        return self._requests_lane.sent_bytes, self._replies_lane.sent_bytes

    @property
    def said_disc(self) -> bool:
        """The client has."""
        return self._requests.disconnected

    def act(self, go_on: Callable[[], None]) -> None:
        """Let a job go on, or begin, between two steps of the session's own: it was granted a range which
        another session had, or a hook has come to an end. Never raises; what goes wrong ends the session.
        """

        def step(_events: int) -> None:
            go_on()
            self._send_what_jobs_say()

        self._step(step, 0)

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
            self._lose_client(f"the client's connection failed: {error.strerror or error}")
        if self.link is None:  # else nothing comes as long as something is unsent
            self.traffic.backlog = sum(map(len, lane.out))

    def _send_requests(self) -> None:
        if self._link_mute:
            self._requests_lane.discard()
            return
        try:
            self._requests_lane.send()
        except OSError as error:
            # What the upstream has answered may still be there to read; its end is seen there.
            self._note_unsent()
            survives = self.survive is not None
            self._happens(
                Event.SEND_FAILED_SURVIVING if survives else Event.SEND_FAILED,
                f"the upstream takes no more requests: {error.strerror or error}",
            )
            self._requests_lane.discard()
            return
        if self.traffic.early.held:
            self._settle_early()

    # --- The ends

    def _happens(self, event: Event, reason: str = "", *, busy: bool = False) -> Then:
        """Something has happened, for a `reason`, while commands were under way if it was `busy`: give what is
        to be done then. Nothing else sets what is known of the two sides.
        """
        self.sides, takes, hurries, then = move(self.sides, event)
        client, link = self.sides
        if takes is Takes.ALWAYS or (busy and takes is Takes.IF_BUSY):
            self.reason = reason
        if client is not ClientIs.ASKING and not self._stopping:
            self._stopping = self._requests.stopped = True
            if self._gate is not None:
                self._gate.close()
        self._client_gone = client is ClientIs.GONE
        self._link_mute, self._link_closed = link.takes_nothing, link.gives_nothing
        if hurries:
            self.ending.set()
        return then

    @property
    def linger(self) -> bool:
        """The client is still there and has to be told: close in a way that it can read what we sent."""
        return self.sides.client is ClientIs.TOLD

    def _lose_client(self, reason: str) -> None:
        if self._client_gone:
            return
        self._note_answered()
        in_write = bool(self._requests.payload_left)
        if in_write:
            self._note_unsent()
        then = self._happens(Event.CLIENT_LOST_IN_WRITE if in_write else Event.CLIENT_LOST, reason)
        self.traffic.debt.deaf = True
        self._replies_lane.discard()
        if then is Then.DROP_BOTH:
            self._requests_lane.discard()
            if self.traffic.trail is not None:
                self.traffic.trail.losses.left(self.traffic.trail)
            if self.link is not None:
                _shut_down(self.link)

    def _lose_link(self, reason: str) -> None:
        if self.traffic.memory is not None:  # who scanned may have given up before
            self.traffic.memory.remember(self.traffic.last_cookie)
        then = self._happens(self._how_lost(), reason)
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
            self._fail(reason)

    def _how_lost(self) -> Event:
        """Give what it means that the link is lost."""
        if self.settled and self.quiet:
            return Event.LINK_LOST_AT_REST
        return Event.LINK_LOST if self.survive is None else Event.LINK_LOST_SURVIVING

    def _fail(self, reason: str) -> None:
        """The link is lost, and with it what is under way."""
        self._requests_lane.close()
        traffic = self.traffic
        busy = bool(traffic.in_flight or traffic.jobs or self._replies.payload_left)
        self._happens(Event.FAILS, reason, busy=busy)
        traffic.give_up_writes()
        answers = self._replies.fail(reason)
        traffic.locks.look_again()  # whoever waited for what was under way here waits no more
        if answers is None:
            self._lose_client(f"{reason}, in the middle of a reply that cannot be taken back")
            return
        self._happens(Event.FAILED)
        if not self._client_gone:
            self._replies_lane.out += answers
            self._send_replies()

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
            self._watch(self.client, self._interest[self.client])  # is told of it once more
        if self.link is not None:
            self._want(self.link, self._link_interest())
            if self._more_replies and not self._replies_lane.out:
                self._again(self.link)
        self._flowing = all(interest == READ for interest in self._interest.values())

    def _resume_requests(self) -> None:
        """Take up requests that were left in the buffer because too many were under way, too many of our
        answers waited, or its turn was over: no event of a socket will speak of them again.
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
        if self._begins_nothing:  # only what is half sent
            return not self._requests.between_messages
        if self.traffic.room <= 0:  # what has begun is taken to its end all the same
            return not self._requests.between_messages
        waiting = len(self._replies.waiting) + len(self._replies_lane.out)
        return waiting < MAX_ANSWERS

    def _client_interest(self) -> int:
        if self._client_gone:
            return 0
        events = WRITE if self._replies_lane.out else 0
        if self._more_requests:  # first, and then the end, if that is next
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

    def _come_to_the_end(self) -> None:
        """Nothing is under way any more, and nothing is begun: end, or have FLUSHed first what is not."""
        trail = self.traffic.trail
        unflushed = trail is not None and trail.unflushed and self._farewells < MOST_TRIES
        then = self._happens(Event.DONE_UNFLUSHED if unflushed else Event.DONE)
        if then in (Then.FLUSH, Then.FLUSH_ALONE):
            self._farewells += 1
            if then is Then.FLUSH_ALONE:
                _shut_down(self.client, socket.SHUT_RDWR)
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

    def close(self) -> None:
        """Stop at once; what is under way is lost. The sockets stay open, for their owner to close."""
        self._note_answered()
        self._happens(Event.CLOSE, "stopped")
        self._requests_lane.close()
        self._replies_lane.close()
        self.traffic.jobs.woken = _not_any_more
        self.survive = None
        self._requests.forget_pin()
        self.traffic.give_up_writes()
        # Others may wait for what it has under way, and for its ranges.
        self.traffic.postponed.clear()
        self.traffic.asks.drop()
        self.traffic.debt.deaf = True
        self.traffic.jobs.fail(Errno.EIO, "the session has ended")
        self.traffic.locks.leave(self.traffic.in_flight)
        if self.traffic.memory is not None:
            self.traffic.memory.forget_all()
        for sock in self._interest:
            self._want(sock, 0)
        self._happens(Event.ENDED)
        self.ended.set()


def _nobody_waits(_outcome: Outcome) -> None:
    pass


def _not_any_more(_go_on: Callable[[], None]) -> None:
    pass


def _shut_down(sock: RelaySocket, how: int = socket.SHUT_WR) -> None:
    with suppress(OSError):  # the other side was quicker
        sock.shutdown(how)
