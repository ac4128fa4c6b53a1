"""A session between two socket pairs, without Trio: whoever tests has both far ends, and is the hub."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Collection
from random import Random

from gateway.hub.crowd import AGAIN
from gateway.hub.lane import BufferPool, Segment
from gateway.hub.session import Session
from gateway.net.options import RelaySocket
from gateway.scan.traffic import Traffic
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


class Covered(socket.socket):
    """A near end for which a pump only scans, as for a `TlsSocket`: it is no plain socket."""


class Wires:
    """`client` and `upstream` are the far ends, non-blocking. Once the session has begun, `step` does what the
    hub would do.
    """

    def __init__(
        self,
        traffic: Traffic,
        pool: BufferPool | None = None,
        doors: Doors | None = None,
        covered: Collection[str] = (),
    ) -> None:
        """`covered`: which near ends are, "client" or "link"."""
        self.client, near_client = socket.socketpair()
        near_link, self.upstream = socket.socketpair()
        if "client" in covered:
            near_client = Covered(fileno=near_client.detach())
        if "link" in covered:
            near_link = Covered(fileno=near_link.detach())
        self._near: tuple[RelaySocket, ...] = (near_client, near_link)
        for end in (self.client, near_client, near_link, self.upstream):
            end.setblocking(False)
        self._epoll = select.epoll()
        for each in self._near:
            self._epoll.register(each.fileno(), select.EPOLLET)
        self.pool = pool or BufferPool()
        self._again: set[int] = set()
        self.session = Session(
            near_client,
            near_link,
            traffic,
            self.pool,
            self.watch,
            self.again,
            doors or Doors(lambda: None),
        )
        self._ready: dict[int, Callable[[int], int]] = {
            near_client.fileno(): self.session.client_ready,
            near_link.fileno(): self.session.link_ready,
        }

    # What a `Hub` has, for others that want to be in it.

    def watch(self, sock: RelaySocket, events: int) -> None:
        self._epoll.modify(sock.fileno(), events or select.EPOLLET)

    def again(self, sock: RelaySocket) -> None:
        self._again.add(sock.fileno())

    def enter(self, sock: RelaySocket, ready: Callable[[int], int], _whose: object = None) -> None:
        self._epoll.register(sock.fileno(), select.EPOLLET)
        self._ready[sock.fileno()] = ready

    def leave(self, sock: RelaySocket) -> None:
        self._epoll.unregister(sock.fileno())
        del self._ready[sock.fileno()]
        self._again.discard(sock.fileno())

    def part_from_link(self) -> None:
        """Close the near end of the link: the session goes on without one."""
        near_client, old = self._near
        self.leave(old)
        self._near = (near_client,)
        _close(old)

    def relink(self, traffic: Traffic) -> None:
        """Exchange the link of a session that is held and quiet, as `Hub.relink` does; the far end of the old
        one is the caller's to close.
        """
        _client, old = self._near
        near_link, self.upstream = socket.socketpair()
        for end in (near_link, self.upstream):
            end.setblocking(False)
        self.leave(old)
        self.relink_to(near_link, traffic)
        _close(old)

    def relink_to(self, link: RelaySocket, traffic: Traffic) -> None:
        """The same with a link that is there, in place of one that has left."""
        self.enter(link, self.session.link_ready)
        self._near = self._near[0], link
        self.session.relink(link, traffic)

    def step(self, random: Random | None = None) -> bool:
        """Call the session for what its sockets are ready for, in any order; say whether that was anything."""
        # Not in the order of a set: that is by the descriptors' numbers, and no two sessions have the same.
        again = {descriptor: AGAIN for descriptor in self._ready if descriptor in self._again}
        self._again.clear()
        events = list({**again, **dict(self._epoll.poll(0))}.items())
        if random:
            random.shuffle(events)
        for descriptor, event in events:
            if ready := self._ready.get(descriptor):  # else it has gone in this very round
                ready(event)
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
            _close(end)

    def close(self) -> None:
        """Close everything."""
        if self.open:
            self.hang_up()
        self.client.close()
        self.upstream.close()


def _close(sock: RelaySocket) -> None:
    assert isinstance(sock, socket.socket)
    sock.close()
