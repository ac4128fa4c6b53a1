"""Listening sockets on their way from one process to another (SCM_RIGHTS), with the pidfile and the directory
of tickets.

The newer process has copies of the older one's sockets: the same sockets, and so the same queues of clients
that wait to be accepted. It keeps those that its configuration has as well, by what cannot be listened on twice
(`gateway.net.listen.address`), and closes its copies of the others. A Unix socket stays the same file.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from gateway.config import AdminUri, Listen
from gateway.handover.given import Door
from gateway.handover.homes import door_of
from gateway.handover.message import MAX_DESCRIPTORS, ChannelMessage, NotUnderstood
from gateway.net.listen import Listener
from gateway.upgrade.tickets import TicketsThere

LISTEN, CONTROL, ADMIN, PIDFILE = "listen", "control", "admin", "pidfile"
TICKETS = "tickets"


def doors_said(
    listeners: Sequence[Listener],
    control: tuple[Path, trio.SocketListener] | None,
    admin: Mapping[AdminUri, Sequence[socket.socket]],
    pidfile: int | None,
    tickets: tuple[Path, int] | None = None,
    **said: object,
) -> Iterator[ChannelMessage]:
    """Give the messages by which another process has copies of all these; `tickets` are a directory and its
    descriptor. Raises `OSError`.
    """
    doors: list[dict[str, Any]] = []
    descriptors: list[int] = []
    for listener in listeners:
        for each in listener.sockets:
            door = list(door_of(listener.settings.uri))
            said_of_it = {"port": listener.uri.port, "keeps": listener.keeps_file}
            doors.append({"what": LISTEN, "door": door, **said_of_it})
            descriptors.append(each.socket.fileno())
    if control is not None:
        doors.append({"what": CONTROL, "door": [str(control[0])]})
        descriptors.append(control[1].socket.fileno())
    for uri, sockets in admin.items():
        doors += [{"what": ADMIN, "door": [str(uri)]}] * len(sockets)
        descriptors += [each.fileno() for each in sockets]
    if pidfile is not None:
        doors.append({"what": PIDFILE, "door": []})
        descriptors.append(pidfile)
    if tickets is not None:
        doors.append({"what": TICKETS, "door": [str(tickets[0])]})
        descriptors.append(tickets[1])
    for start in range(0, max(1, len(doors)), MAX_DESCRIPTORS):
        part = slice(start, start + MAX_DESCRIPTORS)
        last = start + MAX_DESCRIPTORS >= len(doors)
        copies = tuple(map(os.dup, descriptors[part]))
        yield ChannelMessage(
            "doors", {**said, "doors": doors[part], "last": last}, descriptors=copies
        )


class Inherited:
    """What another process has given us copies of. What is not taken is to be closed with `close`."""

    def __init__(self) -> None:
        self._listening: defaultdict[Door, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        self._control: dict[str, int] = {}
        self._admin: defaultdict[str, list[int]] = defaultdict(list)
        self.pidfile: int | None = None
        """A pidfile that it holds, and so do we."""
        self.tickets: TicketsThere | None = None
        """Where its tickets are, and which there are."""
        self.taken: list[list[object]] = []
        """The doors that we have as well."""

    def add(self, message: ChannelMessage) -> None:
        """Add what came with a message of doors. Raises `NotUnderstood`, after all that came is closed."""
        doors = message["doors"]
        try:
            if len(doors) != len(message.descriptors):
                raise NotUnderstood(
                    f"expected {len(doors)} descriptors, got {len(message.descriptors)}"
                )
            kinds = [(each["what"], tuple(each["door"]), each) for each in doors]
        except (KeyError, TypeError, NotUnderstood) as error:
            for descriptor in message.descriptors:
                os.close(descriptor)
            raise NotUnderstood(f"expected doors, got {doors!r:.80} ({error})") from None
        for (what, door, said), descriptor in zip(kinds, message.descriptors, strict=True):
            if what == LISTEN:
                self._listening[door].append((descriptor, said))
            elif what == CONTROL:
                self._control[str(door[0])] = descriptor
            elif what == ADMIN:
                self._admin[str(door[0])].append(descriptor)
            elif what == PIDFILE:
                self.pidfile = descriptor
            elif what == TICKETS:
                self.tickets = TicketsThere(Path(str(door[0])), descriptor)
            else:
                os.close(descriptor)

    def listener(self, settings: Listen) -> Listener | None:
        """Give the listener of a `[[listen]]`, if the other process has it."""
        door = door_of(settings.uri)
        there = self._listening.pop(door, None)
        if not there:
            return None
        self.taken.append([LISTEN, *door])
        sockets = [_listening(descriptor) for descriptor, _said in there]
        said = there[0][1]
        uri = replace(settings.uri, port=said.get("port"))
        listener = Listener(settings, uri, sockets, keeps_file=bool(said.get("keeps")))
        listener.file_is_ours = False
        return listener

    def control(self, path: Path) -> trio.SocketListener | None:
        """Give the control socket at a path, if it is the other process's."""
        descriptor = self._control.pop(str(path), None)
        if descriptor is None:
            return None
        self.taken.append([CONTROL, str(path)])
        return _listening(descriptor)

    def admin(self, uri: str) -> list[socket.socket]:
        """Give the sockets of an address of `[admin]`, if the other process has any."""
        descriptors = self._admin.pop(uri, [])
        if descriptors:
            self.taken.append([ADMIN, uri])
        return [socket.socket(fileno=each) for each in descriptors]

    def close(self) -> None:
        """Close what was not taken."""
        left = [each[0] for there in self._listening.values() for each in there]
        left += [each for there in self._admin.values() for each in there]
        for descriptor in (*left, *self._control.values()):
            os.close(descriptor)
        if self.tickets is not None:
            self.tickets.close()
        self._listening.clear()
        self._control.clear()
        self._admin.clear()


def _listening(descriptor: int) -> trio.SocketListener:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
