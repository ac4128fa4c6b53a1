"""The doors: where clients and commands are taken, by whom, and until when.

A listener takes clients until it is closed. When a newer process takes our place, we take nobody any more, but
the sockets stay open: should that process die, we take clients again (`gateway.upgrade.steps`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.admin.control import ControlSocket
from gateway.app.pidfile import Pidfile
from gateway.app.standing import Listeners
from gateway.config import Config
from gateway.net.listen import Listener, ListenError, open_listener
from gateway.upstream.configured import StartError

if TYPE_CHECKING:
    from gateway.app.web import AdminDoor
    from gateway.upgrade.doors import Inherited  # costs nothing where there is no upgrade

Beside = Callable[[Callable[[], Awaitable[object]]], None]
"""Does something beside the clients."""


class Doorkeeper:
    """Takes clients and commands. `take` gives what takes those of a listener, `obey` those of a control
    socket.
    """

    def __init__(
        self,
        doors: Listeners,
        pidfile: Pidfile | None,
        beside: Beside,
        take: Callable[[Listener], list[Callable[[], Awaitable[object]]]],
        obey: Callable[[ControlSocket], Awaitable[object]],
    ) -> None:
        self.doors = doors
        self.pidfile = pidfile
        self._beside = beside
        self._take = take
        self._obey = obey
        self._turn = object()
        """As long as this is the same, it is our turn."""
        self.is_ours = False
        """It is our turn: no other process has the doors."""
        self._scopes: set[trio.CancelScope] = set()

    @property
    def control(self) -> ControlSocket | None:
        """Where the gateway is spoken to."""
        return self.doors.control

    @property
    def admin(self) -> AdminDoor | None:
        """What `[admin]` listens on."""
        return self.doors.admin

    def accept(self, listener: Listener) -> None:
        """Take clients; until another process does, or the listener is closed."""
        for take in self._take(listener):
            self._begin(take)

    def obey(self, control: ControlSocket) -> None:
        """Do what is asked for over a control socket, for as long."""
        self._begin(partial(self._obey, control))

    def _begin(self, taking: Callable[[], Awaitable[object]]) -> None:
        turn = self._turn

        async def until_handed_over() -> None:
            if turn is not self._turn:
                return  # a bug has ended it, and meanwhile it was handed over
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await taking()
                finally:
                    self._scopes.discard(scope)

        self._beside(until_handed_over)

    def accept_nobody(self) -> None:
        """Another process takes them from now on."""
        self.is_ours = False
        self._turn = object()
        for scope in self._scopes:
            scope.cancel()

    def accept_all(self) -> list[str]:
        """Take clients and commands, at all doors: they are ours, with their files. Say what has gone wrong."""
        self.is_ours = True
        for listener in self.doors.listeners:
            listener.file_is_ours = True
            self.accept(listener)
        if self.doors.control is not None:
            self.doors.control.file_is_ours = True
            self.obey(self.doors.control)
        if self.pidfile is not None and not self.pidfile.is_ours:
            try:
                self.pidfile.write()
            except OSError as error:
                return [f"the pidfile has another process's number: {error.strerror}"]
        return []


async def open_doors(doors: Listeners, config: Config, inherited: Inherited | None) -> None:
    """Listen on everything; where an older process does, or whoever starts us, with their sockets. Raises
    `StartError`; then what was opened is for the caller to close.
    """
    try:
        if "LISTEN_FDS" in os.environ:
            from gateway.net.inherited import handed_over

            doors.listeners += await handed_over(config.listen, os.environ)
        # Who can reach the gateway as a client can then ask it, too.
        if (path := config.control.socket) is not None:
            there = None if inherited is None else inherited.control(path)
            doors.control = ControlSocket(path, there)
            doors.control.file_is_ours = there is None
        if config.admin is not None:
            from gateway.app.web import open_door

            shared = (lambda _uri: []) if inherited is None else inherited.admin
            doors.admin = await open_door(config.admin, inherited=shared)
        open_already = [each.settings for each in doors.listeners]
        for settings in config.listen:
            if settings not in open_already:
                here = None if inherited is None else inherited.listener(settings)
                doors.listeners.append(await open_listener(settings) if here is None else here)
        doors.listeners.sort(key=lambda each: config.listen.index(each.settings))
    except ListenError as error:
        raise StartError(str(error)) from None
