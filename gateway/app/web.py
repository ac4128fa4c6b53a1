"""The child that speaks HTTP (`gateway.web`): it has its sockets from us, asks us over a control socket of its
own, and is begun anew when it ends before us.

The control socket has an abstract name that the kernel chooses (unix(7), "autobind"): no file is needed, and it
asks who connects as the other one does (SO_PEERCRED).
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer, ControlSocket, Misunderstood, Verb, no_arguments
from gateway.config import Admin, AdminUri
from gateway.log.recent import Recent
from gateway.net.listen import BACKLOG, ListenError, open_unix
from gateway.sessions.service import Service
from gateway.status.telling import counts_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PROGRAM = "import sys; sys.path[:] = {path!r}; from gateway.web.main import main; main()"
"""It finds our package, and what that needs, where we have found them."""

AGAIN_SECONDS = 1.0
MOST_AGAIN_SECONDS = 30.0
"""How soon another one is begun, when one has ended before us: twice as late each time, up to so much, until
one has lived for longer.
"""

LEAVE_SECONDS = 3.0
"""How long it may take to end when it is told to: it gives its last answers a second."""

MOST_LINE_BYTES = 16 << 10
"""Of what it says: a traceback is longer, and is cut."""

MOST_LINES = 50
"""Lines of what it writes to standard error that are kept for the log, when it ends."""


@dataclass
class AdminDoor:
    """What `[admin]` listens on. Made by `open_door`."""

    settings: Admin
    control: ControlSocket
    """Where the child asks us."""
    sockets: dict[AdminUri, list[socket.socket]] = field(default_factory=dict)
    closed: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event | None = None
    """Set when the child has ended; None: it was never begun."""
    keeps_files: set[Path] = field(default_factory=set)
    """Files of Unix sockets that another one listens on now."""
    shares: dict[Path, int] = field(default_factory=dict)
    """Files that the door before this one listens on as well, and the modes that they had: they are that one's
    until this one is in force."""

    def hand_over(self, taken: Collection[str]) -> None:
        """Another process listens at these addresses as well, and serves them from now on: have the child end,
        and listen nowhere else.
        """
        self.closed.set()
        for uri in [each for each in self.sockets if str(each) not in taken]:
            for sock in self.sockets.pop(uri):
                sock.close()
            if uri.path is not None:
                with suppress(OSError):
                    uri.path.unlink()
        self.keeps_files |= {uri.path for uri in self.sockets if uri.path is not None}

    def take_back(self) -> None:
        """Nobody else serves them any more: what is still listened on is ours, with its files."""
        self.closed = trio.Event()
        self.keeps_files.clear()

    @property
    def uris(self) -> tuple[AdminUri, ...]:
        """The addresses, with the ports that they have."""
        found = []
        for uri, sockets in self.sockets.items():
            port = uri.port if uri.path else sockets[0].getsockname()[1]
            found.append(AdminUri(uri.secure, uri.host, port, uri.path))
        return tuple(found)

    def come_into_force(self, before: AdminDoor | None) -> None:
        """Take the place of another door: the files that both listen on are this one's from now on."""
        if before is not None:
            before.keeps_files |= self.shares.keys()
        self.shares.clear()

    async def aclose(self) -> None:
        """Listen no more, and have the child end. What it shares with the door before it is left as it was."""
        self.closed.set()
        await self.control.aclose()
        for uri, sockets in self.sockets.items():
            for sock in sockets:
                sock.close()
            if uri.path is not None:
                with suppress(OSError):
                    self._leave_file(uri.path)
        self.sockets = {}
        if self.ended is not None:
            await self.ended.wait()

    def _leave_file(self, path: Path) -> None:
        """Remove the file of a socket, or leave it to the other door. Raises `OSError`."""
        if path in self.shares:
            path.chmod(self.shares[path])
        elif path not in self.keeps_files:
            path.unlink()


async def open_door(
    settings: Admin,
    before: AdminDoor | None = None,
    inherited: Callable[[str], list[socket.socket]] = lambda _uri: [],
) -> AdminDoor:
    """Listen where `[admin]` says; addresses that are listened on already are shared. `inherited` gives the
    sockets of another process's by their address, if it has any: their files stay that one's until we
    `take_back`. Raises `ListenError`.
    """
    await trio.to_thread.run_sync(_check_files, settings, abandon_on_cancel=True)
    made = AdminDoor(settings, ControlSocket(None))
    try:
        for uri in settings.uri:
            shared = None if before is None else before.sockets.get(uri)
            if shared is not None and before is not None:
                made.sockets[uri] = [_twin(each) for each in shared]
                if uri.path is not None:
                    made.shares[uri.path] = stat.S_IMODE(uri.path.stat().st_mode)
                    made.keeps_files |= before.keeps_files & {uri.path}
                    uri.path.chmod(settings.socket_mode)
            elif given := inherited(str(uri)):
                made.sockets[uri] = given
                if uri.path is not None:
                    made.keeps_files.add(uri.path)
            else:
                made.sockets[uri] = await _listen(uri, settings.socket_mode)
    except BaseException as error:
        await made.aclose()
        if isinstance(error, OSError):
            raise ListenError(f"cannot listen on {uri}: {error.strerror or error}") from None
        raise
    return made


def _check_files(settings: Admin) -> None:
    """See whether the child will be able to read what it needs. Raises `ListenError`."""
    from gateway.web.needs import lacking_files

    if whys := [why for _at, why in lacking_files(settings)]:
        raise ListenError(f"[admin]: {'; '.join(whys)}")


