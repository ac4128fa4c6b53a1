"""The listening sockets that the supervisor has opened, as a worker is given them; and who is there.

They come over the channel, before the first configuration and before each that has new ones. How many clients a
listener has is counted in all workers together (`gateway.workers.places`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import replace

import trio

from gateway.config import Listen
from gateway.handover.given import Door
from gateway.handover.homes import door_of
from gateway.handover.message import ChannelMessage
from gateway.net.listen import Listener, ListenError
from gateway.workers.places import Places


class GivenDoors:
    """Those that were given; who opens one takes it."""

    def __init__(self) -> None:
        self._places: Places
        self._rows: dict[Door, int] = {}
        """Of those `places`."""
        self._there: dict[Door, list[tuple[socket.socket, int]]] = {}

    def add(self, message: ChannelMessage) -> None:
        """Take one that is given."""
        door = tuple(message["door"])
        [descriptor] = message.descriptors
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        self._rows[door] = message["place"]
        self._there.setdefault(door, []).append((sock, message["port"]))

    async def open(self, settings: Listen) -> Listener:
        """Give the listener that the supervisor has opened. Raises `ListenError`."""
        there = self._there.pop(door_of(settings.uri), None)
        if there is None:
            raise ListenError(f"the supervisor has not opened {settings.uri}")
        sockets = [
            trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock, _port in there
        ]
        uri = replace(settings.uri, port=there[0][1] or None)
        return Listener(settings, uri, sockets, keeps_file=True)

    async def open_all(self, all_: Iterable[Listen], listeners: list[Listener]) -> None:
        """Add all listeners of a configuration. Raises `ListenError`."""
        for settings in all_:
            listeners.append(await self.open(settings))

    def forget(self) -> None:
        """Close those of a reload that came to nothing: else their addresses stay in use."""
        for there in self._there.values():
            for sock, _port in there:
                sock.close()
        self._there.clear()

    # --- Who is there

    def count_in(self, descriptor: int) -> None:
        """Count clients in this memory, which all workers have."""
        self._places = Places(descriptor)
        os.close(descriptor)

    def count(self, listener: Listener, worker: int, number: int) -> None:
        """Count a client of a worker at a listener (1), or count it no more (-1)."""
        self._places.add(self._rows[door_of(listener.settings.uri)], worker, number)

    def there(self, listener: Listener) -> int:
        """Give how many clients a listener has in all workers."""
        return self._places.there(self._rows[door_of(listener.settings.uri)])
