"""What the workers of a supervisor are told: the doors, and what is in force."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

from gateway.app.standing import Listeners
from gateway.config import Config
from gateway.handover.homes import door_of
from gateway.handover.message import ChannelMessage
from gateway.net.listen import Listener
from gateway.workers.homes import Table, said_of
from gateway.workers.places import MOST_LISTENERS, Places, shared_memory


class InForce:
    """The configuration that all workers serve, its table of homes, and the listeners that they share."""

    def __init__(self, config: Config, table: Table) -> None:
        self.config = config
        self.table = table
        self.doors = Listeners([])
        self._rows: dict[tuple[object, ...], int] = {}
        self._memory = shared_memory()
        self.places = Places(self._memory)
        """How many clients each listener has."""

    async def aclose(self) -> None:
        """Close all listeners."""
        await self.doors.aclose()
        os.close(self._memory)

    def brief(self, worker: int, workers: int) -> Iterator[ChannelMessage]:
        """Give what a new worker is told: the doors, and what it serves. Raises `OSError`."""
        for listener in self.doors.listeners:
            yield from self.door(listener)
        said = {"worker": worker, "workers": workers, "homes": said_of(self.table)}
        config = in_memory(self.config)
        try:
            memory = os.dup(self._memory)
        except OSError:
            os.close(config)
            raise
        yield ChannelMessage("serve", said, descriptors=(config, memory))

    def door(self, listener: Listener) -> Iterator[ChannelMessage]:
        """Give what a worker is told of a listener. Raises `OSError`."""
        door = door_of(listener.settings.uri)
        row = self._rows.setdefault(door, len(self._rows) % MOST_LISTENERS)
        said = {"door": list(door), "port": listener.uri.port or 0, "place": row}
        for each in listener.sockets:
            yield ChannelMessage("door", said, descriptors=(os.dup(each.socket.fileno()),))


def in_memory(config: Config) -> int:
    """Put a configuration into a file in memory, and give its descriptor."""
    descriptor = os.memfd_create("nbd-gateway-configuration", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        pickle.dump(config, file)
    return descriptor
