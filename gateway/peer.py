"""What is known of the process at the other end of an upstream connection: whether it can still carry out what
it was asked.

The end of a connection says nothing of that: a server may be at a WRITE long after. Only the end of the process
does; or its own word, where it is a home of a fleet (`gateway.fleet.led`). Whoever connects finds out what can
be known of it (`gateway.net.processes`); whoever has to wait for writes that may come late asks.
"""

from __future__ import annotations

from typing import Protocol


class Peer(Protocol):
    """A process, as far as it is known."""

    @property
    def provable(self) -> bool:
        """`gone` may come to be true."""
        ...

    def gone(self) -> bool:
        """Say whether it is proven that what was asked over the connection is not carried out any more. Once
        true, always true.
        """
        ...

    def kept(self) -> bool:
        """Say whether it has said that all is durable that it had acknowledged over the connection, which has
        ended. Once true, always true.
        """
        ...

    def serves(self, sock: Connection) -> None:
        """A link to it has been made. Who has ended while that is open is not the one that serves it."""
        ...


class Connection(Protocol):
    """What is needed of a link's socket."""

    def fileno(self) -> int:
        """Give its descriptor, -1 if it is closed."""
        ...


class _Unknown:
    provable = False

    def gone(self) -> bool:
        return False

    def kept(self) -> bool:
        return False

    def serves(self, sock: Connection) -> None:
        pass


UNKNOWN: Peer = _Unknown()
"""Somebody who may be anywhere."""