async def _listen(uri: AdminUri, mode: int) -> list[socket.socket]:
    if uri.path is not None:
        listening = open_unix(uri.path, mode)
        return [_owned(listening.socket)]
    listeners = await trio.open_tcp_listeners(uri.port, host=uri.host, backlog=BACKLOG)
    return [_owned(each.socket) for each in listeners]


def _twin(sock: socket.socket) -> socket.socket:
    """Give another descriptor of a socket. `socket.dup` would have both block, and the child in its accept."""
    return socket.socket(fileno=os.dup(sock.fileno()))


def _owned(sock: trio.socket.SocketType) -> socket.socket:
    """Take a socket out of Trio's hands: we only hand it on."""
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def verbs_of(service: Service, recent: Recent) -> dict[str, Verb]:
    """Give the verbs that only the child has use for.

    {"verb": "alive"}
    {"verb": "log", "after": 17}
    {"verb": "counts"}                        (`gateway.status.telling`)
    """

    async def alive(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        return ControlAnswer(True, data={})

    async def log(arguments: Mapping[str, Any]) -> ControlAnswer:
        after = arguments.get("after", 0)
        if arguments.keys() - {"after"} or isinstance(after, bool) or not isinstance(after, int):
            raise Misunderstood('"after" is the number of a line')
        return ControlAnswer(True, data={"lines": recent.after(after)})

    return {"alive": alive, "log": log, "counts": counts_of(service)}


class Web:
    """Has the child that speaks HTTP at a door, until the door is closed."""

    def __init__(self, door: AdminDoor, log: FilteringBoundLogger) -> None:
        self._door = door
        self._log = log

    async def run(self) -> None:
        """Have it, and have others follow it."""
        if self._door.closed.is_set():
            return
        closed, ended = self._door.closed, trio.Event()  # there may be others when we have ended
        self._door.ended = ended
        try:
            async with trio.open_nursery() as nursery:

                async def until_closed() -> None:
                    await closed.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_closed)
                await self._run()
        finally:
            ended.set()

    async def _run(self) -> None:
        for uri in self._door.uris:
            self._log.info("admin interface listening", uri=str(uri))
        again = AGAIN_SECONDS
        while True:
            began = trio.current_time()
            status, said = await self._one()
            lived = trio.current_time() - began
            again = (
                AGAIN_SECONDS if lived > MOST_AGAIN_SECONDS else min(2 * again, MOST_AGAIN_SECONDS)
            )
            self._log.error(
                "admin interface ended, another is begun", status=status, seconds=again, said=said
            )
            await trio.sleep(again)

    async def _one(self) -> tuple[int, list[str]]:
        """Have one child, until it ends; give its status and the last that it wrote."""
        descriptors = [each.fileno() for sockets in self._door.sockets.values() for each in sockets]
        command = [sys.executable, "-I", "-c", PROGRAM.format(path=sys.path)]
        lifeline, ours = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                [*command, self._settings()],
                stdin=lifeline,
                stdout=-1,
                stderr=-1,
                pass_fds=descriptors,
                start_new_session=True,  # what comes from the terminal is for us
            )
        except OSError as error:
            os.close(ours)
            return -1, [f"it cannot be started: {error.strerror}"]
        finally:
            os.close(lifeline)
        said: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear_lines, process.stdout, self._hear)
                nursery.start_soon(hear_lines, process.stderr, lambda line: _keep(said, line))
                status = await process.wait()
        finally:
            os.close(ours)
            with trio.CancelScope(shield=True):
                with trio.move_on_after(LEAVE_SECONDS):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await process.stdout.aclose()
                await process.stderr.aclose()
        return status, said

    def _settings(self) -> str:
        from gateway.web.settings import Door, Settings

        admin = self._door.settings
        doors = tuple(
            Door(each.fileno(), _kind(uri), uri.secure)
            for uri, sockets in self._door.sockets.items()
            for each in sockets
        )
        return Settings(
            str(self._door.control.path),
            doors,
            None if admin.tokens is None else str(admin.tokens),
            None if admin.certificates is None else str(admin.certificates),
            admin.verify_client is not False,
            admin.hosts,
        ).as_text()

    def _hear(self, line: str) -> None:
        """Put what the child says into the log."""
        try:
            said = json.loads(line)
            what, why = str(said["what"]), str(said["why"])
        except (ValueError, TypeError, KeyError):
            self._log.error("admin interface failed", why=line)
            return
        match what:
            case "refused":
                client, count = str(said.get("client", "")), said.get("count")
                self._log.warning("admin request refused", why=why, client=client, count=count)
            case "exchanged":
                self._log.info("admin credentials exchanged", what=why)
            case "kept":
                self._log.error("admin credentials stay as they were", why=why)
            case _:
                self._log.error("admin interface failed", why=why)


def _kind(uri: AdminUri) -> Any:
    return "unix" if uri.path is not None else "loopback" if uri.is_loopback else "other"


def _keep(said: list[str], line: str) -> None:
    said.append(line)
    del said[:-MOST_LINES]


async def hear_lines(stream: trio.abc.ReceiveStream, hear: Callable[[str], None]) -> None:
    """Have each line heard, also the last one of a child that dies in it; what is too long is cut."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            hear(line.decode(errors="replace"))
        if len(rest) > MOST_LINE_BYTES:
            hear(rest.decode(errors="replace"))
            rest = b""
    if rest:
        hear(rest.decode(errors="replace"))
