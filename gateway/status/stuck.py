"""Sessions and servers of which nothing is heard for too long.

Every second we look at the sessions that wait for something. One in which nothing has gone on for
`STUCK_SECONDS` is stuck: the log says so once, with what it waits for, and says once more when it goes on or
ends. A server is stuck when every session that waits for it is.

A pause, and a claim on a client that is slow, are no faults by themselves. But whoever looks for the reason why
a machine stands still wants to find it, so each of them is told alike; only a pause has lines of its own
already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.sessions.service import Relayed, Service
from gateway.status.waits import Thing, WaitsFor, what_waits

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 1.0
"""How often we look: a session is told to be stuck no later than so long after it is."""

STUCK_SECONDS = 5.0
"""How long nothing may go on before that is worth a line: longer than a disk takes that has to be woken."""

SESSIONS_AT_A_TIME = 100
"""How many are looked at before the others have their turn: about a fifth of a millisecond."""


@dataclass(slots=True)
class _Seen:
    """What was seen of a session that waits."""

    progress: tuple[int, ...]
    since: float
    """When something went on in it last, as far as is known."""
    thing: Thing
    """What it waits for."""
    told: WaitsFor | None = None
    """What the log was told that it waits for."""


class Stuck:
    """Looks at the sessions of a service."""

    def __init__(
        self,
        service: Service,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._service = service
        self._log = log
        self._clock = clock
        self._seen: dict[Relayed, _Seen] = {}
        self._servers: dict[str, float] = {}
        """Servers that the log was told are stuck -> since when."""

    async def watch(self) -> None:
        """Look, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look at all sessions once."""
        running = list(self._service.running)
        for start in range(0, len(running), SESSIONS_AT_A_TIME):
            for each in running[start : start + SESSIONS_AT_A_TIME]:
                self._look_at(each)
            await trio.lowlevel.checkpoint()
        for gone in self._seen.keys() - self._service.running:
            self._over(gone)
        self._look_at_servers()

    def since(self, running: Relayed) -> float | None:
        """Say since when nothing goes on in a session that waits; None: it goes on, or is not known yet."""
        seen = self._seen.get(running)
        if seen is None or seen.progress != running.relaying.progress:
            return None
        return seen.since

    def is_stuck(self, running: Relayed) -> bool:
        """Say whether nothing goes on in a session for too long."""
        since = self.since(running)
        return since is not None and self._clock() - since >= STUCK_SECONDS

    def seconds_since(self, since: float) -> float:
        """Give how long ago that is."""
        return round(self._clock() - since, 1)

    def _look_at(self, running: Relayed) -> None:
        if not running.relaying.has_to_do and running not in self._seen:
            return
        wait = what_waits(running)
        if wait is None or wait.thing is Thing.PAUSE:
            self._over(running)
            return
        now, progress = self._clock(), running.relaying.progress
        seen = self._seen.get(running)
        if seen is None or seen.progress != progress:
            self._over(running)
            self._seen[running] = _Seen(progress, now, wait.thing)
            return
        seen.thing = wait.thing
        if now - seen.since >= STUCK_SECONDS and (
            seen.told is None or seen.told.thing is not wait.thing
        ):
            seen.told = wait = what_waits(running, self._service) or wait
            seconds = self.seconds_since(seen.since)
            running.log.warning(
                "session is stuck",
                waits_for=str(wait.thing),
                why=wait.text,
                seconds=seconds,
                upstream=running.opened.location.server.name,
            )

    def _over(self, running: Relayed) -> None:
        """It goes on, or has nothing to do any more, or has ended."""
        seen = self._seen.pop(running, None)
        if seen is not None and seen.told is not None:
            waited = str(seen.told.thing)
            seconds = self.seconds_since(seen.since)
            running.log.info("session is stuck no more", waited_for=waited, seconds=seconds)

    def _look_at_servers(self) -> None:
        """A server is stuck when all that wait for it are."""
        waiting: Counter[str] = Counter()
        stuck: Counter[str] = Counter()
        since: dict[str, float] = {}
        for running, seen in self._seen.items():
            if seen.thing not in (Thing.SERVER, Thing.CONNECTION):
                continue
            name = running.opened.location.server.name
            waiting[name] += 1
            if seen.told is not None:
                stuck[name] += 1
                since[name] = min(since.get(name, seen.since), seen.since)
        for name in stuck.keys() - self._servers.keys():
            if stuck[name] == waiting[name]:
                self._servers[name] = since[name]
                seconds = self.seconds_since(since[name])
                self._log.warning(
                    "upstream is stuck", upstream=name, sessions=stuck[name], seconds=seconds
                )
        for name in [each for each in self._servers if not stuck[each]]:
            seconds = self.seconds_since(self._servers.pop(name))
            self._log.info("upstream is stuck no more", upstream=name, seconds=seconds)
