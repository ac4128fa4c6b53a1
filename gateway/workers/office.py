"""What a worker asks of the gateway that it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from gateway.admin.control import ControlAnswer
from gateway.config import Config
from gateway.handover.given import Door, Given
from gateway.net.listen import Listener
from gateway.upstream.server import Server


class WorkerOffice(Protocol):
    """That gateway, with its doors and its clients."""

    def begin_to_accept(self) -> None:
        """Take clients from now on."""

    def take(self, listener: Listener, stream: trio.SocketStream, given: Given) -> None:
        """Serve a client that another worker has handed over."""

    def listener_at(self, door: Door) -> Listener | None:
        """Give the listener at a door."""

    def drain(self, seconds: float = 0) -> None:
        """End in good order, and let sessions go on for so many seconds before."""

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers of the configuration, by their names."""

    @property
    def ends(self) -> bool:
        """Nothing new is begun."""

    async def reload_to(
        self, config: Config, agreed: Callable[[], Awaitable[bool]]
    ) -> ControlAnswer:
        """Go over to another configuration, if nothing is in the way here and it is `agreed`."""

    def beside(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Do something beside the clients."""
