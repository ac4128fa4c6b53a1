"""The verb `upgrade`, SIGUSR2, and what else an upgrade has to do with the gateway as a whole.

    {"verb": "upgrade", "program": "/opt/nbd-gateway/bin/nbd-gateway", "deadline": 600}

Both may be left out. What is done is in `gateway.upgrade`, which is loaded when there is an upgrade; this is
what stands between that and the gateway (`gateway.app.run`), in the older process as in the newer one.

What cannot be handed over is refused before anything is begun (`why_not`). As long as two processes serve, what
is about sessions that run is done in both of them (`gateway.app.in_both`).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb
from gateway.app.doors import Doorkeeper
from gateway.app.draining import Leaving
from gateway.app.in_both import WORDS, InBoth
from gateway.app.manager import Manager
from gateway.app.overview import Overview
from gateway.app.standing import Standing
from gateway.net.listen import Listener
from gateway.plural import plural
from gateway.sessions.pausing import Pauses
from gateway.sessions.service import Service
from gateway.upgrade.begin import begun, program, started
from gateway.upstream.configured import StartError, switched_to
from gateway.upstream.server import Server
from gateway.uri import Legacy, MemoryUri, parse_nbd_uri
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from gateway.handover.given import Given
    from gateway.identity import Identity
    from gateway.upgrade.newer import Newer
    from gateway.upgrade.office import Started
    from gateway.upgrade.older import Older  # these cost nothing where there is no upgrade

MOST_DEADLINE_SECONDS = 366 * 24 * 3600.0
"""The longest that sessions may go on: longer is for ever, which is said by saying nothing."""

CHANGING = ("pause", "switch", "reload")
"""Verbs that change what exports are. There is no upgrade while one is done, nor one in the older process of an
upgrade but for the newer one. (A reload is about who comes, and they come to the newer process.)"""


class Serving(Protocol):
    """What of a run is for us to know (`gateway.app.run`)."""

    @property
    def clients(self) -> Mapping[str, tuple[Listener, Identity]]:
        """Who is connected, by their ids."""
        ...

    @property
    def ends(self) -> bool:
        """Nothing new is begun."""
        ...

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client that another process has handed over."""
        ...

    def serves(self) -> None:
        """Accept at all doors, and tell the manager."""
        ...

    def see_to_upstreams(self) -> None:
        """Nobody else has connections to the servers."""
        ...


