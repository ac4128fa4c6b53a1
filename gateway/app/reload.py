"""Goes over to another configuration while the gateway runs: all of it, or nothing.

What is asked for (SIGHUP, `nbd-gateway reload`, a file that has changed) is done in two steps. First everything
that may fail: the file is read and checked, credentials are loaded, policies and servers made, new addresses
listened on. Nobody notices; if anything fails, what was opened is closed, and all goes on as it was. Then the
change itself, in one step of plain code without an await: nobody ever sees half of it. Last, what nobody needs
any more is closed.

Reloads come one after the other, however many are asked for at once.

Running sessions keep what they were promised. The rules, rates and limits of the new configuration hold for
them as `Service.reconfigure` says. What becomes of servers stands in `gateway.upstream.configured`.

An address is kept if it is the same one, and so are those who wait there to be accepted; whatever else is said
of it holds for who comes from then on. New addresses are opened while the old ones are there still: so one
that overlaps with an old one (0.0.0.0 with 127.0.0.1, at one port) is refused by the kernel, and nothing
changes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from gateway.access.loading import look_anew
from gateway.access.rules import Access
from gateway.admin.control import ControlAnswer, ControlSocket
from gateway.app.lacking import say_what_is_lacking
from gateway.app.source import ConfigFiles, ConfigSource
from gateway.app.standing import Listeners, Present, Standing
from gateway.app.ticketing import following_book, one_turn
from gateway.config import Config, ConfigError, Listen
from gateway.log import set_up
from gateway.net.listen import Listener, ListenError, file_as_in, is_for, open_listener
from gateway.sessions.service import Service
from gateway.upstream.backends import Backend
from gateway.upstream.configured import Servers, StartError, counted, load_keyring, servers_of

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor
    from gateway.tickets.book import Book
    from gateway.tls.keyring import Keyring

RELOAD_SECONDS = 30
"""How long everything that comes before the change may take: files of a network that hangs, names that do not
resolve. Others wait for their reload meanwhile."""

SETTLE_SECONDS = 0.1
STORM_SECONDS = 2
"""Signals that come in less than that after another are one, up to so long after the first: whoever sends
them from a hook for each of many files means one reload, of all of them."""

TIMED_SECONDS = 60
"""How often sessions are held against rules that depend on the time: a schedule has minutes."""


class NotReloaded(Exception):
    """The configuration stays as it is; each of `problems` says why."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


@dataclass
class _Next:
    """A configuration that everything is there for."""

    config: Config
    access: Access
    keyring: Keyring | None
    servers: Servers
    listeners: list[tuple[Listen, Listener]]
    control: ControlSocket | None
    admin: AdminDoor | None
    tickets: Book | None


class ReloadOffice(Protocol):
    """Who runs what a reload brings."""

    def accept(self, listener: Listener) -> None:
        """Take a new listener's clients."""

    def obey(self, control: ControlSocket) -> None:
        """Serve a new control socket."""

    def serve_web(self, door: AdminDoor) -> None:
        """Have HTTP spoken at a new door."""

    def watch(self, keyring: Keyring) -> None:
        """Watch the first credentials that there are."""

    def keep(self, tickets: Book) -> None:
        """See to it that tickets end."""

    def see_off(self, wait: Callable[[Backend], Awaitable[None]], backend: Backend) -> None:
        """Wait for the last users of what nobody is led to any more."""

    @property
    def ends(self) -> bool:
        """The gateway shuts down."""


