"""Holds the sessions of exports, so that nothing is under way, and what they have written is durable.

First all sessions are told to begin no request any more. Then we wait until each is quiet: what is under way is
finished and answered. Then each link gets a FLUSH, one after the other: of two at once, a server may tell only
one that something is lost. Last, whatever these FLUSHes cannot cover, and the sessions rely on, is proved as
for a client's FLUSH (`gateway.losses.rule`). That includes what was written by clients that are gone.

We say "flushed" only if everything is durable that clients were told is done. So a disk that has lost something
is not flushed until all who rely on it were told by an EIO. Whoever asked is told the ranges, and decides
(`accept_loss`). What was accepted is told to the clients all the same.

We look every few milliseconds whether all is quiet, rather than wait for events: several things make a session
quiet, and any of them may change while we wait for another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import trio

from gateway.jobs.fences import still_coming
from gateway.jobs.steps import Answer
from gateway.jobs.translate import translate
from gateway.links.disk import Disk
from gateway.losses.rule import PROOF_SECONDS
from gateway.plural import plural
from gateway.protocol.commands import is_loss, text_of_error
from gateway.sessions.opened import Location
from gateway.sessions.service import Paused, Relayed, Service
from gateway.sessions.settling import settled
from gateway.sessions.untold import in_words
from gateway.wire.constants import Cmd
from gateway.wire.handshake import shown

LOOK_IF_QUIET_SECONDS = 0.005
"""How often we look whether all is quiet. A pause that takes this much longer is none the worse."""

MOST_NAMED = 10
"""How many of the sessions that are not quiet are named: nobody looks at more of them at a time."""


class NotDone(Exception):
    """What was asked was not done, and all goes on as before. The text is for whoever asked."""


class NotHere(NotDone):
    """The same, for nothing of it is known here. Another process of the gateway may have it."""


class NotClear(NotDone):
    """The same, for it is not clear what is meant: a pattern, where a name is asked for."""


class Within:
    """The time that a command has, from its beginning to its end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = trio.current_time() + seconds

    @property
    def left(self) -> float:
        """How many seconds are left."""
        return max(0.0, self._deadline - trio.current_time())

    @contextmanager
    def over(self, what: Callable[[], str]) -> Iterator[None]:
        """End a part of the command when the command's time is over. Raises `NotDone` then; `what` says what
        was not done.
        """
        try:
            with trio.fail_at(self._deadline):
                yield
        except trio.TooSlowError:
            raise NotDone(what()) from None