class Upgrading:
    """The upgrades of one process: the one by which it came, if any, and the one by which it goes. What both
    need of the gateway is here (`gateway.upgrade.office.UpgradeOffice`). `why_no_newer`
    says what of its command line is against another one.
    """

    def __init__(
        self,
        serving: Serving,
        service: Service,
        standing: Standing,
        doors: Doorkeeper,
        overview: Overview,
        newer: Newer | None,
        why_no_newer: str,
        leaving: Leaving,
    ) -> None:
        self.service = service
        self.newer = newer
        self.older: Older | None = None
        self.doors = doors
        self._serving = serving
        self._standing = standing
        self._overview = overview
        overview.older_shown = self.older_shown
        self._why_no_newer = why_no_newer
        self._leaving = leaving
        self._verbs: Mapping[str, Verb] = {}
        self._changing = 0
        """How many commands are under way that change what exports are."""
        if newer is not None:
            newer.go_where_it_was_switched(service, self._switched_to)
            newer.wait_for_children(standing.servers.servers)

    def _switched_to(self, uri: str, upstream: str) -> Server:
        settings = self.service.config.upstream[upstream]
        led_to = list(self.service.led_to)
        return switched_to(parse_nbd_uri(uri), upstream, settings, led_to, self._standing.keyring)

    # --- The house

    def start(self, program: Sequence[str], end: socket.socket) -> Started:
        """See `UpgradeOffice`."""
        return started(program, end, self.manager.environment)

    @property
    def manager(self) -> Manager:
        """See `UpgradeOffice`."""
        return self._standing.manager

    def serves(self) -> None:
        """See `UpgradeOffice`."""
        self._serving.serves()

    @property
    def listeners(self) -> list[Listener]:
        """See `UpgradeOffice`."""
        return self._standing.doors.listeners

    @property
    def clients(self) -> Mapping[str, tuple[Listener, Identity]]:
        """See `UpgradeOffice`."""
        return self._serving.clients

    @property
    def drained(self) -> list[str]:
        """See `UpgradeOffice`."""
        return self._overview.drained

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """See `UpgradeOffice`."""
        self._serving.take(listener, stream, given)

    def is_alone(self) -> None:
        """See `UpgradeOffice`."""
        self._serving.see_to_upstreams()

    def drain(self, *, now: bool) -> None:
        """See `UpgradeOffice`."""
        if now or not self._leaving.begun.is_set():
            self._leaving.begin(0)

    def client_left(self) -> None:
        """A client has left: if there is an upgrade, it may be over."""
        if self.older is not None:
            self.older.client_left()

    # --- How it stands

    @property
    def is_beside(self) -> bool:
        """An older process has clients still."""
        return self.newer is not None and not self.newer.alone

    @property
    def is_under_way(self) -> bool:
        """A newer process is being prepared, or serves."""
        return self.older is not None

    def clients_elsewhere(self, listener: Listener) -> int:
        """How many clients the older process has that came by a listener."""
        if self.newer is None or self.newer.beside is None:
            return 0
        from gateway.handover.homes import door_of

        return self.newer.beside.at(door_of(listener.settings.uri))

    # --- The verb

    async def upgrade(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """The verb."""
        unknown = arguments.keys() - {"program", "deadline"}
        if unknown:
            raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")
        path, deadline = arguments.get("program"), arguments.get("deadline")
        if path is not None and (not isinstance(path, str) or not path):
            raise Misunderstood('"program" is the path of the newer nbd-gateway')
        if deadline is not None and (
            isinstance(deadline, bool)
            or not isinstance(deadline, int | float)
            or not 0 <= deadline <= MOST_DEADLINE_SECONDS
        ):
            raise Misunderstood(
                f'"deadline" is a number of seconds, from 0 to {MOST_DEADLINE_SECONDS:.0f}'
            )
        return await self._upgrade(path, None if deadline is None else float(deadline))

    async def by_signal(self) -> None:
        """SIGUSR2: the same, and the log has the answer."""
        log = self.service.log
        answer = await self._upgrade(None, None)
        for problem in answer.problems:
            log.warning("not upgraded: SIGUSR2 was refused, or failed", why=problem)

    async def _upgrade(self, path: str | None, deadline: float | None) -> ControlAnswer:
        if self.newer is not None:
            await self.newer.end_overdue()
        why = self.why_not()
        if why is not None:
            return ControlAnswer(False, problems=(why,))
        from gateway.upgrade.older import Older
        from gateway.upgrade.steps import OlderIs

        command = program() if path is None else [path, *sys.argv[1:]]
        older = self.older = Older(self, command, deadline)
        try:
            return await older.upgrade()
        finally:
            if older.state is OlderIs.ALONE:
                self.older = None
            else:
                self.tasks.start_soon(self._forget, older)

    async def _forget(self, older: Older) -> None:
        """Be ready for the next upgrade, once the newer process of this one has died."""
        from gateway.upgrade.steps import OlderIs

        await older.gone.wait()
        if older.state is OlderIs.ALONE:
            self.older = None

    def why_not(self) -> str | None:
        """Say why there can be no upgrade now; None: nothing is known against it."""
        service = self.service
        if self.older is not None and (far := self.older.how_far()) is not None:
            return f"an upgrade is under way: {far}"
        if self._serving.ends:
            return "the gateway is shutting down"
        if self.newer is not None and not self.newer.alone:
            here = 0 if self.newer.beside is None else len(self.newer.beside)
            return (
                f"process {self.newer.older_pid} from before the last upgrade still has"
                f" {plural(here, 'client')}: wait until none is left, or end it in good order"
                f" (kill {self.newer.older_pid}), then ask again"
            )
        if self._why_no_newer:
            return self._why_no_newer
        if self.pauses.while_connected:
            paused = ", ".join(map(shown, sorted(self.pauses.while_connected)))
            return f"{paused} is paused as long as a command runs that is connected to this process"
        if self._changing:
            return "a pause, a switch or a reload is under way: ask again when it is done"
        for server in service.led_to:
            if isinstance(server.settings.uri, MemoryUri | Legacy):
                return (
                    f"upstream {server.name} is {server.settings.uri}, whose content is in this process and"
                    " would be lost"
                )
        for name, location in service.switched.items():
            if location.server.recipe.uri is None:
                return f"{shown(name)} was switched to another upstream: switch it back first"
        return None

    def guarded(self, verbs: Mapping[str, Verb], pauses: Pauses) -> dict[str, Verb]:
        """Give verbs that are done in both processes, as long as two serve, where they are about sessions; and
        that are not begun while there is an upgrade. `pauses` are those that `verbs` are about.
        """
        self.pauses = pauses
        self._verbs = verbs
        both = InBoth(self.service, verbs, self._beside)
        in_both: dict[str, Verb] = {
            "pause": both.pause,
            "resume": both.resume,
            "switch": both.switch,
        }
        in_both = {**verbs, **in_both}
        guards = {
            name: partial(self._guarded, in_both[name]) for name in CHANGING if name in in_both
        }
        return {**in_both, **guards}

    def _beside(self) -> Newer | None:
        return self.newer if self.is_beside else None

    async def do(self, verb: str, asked: Mapping[str, Any]) -> ControlAnswer:
        """See `UpgradeOffice`."""
        if verb not in WORDS:
            return ControlAnswer(False, problems=(f"{verb} is not done for another process",))
        try:
            return await self._verbs[verb](asked)
        except Misunderstood as error:
            return ControlAnswer(False, problems=(str(error),), misunderstood=True)

    def leads(self, exports: Mapping[str, Any]) -> None:
        """See `UpgradeOffice`."""
        from gateway.upgrade.switched import lead

        lead(self.service, exports, self._switched_to)

    async def _guarded(self, verb: Verb, arguments: Mapping[str, Any]) -> ControlAnswer:
        if self.is_under_way:
            return ControlAnswer(
                False, problems=("an upgrade is under way: ask again when it is done",)
            )
        self._changing += 1
        try:
            return await verb(arguments)
        finally:
            self._changing -= 1

    def older_shown(self) -> dict[str, Any] | None:
        """Show the older process, as long as it has clients."""
        if self.newer is None or self.newer.alone or self.newer.beside is None:
            return None
        beside = self.newer.beside
        return {
            "pid": self.newer.older_pid,
            "version": self.newer.older_version,
            "clients": len(beside),
            "sessions": beside.sessions,
        }

    # --- What happens to the gateway

    def begin(self, tasks: trio.Nursery) -> bool:
        """If an older process is there, tell it that we are ready; say whether it is. `tasks` end with the
        gateway.
        """
        self.tasks = tasks
        if self.newer is None:
            return False
        for uri in self.newer.drained:
            self._overview.drain(uri, None)
        self.newer.begin(self)
        return True

    def told(self) -> None:
        """We were told to end."""
        if self.newer is None and self.older is None:
            return
        from gateway.upgrade.steps import Happening

        if self.newer is not None:
            self.newer.happens(Happening.TOLD)
        if self.older is not None:
            self.older.happens(Happening.TOLD)

    async def farewell(self) -> None:
        """Our clients have left: say what the other process has to know."""
        if self.newer is not None:
            await self.newer.farewell()
        if self.older is not None:
            with trio.CancelScope(shield=True):  # it has limits of its own
                await self.older.farewell()


async def newer_begun() -> Newer | None:
    """Say whether we were started to take an older process's place. Raises `StartError`."""
    end = begun()
    if end is None:
        return None
    from gateway.upgrade.newer import Newer, NotGreeted

    newer = Newer(end)
    try:
        await newer.greet()
    except NotGreeted as error:
        raise StartError(str(error)) from None
    return newer