class Reloader:
    """Reloads, one after the other. `embedded` is where servers in here live; `listen` opens an address.
    `is_asked`: the control socket of the configuration is here.
    """

    def __init__(
        self,
        source: ConfigSource | None,
        service: Service,
        standing: Standing,
        embedded: trio.Nursery,
        office: ReloadOffice,
        listen: Callable[[Listen], Awaitable[Listener]] = open_listener,
        *,
        is_asked: bool = True,
    ) -> None:
        self.present = Present()
        self._listen = listen
        self._is_asked = is_asked
        self._files = ConfigFiles(source)
        self._service = service
        self._now = standing
        self._embedded = embedded
        self._office = office
        self._turn = trio.Lock()
        self._wanted = trio.Event()
        self._asked = 0

    # --- Who asks for it

    def ask(self) -> None:
        """Reload soon. Asking often before that is the same as once."""
        self._asked += 1
        self._wanted.set()

    async def do_what_is_asked(self) -> None:
        """Reload whenever `ask` was called, until cancelled."""
        while True:
            await self._wanted.wait()
            with trio.move_on_after(STORM_SECONDS):
                await self._settled()
            self._wanted = trio.Event()
            await self.reload()

    async def _settled(self) -> None:
        """Wait until nobody asks for it any more."""
        before = 0
        while before != self._asked:
            before = self._asked
            await trio.sleep(SETTLE_SECONDS)

    async def watch_file(self) -> None:
        """Reload when a file of it has changed, where the configuration says so, until cancelled."""
        await self._files.watch(lambda: self._service.config.control.reload_on_change, self.reload)

    async def look_again_as_time_passes(self) -> None:
        """Hold sessions against rules that depend on the time, until cancelled."""
        while True:
            await trio.sleep(TIMED_SECONDS)
            if self._service.access.timed:
                self._service.look_again()

    # --- The reload

    async def reload(self) -> ControlAnswer:
        """Reload now, and say in the log and in the answer what came of it."""
        return await self._tried_out(self._reload)

    async def reload_to(
        self, config: Config, agreed: Callable[[], Awaitable[bool]]
    ) -> ControlAnswer:
        """Go over to a configuration that another process has read, if that is `agreed` when all that may fail
        has been done here.
        """
        look_anew()
        return await self._tried_out(lambda limit: self._go_over(config, limit, agreed))

    async def _tried_out(
        self, reload: Callable[[trio.CancelScope], Awaitable[list[str]]]
    ) -> ControlAnswer:
        log = self._service.log
        async with self._turn, self._now.manager.reloading():
            try:
                with trio.fail_after(RELOAD_SECONDS) as limit:
                    done = await reload(limit)
            except trio.TooSlowError:
                failed: NotReloaded | None = NotReloaded(
                    f"it took longer than {RELOAD_SECONDS} s to prepare"
                )
            except NotReloaded as error:
                failed = error
            except (Exception, SystemExit) as error:
                # A bug, ours or a policy's; everybody is served on.
                log.exception("reload failed")
                failed = NotReloaded(f"an internal error: {error!r}")
            else:
                failed = None
                log.info("configuration reloaded", what="; ".join(done))
                await say_what_is_lacking(self._service.config, log)
            if failed is not None:
                done = []
            problems = [] if failed is None else list(failed.problems)
            say = log.warning if self._files.source is None else log.error
            for problem in problems:
                say("configuration stays as it was", why=problem)
            # Whatever became of the configuration: who has renewed a certificate waits for this alone.
            if self._now.keyring is not None and not self._office.ends:
                exchanged = self._now.keyring.reload(log)
                problems += exchanged.problems
                if exchanged.done:
                    done.append(f"credentials exchanged: {', '.join(exchanged.done)}")
        return ControlAnswer(failed is None, tuple(done), tuple(problems))

    async def _reload(self, limit: trio.CancelScope) -> list[str]:
        if self._files.source is None:
            raise NotReloaded(
                "it came from the command line or standard input: only serve --config FILE can be reloaded"
            )
        self._refuse_if_ending()
        try:
            config = await self._files.read()
        except ConfigError as error:
            raise NotReloaded(*map(str, error.problems)) from None
        return await self._go_over(config, limit)

    async def _go_over(
        self,
        config: Config,
        limit: trio.CancelScope,
        agreed: Callable[[], Awaitable[bool]] | None = None,
    ) -> list[str]:
        before = self._service.config
        if (config.user, config.group) != (before.user, before.group):
            raise NotReloaded(f"{self._files.where}another user or group takes a new start")
        async with AsyncExitStack() as opened, one_turn(self._service.tickets):
            with ExitStack() as changed:
                try:
                    following = await self._prepare(config, opened, changed)
                except (StartError, ListenError) as error:
                    raise NotReloaded(f"{self._files.where}{error}") from None
                self._refuse_if_ending()
                if agreed is not None:
                    # What was promised holds however long the others take.
                    limit.deadline = math.inf
                    if not await agreed():
                        raise NotReloaded("the other workers stay as they were")
                gone, done = self._commit(following)
            opened.pop_all()
        with trio.CancelScope(shield=True):  # it is done, and a closing socket takes no time
            await gone.aclose()
        return done

    def _refuse_if_ending(self) -> None:
        if self._office.ends:
            raise NotReloaded(
                "the gateway is shutting down, or a newer process is taking its place: reload that one"
            )

    async def _prepare(self, config: Config, opened: AsyncExitStack, changed: ExitStack) -> _Next:
        """Do everything that may fail. What is opened, and changed, is put down to be undone. Raises
        `StartError`, `ListenError`.
        """
        tickets = await following_book(config, self._service, opened)
        config, access = self._in_force(config, tickets)
        keyring = await trio.to_thread.run_sync(
            load_keyring, config, self._now.keyring, abandon_on_cancel=True
        )
        servers = servers_of(
            config,
            self._embedded,
            keyring,
            self._now.servers,
            self._now.leaving,
            lambda backend: opened.push_async_callback(_shielded(backend.end)),
            self._service.elsewhere,
        )
        listeners = await self._listeners(config, opened, changed)
        control = self._control(config, opened)
        admin = await self._admin(config, opened)
        return _Next(config, access, keyring, servers, listeners, control, admin, tickets)

    def _in_force(self, config: Config, tickets: Book | None) -> tuple[Config, Access]:
        try:
            return self._service.in_force(config, tickets)
        except (Exception, SystemExit) as error:  # a policy's, of whoever wrote it
            raise StartError(f"policies: {error}") from error

    async def _listeners(
        self, config: Config, opened: AsyncExitStack, changed: ExitStack
    ) -> list[tuple[Listen, Listener]]:
        left = list(self._now.doors.listeners)
        found: list[tuple[Listen, Listener]] = []
        for settings in config.listen:
            here = next((each for each in left if is_for(each.settings, settings)), None)
            if here is None:
                here = await self._listen(settings)
                opened.push_async_callback(_shielded(here.aclose))
            else:
                left.remove(here)
                if self._is_asked:
                    changed.enter_context(file_as_in(settings, here.settings))
            found.append((settings, here))
        return found

    def _control(self, config: Config, opened: AsyncExitStack) -> ControlSocket | None:
        path, here = config.control.socket, self._now.doors.control
        path = path if self._is_asked else None
        if path is None or (here is not None and here.path == path):
            return None if path is None else here
        control = ControlSocket(path)
        opened.push_async_callback(_shielded(control.aclose))
        return control

    async def _admin(self, config: Config, opened: AsyncExitStack) -> AdminDoor | None:
        here = self._now.doors.admin
        if not self._is_asked:  # a worker: the supervisor is
            return None
        if config.admin is None or (here is not None and here.settings == config.admin):
            return None if config.admin is None else here
        from gateway.app.web import open_door

        door = await open_door(config.admin, here)
        opened.push_async_callback(_shielded(door.aclose))
        return door

    def _commit(self, following: _Next) -> tuple[Listeners, list[str]]:
        """Go over to it: give what is listened on no more, and what has been done. Never raises."""
        service, before, doors = self._service, self._now.servers, self._now.doors
        servers, tickets = following.servers, following.tickets
        ended = service.reconfigure(
            following.config, following.access, servers.servers, servers.switched
        )
        set_up(following.config.log)
        service.take_tickets(tickets)
        if self._now.takes(tickets) and tickets is not None:
            self._office.keep(tickets)
        credentials = self._take_credentials(following.keyring)
        listeners = [listener for _settings, listener in following.listeners]
        new = [each for each in listeners if each not in doors.listeners]
        gone = Listeners([each for each in doors.listeners if each not in listeners])
        changed = 0
        for settings, listener in following.listeners:
            changed += listener.settings != settings
            listener.take_over(settings)
        doors.listeners[:] = listeners
        for listener in new:
            self._office.accept(listener)
        if following.control is not doors.control:
            gone.control, doors.control = doors.control, following.control
            if following.control is not None:
                self._office.obey(following.control)
        admin = []
        if following.admin is not doors.admin:
            gone.admin, doors.admin = doors.admin, following.admin
            if following.admin is not None:
                following.admin.come_into_force(gone.admin)
                self._office.serve_web(following.admin)
            uris = () if following.admin is None else following.admin.uris
            admin = [f"admin: {', '.join(map(str, uris)) or 'nowhere any more'}"]
        self._now.servers = following.servers
        self._see_off(before.gone(following.servers))
        kept = len(listeners) - len(new) - changed
        return gone, [
            f"listeners: {counted(kept, changed, len(new), len(gone.listeners))}",
            f"upstreams: {following.servers.words(before)}",
            f"exports: {len(following.config.exports)}",
            f"rules: {len(following.config.rule)}",
            f"sessions: {len(service.running) - ended} kept, {ended} ended",
            *([f"credentials loaded: {', '.join(credentials)}"] if credentials else []),
            *admin,
        ]

    def _take_credentials(self, keyring: Keyring | None) -> list[str]:
        """Go over to these credentials; say whose were not there before."""
        if keyring is None:
            return []
        if self._now.keyring is not None:
            return self._now.keyring.become(keyring, self._service.log)
        self._now.keyring = keyring
        self._office.watch(keyring)
        return keyring.whose

    # --- What has gone

    def _see_off(self, backends: Iterable[Backend]) -> None:
        for backend in self._now.servers.led_to:
            self._now.leaving.pop(backend, None)
        for backend in backends:
            self._now.leaving[backend] = self.present.age
            self._office.see_off(self._end, backend)
        self.present.age += 1

    async def _end(self, backend: Backend) -> None:
        """End a server that nobody is led to any more, once nobody is here who was. Another reload may have
        taken it up again meanwhile.
        """
        while self.present.any_of(self._now.leaving.get(backend, -1)):
            await self.present.next_to_leave()
        if backend in self._now.leaving:
            await backend.end()
            self._now.leaving.pop(backend, None)


def _shielded(close: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def closed() -> None:
        with trio.CancelScope(shield=True):
            await close()

    return closed
