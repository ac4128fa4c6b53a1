"""The requests of a connection that have no whole reply yet. A simple reply does not say how much data it has:
its request does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from gateway.trace.message import Requested

MAX_ASKED = 4096
"""Requests that are kept: as many as two servers' worth of the longest queue that any client has. The oldest is
forgotten, so a server that never answers costs no more."""


class AskedFor:
    """Requests by their cookies. Of several with one cookie the first is answered first: nobody can know."""

    def __init__(self, before: Iterable[tuple[int, Requested]] = ()) -> None:
        self._requests: OrderedDict[int, list[Requested]] = OrderedDict()
        self._count = 0
        for cookie, requested in before:
            self.add(cookie, requested)

    def __contains__(self, cookie: int) -> bool:
        return cookie in self._requests

    def add(self, cookie: int, requested: Requested) -> None:
        """Take a request."""
        self._requests.setdefault(cookie, []).append(requested)
        self._count += 1
        if self._count > MAX_ASKED:
            self.end(next(iter(self._requests)))

    def first(self, cookie: int) -> Requested | None:
        """Give the request that a reply with this cookie answers."""
        requests = self._requests.get(cookie)
        return requests[0] if requests else None

    def end(self, cookie: int) -> None:
        """Its reply is whole."""
        requests = self._requests.get(cookie)
        if requests is None:
            return
        self._count -= 1
        del requests[0]
        if not requests:
            del self._requests[cookie]