class Holding:
    """Holds sessions; the exports that are held are `Service.paused`. Only sessions count whose location is one
    of those wanted (`at`).
    """

    def __init__(
        self, service: Service, at: Callable[[Location], bool] = lambda _location: True
    ) -> None:
        self._service = service
        self._at = at

    def sessions(self, *exports: str) -> list[Relayed]:
        """Give the sessions of exports that have begun, and have not ended."""
        running = [each for each in self._service.running if each.name in exports]
        here = [each for each in running if self._at(each.opened.location)]
        return [each for each in here if not each.relaying.ended.is_set()]

    async def hold(
        self, exports: Collection[str], within: Within, *, accept_loss: bool = False, who: str
    ) -> dict[str, int]:
        """Hold all sessions of exports for somebody (`who`), and have them flushed. Say how many sessions there
        were of each. Raises `NotDone`, and then none is held.
        """
        service = self._service
        self.refuse_if_draining()
        for export in exports:
            service.paused[export] = Paused(who)
        service.note_change()
        for running in self.sessions(*exports):
            running.relaying.hold()
        goes_on = _goes_on(exports)

        def not_quiet() -> str:
            busy = self.busy(*exports)[:MOST_NAMED] or ["a FLUSH"]
            within_words = f"within {within.seconds:g} s did not come to an end"
            return f"{goes_on}: {within_words}: {'; '.join(busy)}"

        try:
            with within.over(not_quiet):
                while self.busy(*exports):
                    await trio.sleep(LOOK_IF_QUIET_SECONDS)
                flushed = await self._flush(exports, accept_loss=accept_loss)
                await self._settle(exports)
            if not accept_loss:
                self.refuse_if_lost(exports)
            self.refuse_if_draining()
        except BaseException:
            self.let_go_on(*exports)
            raise
        for running in self.sessions(*exports):
            running.relaying.settled = True
        return flushed

    def let_go_on(self, *exports: str) -> None:
        """Let the sessions of exports take requests again, and let those go on who wait to open them."""
        for export in exports:
            over = self._service.paused.pop(export, None)
            if over is not None:
                over.set()
                self._service.note_change()
        for running in self.sessions(*exports):
            running.relaying.go_on()

    def busy(self, *exports: str) -> list[str]:
        """Say who is not quiet, and why."""
        opening = [each for each in self._service.opening if each.grant.name in exports]
        busy = ["a client that opens it" for each in opening if self._at(each.location)]
        for running in self.sessions(*exports):
            session, traffic = running.relaying, running.traffic
            if not session.quiet:
                what = f"{plural(traffic.commands_in_flight, 'command')} under way"
                client = running.membership.session.client.identity.peer
                busy.append(f"{client} ({what if session.between_requests else 'half a request'})")
        for disk in {disk for export in exports for disk in self.disks(export)}:
            if still_coming((fence.late for fence in disk.fences.standing), trio.current_time()):
                busy.append("what was being written when a connection was lost, and may yet be")
        return busy

    # --- What may not be passed over

    def refuse_if_draining(self) -> None:
        """Begin nothing while the gateway ends. Raises `NotDone`."""
        if self._service.draining:
            raise NotDone("the gateway is shutting down")

    def refuse_if_lost(self, exports: Collection[str]) -> None:
        """Refuse to call exports flushed if something of them may be lost, and not everybody was told. Raises
        `NotDone`.
        """
        lost = {
            disk: (export, untold)
            for export in exports
            for disk in self.disks(export)
            if (untold := disk.losses.untold()) is not None
        }
        if lost:
            each = "; ".join(f"{shown(export)}: {in_words(what)}" for export, what in lost.values())
            raise NotDone(
                f"not all is there that clients were told is: {each}; accept-loss does it all the same"
            )

    def disks(self, export: str) -> set[Disk]:
        """Give the disks that an export's sessions are on, and the one that its next client will be on."""
        service, route = self._service, self._service.config.route(export)
        location = None if route is None else service.location(export, route)
        now = set() if location is None else {service.disk_at(location)}
        return now | {each.disk for each in self.sessions(export)}

    # --- Making durable

    async def _flush(self, exports: Collection[str], *, accept_loss: bool) -> dict[str, int]:
        """Have the links of the sessions FLUSHed; the sessions are quiet. Raises `NotDone`."""
        problems: list[str] = []
        flushed = dict.fromkeys(exports, 0)
        for running in self.sessions(*exports):
            if running.opened.uplink.export.can_flush and not running.relaying.link_lost:
                flushed[running.name] += 1
                error, why = await _flush_one(running)
                if error and not (accept_loss and is_loss(error)):
                    problems.append(f"{running.membership.session.client.identity.peer}: {why}")
        if problems:
            words = f"{_goes_on(exports)}, for a FLUSH failed: {problems[0]}"
            untold = [
                in_words(untold)
                for disk in {disk for export in exports for disk in self.disks(export)}
                if (untold := disk.losses.untold()) is not None
            ]
            raise NotDone("; ".join([words, *untold]))
        return flushed

    async def _settle(self, exports: Collection[str]) -> None:
        """Wait until we know of everything that sessions rely on whether it is durable, over whatever link it
        was written.
        """
        for disk in {disk for export in exports for disk in self.disks(export)}:
            await settled(disk.losses)


def _goes_on(exports: Collection[str]) -> str:
    return f"{', '.join(map(shown, exports))} {'goes' if len(exports) == 1 else 'go'} on"


async def _flush_one(running: Relayed) -> tuple[int, str]:
    """Have a session's link FLUSHed, for no client. Give the error (0: none), and its text."""
    answers: list[Answer] = []
    answered = trio.Event()
    session, traffic = running.relaying, running.traffic

    def done(answer: Answer) -> None:  # perhaps when nobody waits for it any more
        answers.append(answer)
        answered.set()

    flush = translate(traffic.plan.upstream, Cmd.FLUSH, 0, 0, 0, b"")
    session.act(lambda: traffic.jobs.ask(flush, done))
    if not session.ended.is_set():  # else it was not asked
        await answered.wait()
    if not answers or not answers[0].error:
        return 0, ""
    return answers[0].error, answers[0].text or text_of_error(answers[0].error)


async def answered(running: Relayed) -> None:
    """Wait until nothing is under way over the link of a session that is held. A client of the same disk under
    another name may have had it FLUSHed. Raises `NotDone`.
    """
    with trio.move_on_after(PROOF_SECONDS):
        while not running.relaying.quiet:
            await trio.sleep(LOOK_IF_QUIET_SECONDS)
    if not running.relaying.quiet:
        raise NotDone(f"a FLUSH has not been answered within {PROOF_SECONDS:g} s")
