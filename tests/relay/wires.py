"""A session between two socket pairs, without Trio: whoever tests has both far ends, and is the hub."""

from __future__ import annotations

import select
import socket
from random import Random

from gateway.net.options import RelaySocket
from gateway.relay.lane import BufferPool, Segment
from gateway.relay.scan.traffic import Traffic
from gateway.relay.session import Session
from gateway.throttle import Doors


class CountingPool(BufferPool):
    """Knows how many of its buffers are out."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def take(self) -> Segment:
        self.taken += 1
        return super().take()

    def give_back(self, segment: Segment) -> None:
        self.taken -= 1
        super().give_back(segment)


class Wires:
    """`client` and `upstream` are the far ends, non-blocking. Once the session has begun, `step` does what the
    hub would do.
    """

    def __init__(
        self, traffic: Traffic, pool: BufferPool | None = None, doors: Doors | None = None
    ) -> None:
        self.client, near_client = socket.socketpair()
        near_link, self.upstream = socket.socketpair()
        self._near = (near_client, near_link)
        for end in (self.client, *self._near, self.upstream):
            end.setblocking(False)
        self._epoll = select.epoll()
        for end in self._near:
            self._epoll.register(end, select.EPOLLET)
        self.session = Session(
            near_client,
            near_link,
            traffic,
            pool or BufferPool(),
            self._watch,
            doors or Doors(lambda: None),
        )
        self._ready = {
            near_client.fileno(): self.session.client_ready,
            near_link.fileno(): self.session.link_ready,
        }

    def _watch(self, sock: RelaySocket, events: int) -> None:
        self._epoll.modify(sock, events or select.EPOLLET)  # as `Hub._watch`

    def relink(self, traffic: Traffic) -> None:
        """Exchange the link of a session that is held and quiet, as `Hub.relink` does; the far end of the old
        one is the caller's to close.
        """
        near_client, old = self._near
        near_link, self.upstream = socket.socketpair()
        for end in (near_link, self.upstream):
            end.setblocking(False)
        self._epoll.unregister(old)
        del self._ready[old.fileno()]
        self._epoll.register(near_link, select.EPOLLET)
        self._ready[near_link.fileno()] = self.session.link_ready
        self._near = near_client, near_link
        self.session.relink(near_link, traffic)
        old.close()

    def step(self, random: Random | None = None) -> bool:
        """Call the session for what its sockets are ready for, in any order; say whether that was anything."""
        events = self._epoll.poll(0)
        if random:
            random.shuffle(events)
        for descriptor, event in events:
            self._ready[descriptor](event)
        if self.session.bug is not None:
            raise self.session.bug
        return bool(events)

    @property
    def open(self) -> bool:
        """The near ends have not been closed."""
        return not self._epoll.closed

    def hang_up(self) -> None:
        """Close the near ends, as the session's owner does when it has ended."""
        self.session.close()
        self.session.traffic.locks.tell()
        self._epoll.close()
        for end in self._near:
            end.close()

    def close(self) -> None:
        """Close everything."""
        if self.open:
            self.hang_up()
        self.client.close()
        self.upstream.close()
