"""The reactor: the sockets of all sessions in one epoll, in one Trio task.

Why not two Trio tasks a session? To wake a task costs more than to relay a request. As measured, the hub
carries twice the requests at depth 1, and sessions do not starve each other (docs/performance.md).

The task parks in Trio on the epoll's own file descriptor. Once there is traffic it polls the epoll itself: at
depth 1 that answers twice as fast as being woken. It goes back to Trio when nothing has come for
`POLL_SECONDS`, and for a moment after `TURN_SECONDS`, so that everything else (accepting, negotiating, timers,
signals) is held up no longer than that. While many commands are under way it waits in the kernel instead of
polling: with two cores, polling would take time from the very peers that it waits for.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import trio

from gateway.hub.crowd import AGAIN, LEFT, Crowd
from gateway.hub.ending import do_all
from gateway.hub.hold_ups import cut_off_who_holds_up_others, loosen_who_holds_up_kin
from gateway.hub.lane import BufferPool
from gateway.hub.pace import ROUNDS_A_SAMPLE, Pace
from gateway.hub.rounds import Rounds
from gateway.hub.session import Session, Watched
from gateway.hub.turns import LONG_SECONDS, SLICE_SECONDS, Turns
from gateway.hub.waker import Waker
from gateway.net.options import RelaySocket
from gateway.scan.traffic import Traffic
from gateway.throttle import Charges, Clock, Doors

POLL_SECONDS = 0.0002
"""How long the hub polls for more traffic before it parks: a few times what a peer on the same machine takes to
answer."""

TURN_SECONDS = 0.004
"""How long the hub goes on before it lets Trio's other tasks run."""

BUG_SECONDS = 5
"""How long we wait before we restart a task beside the sessions that a bug has ended: it may end so again, and
each time is a traceback in the log."""

MAX_EVENTS = 64
"""How many ready sockets we ask epoll for at a time; each costs one receive and one send of a buffer. If there
is not time for all, `turns` says whose turn it is."""


