"""What an upgrade asks of the gateway that it is of."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import trio

from gateway.admin.control import ControlAnswer, ControlSocket
from gateway.config import AdminUri
from gateway.handover.given import Door, Given
from gateway.handover.homes import door_of
from gateway.identity import Identity
from gateway.net.listen import Listener
from gateway.sessions.pausing import Pauses
from gateway.sessions.service import Service


class HeldFile(Protocol):
    """The file with the number of who serves."""

    is_ours: bool

    @property
    def fd(self) -> int:
        """Its descriptor."""
        ...


class HeldAdmin(Protocol):
    """What `[admin]` listens on."""

    sockets: dict[AdminUri, list[socket.socket]]

    def hand_over(self, taken: Collection[str]) -> None:
        """Another process serves these addresses; listen nowhere else."""
        ...


class OfficeDoors(Protocol):
    """Where clients and commands are taken."""

    @property
    def pidfile(self) -> HeldFile | None:
        """The pidfile."""
        ...

    @property
    def control(self) -> ControlSocket | None:
        """Where the gateway is spoken to."""
        ...

    @property
    def admin(self) -> HeldAdmin | None:
        """What `[admin]` listens on."""
        ...

    def accept(self, listener: Listener) -> None:
        """Accept at one listener."""
        ...

    def accept_nobody(self) -> None:
        """Accept nobody any more; the sockets stay open, and are another process's."""
        ...


class Supervisor(Protocol):
    """Whoever runs us as a service (`gateway.app.manager`)."""

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs in its environment to speak in our name."""
        ...

    async def hand_over(self, pid: int) -> None:
        """Say which process serves from now on, and nothing after that."""
        ...

    def goes_on(self, environment: Mapping[str, str]) -> None:
        """Speak again, as that environment says."""
        ...


class Started(Protocol):
    """A newer process that was started: what is needed of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def poll(self) -> int | None:
        """Give the status with which it has ended; None: it has not."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self) -> int:
        """Wait, without letting anybody else go on, until it has ended."""
        ...


class UpgradeOffice(Protocol):
    """The gateway: its doors, its clients, and its end."""

    tasks: trio.Nursery
    """Ends with the gateway."""

    def start(self, program: Sequence[str], end: socket.socket) -> Started:
        """Start a newer process, which finds its `end` of the channel (`gateway.upgrade.begin`). Raises
        `OSError`.
        """
        ...

    @property
    def doors(self) -> OfficeDoors:
        """Where clients and commands are taken."""
        ...

    @property
    def manager(self) -> Supervisor:
        """Whoever runs us as a service."""
        ...

    def serves(self) -> None:
        """Accept at all doors, which are ours with their files, and say so."""
        ...

    @property
    def service(self) -> Service:
        """What all clients share."""
        ...

    @property
    def pauses(self) -> Pauses:
        """The exports that are paused."""
        ...

    async def do(self, verb: str, asked: Mapping[str, Any]) -> ControlAnswer:
        """Do what an operator asks the other process for, about sessions of ours."""
        ...

    def leads(self, exports: Mapping[str, Any]) -> None:
        """Lead exports where the other process has led them (`gateway.upgrade.switched`)."""
        ...

    @property
    def listeners(self) -> list[Listener]:
        """What clients come by."""
        ...

    @property
    def clients(self) -> Mapping[str, tuple[Listener, Identity]]:
        """Who is connected, by their ids."""
        ...

    @property
    def drained(self) -> list[str]:
        """The listeners at which an operator lets nobody in, by their URIs."""
        ...

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client that another process has handed over."""
        ...

    def is_alone(self) -> None:
        """Nobody else serves any more: begin what waits for that."""
        ...

    def drain(self, *, now: bool) -> None:
        """End in good order, as after SIGTERM. `now`: sessions are not given time, whatever was said before;
        else they have what they were given by whoever told us to end, if anybody did.
        """
        ...


def listener_at(office: UpgradeOffice, door: Door) -> Listener | None:
    """Give the listener of a door; None: there is none."""
    there = (each for each in office.listeners if door_of(each.settings.uri) == door)
    return next(there, None)
