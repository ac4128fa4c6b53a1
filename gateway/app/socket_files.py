"""Files of Unix sockets that somebody has removed under us.

A socket whose file is gone listens on, and nobody finds it: the control socket in /tmp that a cleaner has
swept, the one of a `[[listen]]` that a script has removed before it meant to make its own. Nothing tells us of
that, so we look now and then, and where nothing is there any more, we listen anew at the same path. Whoever is
connected stays so. What else stands there is somebody's, and is left alone; so is a file that was never ours
(systemd's).

While a newer process serves, it looks, and not we.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.admin.control import ControlSocket
from gateway.app.doors import Doorkeeper
from gateway.net.listen import Listener, ListenError, open_listener
from gateway.net.socket_file import is_abstract

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 5.0
"""How often we look. It costs a system call for each; and so long a removed socket may be missed."""


class SocketFiles:
    """The files of a gateway's sockets."""

    def __init__(self, doors: Doorkeeper, log: FilteringBoundLogger) -> None:
        self._doors = doors
        self._log = log
        self._told: set[Path] = set()
        """Where nothing could be made anew, and the log says so."""

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Listen anew where a file is gone."""
        if not self._doors.is_ours:
            return
        control = self._doors.control
        if control is not None and _is_gone(control.path):
            await self._anew(control.path, partial(self._control_anew, control))
        for listener in [*self._doors.doors.listeners]:
            path = listener.uri.socket_path
            if path is None or listener.keeps_file or not listener.sockets:
                continue
            if _is_gone(Path(path)):
                await self._anew(Path(path), partial(self._listener_anew, listener))

    async def _anew(self, path: Path, listen: Callable[[], Awaitable[None]]) -> None:
        try:
            await listen()
        except ListenError as error:
            if path not in self._told:
                self._told.add(path)
                self._log.error("socket's file is gone, and none can be made", why=str(error))
        else:
            self._told.discard(path)
            self._log.warning("socket's file was removed: listening anew", path=str(path))

    async def _control_anew(self, control: ControlSocket) -> None:
        anew = ControlSocket(control.path)
        control.file_is_ours = False  # it is the new one's now
        self._doors.doors.control = anew
        self._doors.obey(anew)
        await control.aclose()

    async def _listener_anew(self, listener: Listener) -> None:
        anew = await open_listener(listener.settings)
        if not self._doors.is_ours or not listener.sockets:
            await anew.aclose()  # meanwhile it was handed over, or closed by a reload
            return
        before, listener.sockets = listener.sockets, anew.sockets
        self._doors.accept(listener)
        for each in before:
            await each.aclose()


def _is_gone(path: Path) -> bool:
    if is_abstract(str(path)):
        return False
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it may be there, and cannot be looked at
    return False
