"""The older process's doors, while the newer one has them as well: sockets, files, and who has which.

Both have the same sockets, so a client that comes meanwhile waits in the same queue, whoever accepts. A Unix
socket's file, and the pidfile, are one process's: ours until the newer one serves, and then the newer one's, if
that listens there. Where it does not want to, we listen no more, for clients would wait for nobody; and if it
dies, we do again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gateway import __version__
from gateway.handover.homes import door_of
from gateway.handover.message import ChannelMessage
from gateway.net.listen import ListenError, open_listener
from gateway.upgrade.doors import ADMIN, CONTROL, LISTEN, PIDFILE, doors_said
from gateway.upgrade.office import UpgradeOffice, listener_at


class SharedDoors:
    """The doors of the older process. `say` tells the newer one."""

    def __init__(self, office: UpgradeOffice, say: Callable[[ChannelMessage], None]) -> None:
        self._office = office
        self._say = say
        self._taken: list[list[object]] = []
        """What the newer process listens on as well."""

    def give(self) -> None:
        """Give copies of all. Raises `OSError`."""
        office = self._office
        control, file = office.doors.control, office.doors.pidfile
        tickets: tuple[Path, int] | None = None
        try:
            tickets = (
                None if office.service.tickets is None else office.service.tickets.keeping.share()
            )
            for message in doors_said(
                office.listeners,
                None if control is None else (control.path, control.listening),
                {} if office.doors.admin is None else office.doors.admin.sockets,
                None if file is None else file.fd,
                tickets,
                version=__version__,
                pid=os.getpid(),
            ):
                self._say(message)
        finally:
            if tickets is not None:  # it has been copied
                os.close(tickets[1])

    def are_taken(self, message: ChannelMessage) -> None:
        """The newer process is ready, and says which it has kept."""
        self._taken = [list(each) for each in message["doors"]]

    def let_go_of_pidfile(self) -> None:
        """The newer process writes its number there as soon as it hears that it is to go."""
        file = self._office.doors.pidfile
        if file is not None:
            file.is_ours = [PIDFILE] not in self._taken

    def let_go(self) -> None:
        """The newer process serves: files are its own, and what it has not kept is closed."""
        office, taken = self._office, self._taken
        for listener in office.listeners:
            listener.file_is_ours = [LISTEN, *door_of(listener.settings.uri)] not in taken
            if listener.file_is_ours:  # its clients would wait for nobody
                office.tasks.start_soon(listener.aclose)
        control = office.doors.control
        if control is not None:
            control.file_is_ours = [CONTROL, str(control.path)] not in taken
            if control.file_is_ours:
                office.tasks.start_soon(control.aclose)
        if office.doors.admin is not None:  # who has asked there for the upgrade is answered still
            office.doors.admin.hand_over([str(door[1]) for door in taken if door[0] == ADMIN])

    def close(self, message: ChannelMessage) -> None:
        """The newer process listens there no more: nor do we, or clients would wait for nobody."""
        listener = listener_at(self._office, tuple(message["door"]))
        if listener is not None:
            self._office.tasks.start_soon(listener.aclose)

    async def open_again(self) -> None:
        """Listen again where the newer process did not want to."""
        for listener in self._office.listeners:
            if listener.sockets:
                continue
            try:
                listener.sockets = (await open_listener(listener.settings)).sockets
            except ListenError as error:
                self._office.service.log.error("not listened on any more", why=str(error))
            else:
                self._office.doors.accept(listener)