class Hub:
    """Runs sessions. One task calls `run`; others call `relay`, one for each session.

    `clock` is the clock of the buckets that sessions are charged to. `polls`: it may take a processor for
    itself.
    """

    def __init__(self, clock: Clock = time.monotonic, *, polls: bool = True) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], int]] = {}
        self._turns = Turns()
        self.pool = BufferPool()
        self.sessions: set[Session] = set()
        self._nursery: trio.Nursery | None = None
        self._finish: tuple[str, float] | None = None
        self._clock = clock
        self._sooner = trio.Event()
        self._doors = Doors(lambda: self._sooner.set())
        self._parting: list[trio.Event] = []
        self._rounds = Rounds(polls=polls)
        self.pace = Pace()
        """How it goes about its work."""
        self._again: set[int] = set()
        self._parked = False
        self.waker = Waker()
        """By it one may see that the hub goes round."""
        self._epoll.register(self.waker.fd, select.EPOLLIN)
        self._watched[self.waker.fd] = self.waker.woken
        self._over = False
        self.failed: Callable[[BaseException], None] = _reraise
        """Is told of our bugs beside the sessions: such a bug must not end all sessions."""

    def close(self) -> None:
        """Close, after `run` and every `relay` have ended."""
        self._epoll.close()
        self.waker.close()

    async def run(self) -> None:
        """Serve the sessions until cancelled. Those that `relay` still has to close need the hub open."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for look in (cut_off_who_holds_up_others, loosen_who_holds_up_kin):
                    nursery.start_soon(self.keep_up, partial(look, self.sessions, self._contain))
                nursery.start_soon(self.keep_up, self._open_doors)
                await self._serve()
        finally:
            self._over = True

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task beside the sessions, no longer than the hub runs. A bug in it ends this task alone."""
        assert self._nursery is not None
        self._nursery.start_soon(self.attempt, task)

    async def attempt(self, task: Callable[[], Awaitable[object]]) -> bool:
        """Run a task beside the sessions, and say whether it came to its end. If a bug ends it, `failed` is
        told.
        """
        try:
            await task()
        except (Exception, SystemExit) as error:  # a policy may say exit()
            self.failed(error)
            return False
        return True

    async def keep_up(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task that the sessions can go on without, but not for long. If a bug ends it, `failed` is told,
        and it is begun anew. When it ends by itself, it is over.
        """
        while not await self.attempt(task):
            await trio.sleep(BUG_SECONDS)

    def see_off(self, closed: trio.Event) -> None:
        """Note that links are about to be closed; `closed` is set when they are."""
        self._parting = [each for each in self._parting if not (each is closed or each.is_set())]
        self._parting.append(closed)

    async def all_seen_off(self) -> None:
        """Wait until all links are closed that `see_off` was told of. Once all sessions have ended, no more
        come.
        """
        for closed in self._parting:
            await closed.wait()

    def soon(self, act: Callable[[], None]) -> None:
        """Do something as soon as no session is in the middle of a step."""
        self.later(0, act)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after so many seconds, beside the sessions; never, if the hub has ended by then."""

        async def wait() -> None:
            await trio.sleep(seconds)
            act()

        if not self._over:
            self.start_soon(wait)

    def _contain(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self.failed(error)

    async def _open_doors(self) -> None:
        """Let sessions go on whose requests their gates held back. Sleeps while there are none."""
        while True:
            self._sooner = trio.Event()
            opening = self._doors.next_opening()
            seconds = math.inf if opening is None else max(0, opening - self._clock())
            with trio.move_on_after(seconds):
                await self._sooner.wait()
            self._doors.open_due(self._clock())

    async def _serve(self) -> None:
        poll, watched, clock = self._epoll.poll, self._watched, time.monotonic
        ready, rounds, pace = self._turns.ready, self._rounds, self.pace
        untimed = 0  # how many rounds are left without a sample
        while True:
            if self._again:
                await trio.lowlevel.checkpoint()
            else:
                self._parked = True
                pace.parked += 1
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._parked = False
            now, patience = clock(), 0.0
            turn_ends, quiet_ends = now + TURN_SECONDS, now + POLL_SECONDS
            while now < quiet_ends:
                if self._again:
                    self._turns.add([(descriptor, AGAIN) for descriptor in self._again])
                    self._again.clear()
                events = poll(0 if ready else patience, MAX_EVENTS)
                untimed -= 1
                begun = clock() if untimed < 0 else now
                crowd, served = Crowd.NONE, bool(events or ready)
                if len(events) == 1 and not ready:  # the usual case: nobody waits for anybody
                    [(descriptor, event)] = events
                    if act := watched.get(descriptor):
                        crowd = act(event)
                        if crowd == Crowd.CALM:
                            rounds.calm(now)
                elif served:
                    self._turns.add(events)
                    crowd = self._serve_all(now)
                looked, now = now, clock()
                if untimed < 0 and events:
                    untimed = ROUNDS_A_SAMPLE
                    pace.ends(now - begun, polled=not patience)
                if served or patience:  # after a look that finds nothing, nothing else has changed
                    if len(events) > 1:
                        rounds.crowded(len(events), now - looked, now)
                    patience = rounds.patience(crowd, now)
                    if not (ready or self._again) and rounds.gathers(crowd, now):
                        pace.gather(rounds.sleeps(now))
                if events or ready or self._again:  # `ready` keeps what epoll does not tell twice
                    quiet_ends = now + POLL_SECONDS
                if now > turn_ends:
                    await trio.lowlevel.checkpoint()
                    now = clock()
                    turn_ends, quiet_ends = now + TURN_SECONDS, now + POLL_SECONDS

    def _serve_all(self, now: float) -> int:
        """Serve the sockets that are ready, until all are served or the time is over; give the `Crowd`."""
        turns, watched, clock = self._turns, self._watched, time.monotonic
        ready = turns.ready
        slice_ends = now + SLICE_SECONDS
        crowd, calmest = Crowd.NONE, Crowd.NONE
        took: list[tuple[int, float]] = []
        for descriptor in turns.order():
            event = ready.pop(descriptor, 0)
            # A session that ended a moment ago may not be there any more.
            if act := watched.get(descriptor):
                its = act(event)
                if its > crowd:
                    crowd = its
                elif its < calmest:
                    calmest = its
            before, now = now, clock()
            took.append((descriptor, now - before))
            is_long = now - before > LONG_SECONDS and turns.others_wait(descriptor)
            if ready and (is_long or now > slice_ends):
                turns.overran(took)
                break
        else:
            turns.all_served()
        if calmest == Crowd.CALM:
            self._rounds.calm(now)
        return crowd

    async def relay(
        self,
        client: RelaySocket,
        link: RelaySocket | None,
        traffic: Traffic,
        client_data: bytes = b"",
        charges: Charges = (),
        watched: Watched = (),
        *,
        push: Callable[[], None] | None = None,
        begins: Callable[[Session, trio.Nursery], None] | None = None,
    ) -> Session:
        """Relay between two non-blocking sockets (or, without a link, through `push`: see `Session`) until the
        session has ended; give the session back, for it knows why it ended. Its requests are charged to buckets
        until `Session.throttle` changes that.

        `begins` is called before anything is relayed, with a nursery that ends with the session. The sockets
        stay open. Raises what went wrong in the session, if it was our fault.
        """
        session = Session(
            client, link, traffic, self.pool, self.watch, self.again, self._doors, push
        )
        session.throttle(charges, watched)
        self.enter(client, session.client_ready, session)
        if link is not None:
            self.enter(link, session.link_ready, session)
        self.sessions.add(session)
        try:
            async with trio.open_nursery() as nursery:
                if begins is not None:
                    begins(session, nursery)
                session.begin(client_data)
                if self._finish is not None:
                    session.finish(*self._finish)
                await session.ending.wait()
                with trio.move_on_after(session.seconds_to_end) as limit:
                    await session.ended.wait()
                if limit.cancelled_caught:
                    session.cut()
                nursery.cancel_scope.cancel()
        finally:
            sockets = [client] if session.link is None else [client, session.link]
            do_all(
                session.close,
                session.traffic.locks.tell,
                partial(self.sessions.discard, session),
                *(partial(self.leave, sock) for sock in sockets),
            )
        if session.bug is not None:
            raise session.bug
        return session

    def relink(
        self,
        session: Session,
        link: RelaySocket | None,
        traffic: Traffic,
        push: Callable[[], None] | None = None,
    ) -> None:
        """Have a session that is held and quiet go on over another link, or without one (`Session.relink`).
        The caller closes the old link's socket.
        """
        if session.link is not None:
            self.leave(session.link)
        if link is not None:
            self.enter(link, session.link_ready, session)
        session.relink(link, traffic, push)

    def enter(self, sock: RelaySocket, ready: Callable[[int], int], whose: object) -> None:
        """Have `ready` called with the events of a socket that `watch` asks for; it gives the `Crowd`. `whose`
        says to whom the socket belongs: a session, for one, has two.
        """
        self._watched[sock.fileno()] = ready
        self._turns.belongs(sock.fileno(), whose)
        self._epoll.register(sock.fileno(), select.EPOLLET)

    def leave(self, sock: RelaySocket) -> None:
        """Forget a socket, before it is closed."""
        self._forget(sock.fileno())

    def _forget(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        del self._watched[descriptor]
        self._turns.forget(descriptor)
        self._again.discard(descriptor)

    @contextmanager
    def told_when_silent(
        self, client: trio.socket.SocketType, silent: Callable[[], None]
    ) -> Iterator[None]:
        """Have `silent` called once a client sends nothing more. It costs no task, and no checkpoint."""

        def tell(_events: int) -> int:
            self._contain(silent)
            return Crowd.NONE

        descriptor = client.fileno()
        self._epoll.register(descriptor, LEFT | select.EPOLLET)
        self._watched[descriptor] = tell
        try:
            yield
        finally:
            self._forget(descriptor)

    def again(self, sock: RelaySocket) -> None:
        """Have the `ready` of a socket called once more when its turn comes, whatever the socket is ready for:
        something is left to do that no event of the socket will tell of.
        """
        if self._parked and not self._again:
            self.waker.wake()
        self._again.add(sock.fileno())

    def finish(self, reason: str, seconds: float) -> None:
        """End all sessions in good order within `seconds`, those that begin later included."""
        self._finish = reason, seconds
        for session in list(self.sessions):
            session.finish(reason, seconds)

    def watch(self, sock: RelaySocket, events: int) -> None:
        """Have the `ready` of a socket called for these events. With no events it is still called, once, when
        the socket has failed or was closed on the other side. (That is edge-triggered: else the epoll would
        report it for ever to a session that cannot act on it.)
        """
        self._epoll.modify(sock, events or select.EPOLLET)


def _reraise(error: BaseException) -> None:
    raise error
