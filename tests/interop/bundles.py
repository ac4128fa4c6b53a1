"""Upstreams with `connections`, and how many of them a server really has."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .processes import wait_until
from .servers import Upstream


def keys(upstream: Upstream, connections: int | str, *more: str) -> str:
    """The keys of an upstream with so many connections."""
    value = connections if isinstance(connections, int) else f'"{connections}"'
    return "\n".join((f'uri = "{upstream.uri}"', f"connections = {value}", *more))


def connections(upstream: Upstream) -> int:
    """How many connections the server has accepted, from the kernel's table."""
    path = parse_qs(urlsplit(upstream.uri).query)["socket"][0]
    rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
    # St is 3 for one that is connected and accepted, 2 in the queue; the listening one has 1.
    return sum(row[7:] == [path] and row[5] == "03" for row in rows)


def wait_for_connections(upstream: Upstream, count: int, what: str) -> None:
    """Wait until the server has just so many."""
    wait_until(lambda: connections(upstream) == count, f"there are {count} connections: {what}")


# What nbdkit's log filter says: the connection, the request's name, and "..." when it has come to its end.
_REQUEST = re.compile(r" connection=(\d+) (\.\.\.)?(\w+) id=(\d+)")


class Requests:
    """What has reached an nbdkit with `--filter=log`, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._skip = 0

    def forget(self) -> None:
        """Begin here."""
        self._skip = len(self._lines())

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def events(self) -> list[tuple[int, str]]:
        """Give (connection, name) of what has begun; for what has ended the name is "...Name"."""
        found = map(_REQUEST.search, self._lines()[self._skip :])
        return [(int(each[1]), (each[2] or "") + each[3]) for each in found if each]

    def names(self) -> list[str]:
        """The names alone."""
        return [name for _, name in self.events()]

    def connections(self, name: str) -> set[int]:
        """Give the connections over which such requests came."""
        return {connection for connection, each in self.events() if each == name}
