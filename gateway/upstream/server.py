"""One upstream of the configuration: how it is reached, and what has been learnt of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.net.dial import DialError, dial
from gateway.net.options import tune
from gateway.protocol.errors import Refusal
from gateway.quirks import Evidence, Quirk, catalogue, recognised
from gateway.uri import NbdUri
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport

if TYPE_CHECKING:
    from gateway.tls.credentials import Session  # costs nothing where there is no TLS

Connect = Callable[[], Awaitable[trio.SocketStream]]


class Rung(IntEnum):
    """How much of the protocol an old server bears: the rungs of the ladder, from the top."""

    FULL = 0
    """EXTENDED_HEADERS, STRUCTURED_REPLY, meta contexts, INFO, GO."""
    STRUCTURED = 1
    """STRUCTURED_REPLY, meta contexts, INFO, GO."""
    SIMPLE = 2
    """INFO, GO."""
    EXPORT_NAME = 3
    """EXPORT_NAME alone: servers before 2016 lose their way after any other option (Q-N8, Q-S23)."""


RUNG_SECONDS = 300
"""How long a lower rung is remembered: a client need not pay for the ladder that one before it climbed down,
but the server behind an address changes."""

LISTING_SECONDS = 2
"""How long a list of exports is good: `nbdinfo --list` and its like ask several times at once."""


class Unreachable(Refusal):
    """The upstream cannot be reached, or says nothing that can be understood."""

    def __init__(self, text: str) -> None:
        super().__init__(Rep.ERR_PLATFORM, text)


class TlsRequired(Refusal):
    """The upstream says nothing before TLS. To a client that is a matter of policy: it may be over TLS itself,
    and cannot help it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(Rep.ERR_POLICY, text)


class Server:
    """One `[upstream.NAME]`.

    `connect` gives a stream to it or raises `DialError`; `quirks` is "auto" or the names of those that are
    taken to apply.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        *,
        connect_seconds: float = 10,
        negotiate_seconds: float = 30,
        keepalive_seconds: int = 60,
        user_timeout_seconds: int = 60,
        quirks: str | tuple[str, ...] = "auto",
        trust_allocation: bool = False,
        tls: Callable[[], Session] | None = None,
        disks: object = None,
    ) -> None:
        self.name = name
        self.disks = self if disks is None else disks
        """Whose disks they are: servers that have this in common lead to the same ones (a reload has changed
        how they are spoken to).
        """
        self.trust_allocation = trust_allocation
        """base:allocation is believed whatever the server is."""
        self.tls = tls
        """Gives the TLS session of a new connection; None: it is spoken to in the clear."""
        self.negotiate_seconds = negotiate_seconds
        self._connect = connect
        self.connect_seconds = connect_seconds
        self._keepalive_seconds = keepalive_seconds
        self._user_timeout_seconds = user_timeout_seconds
        self._quirks = quirks
        self._rung = Rung.FULL
        self._rung_until = 0.0
        self._listing: tuple[float, list[ListedExport] | Refusal] | None = None
        self._listing_lock = trio.Lock()
        self.repaired: Counter[str] = Counter()
        """Links on which each quirk was in force, by its name."""

    async def connect(self) -> trio.SocketStream:
        """Connect. Raises `Unreachable`."""
        try:
            with trio.fail_after(self.connect_seconds):
                stream = await self._connect()
        except DialError as error:
            raise Unreachable(f"upstream {self.name!r} is unreachable: {error}") from None
        except trio.TooSlowError:
            text = f"did not take a connection within {self.connect_seconds:g} s"
            raise Unreachable(f"upstream {self.name!r} is unreachable: it {text}") from None
        with suppress(OSError):  # it may have gone already, which the greeting will tell
            tune(
                stream.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
                keepalive_seconds=self._keepalive_seconds,
                user_timeout_seconds=self._user_timeout_seconds,
            )
        return stream

    @property
    def rung(self) -> Rung:
        """Where on the ladder to begin."""
        return self._rung if trio.current_time() < self._rung_until else Rung.FULL

    def remember(self, rung: Rung) -> None:
        """Begin there next time."""
        self._rung = rung
        self._rung_until = trio.current_time() + RUNG_SECONDS

    def count_repairs(self, quirks: Iterable[str]) -> list[Quirk]:
        """Count the quirks of a link that serves a client; give those that are in force for the first time."""
        names = list(quirks)
        new = [catalogue()[name] for name in names if name not in self.repaired]
        self.repaired.update(names)
        return new

    def quirks(self, evidence: Evidence) -> list[Quirk]:
        """Give the quirks that are in force on a link that showed this evidence."""
        if isinstance(self._quirks, str):
            return recognised(evidence)
        return [catalogue()[name] for name in self._quirks]

    async def listing(
        self, ask: Callable[[Server], Awaitable[list[ListedExport]]]
    ) -> list[ListedExport]:
        """Give the upstream's exports, as `ask` finds them out: once for all who want to know at the same
        time. Raises `Refusal` if the upstream will not say.
        """
        async with self._listing_lock:
            if self._listing is None or trio.current_time() > self._listing[0]:
                told: list[ListedExport] | Refusal
                try:
                    told = await ask(self)
                except Refusal as refusal:
                    told = refusal
                self._listing = (trio.current_time() + LISTING_SECONDS, told)
            answer = self._listing[1]
        if isinstance(answer, Refusal):
            raise answer.with_traceback(None)  # which would grow with each who is told
        return answer


def server_at(
    uri: NbdUri, *, seconds: float | None = None, quirks: str | tuple[str, ...] = "auto"
) -> Server:
    """Give the server at a URI, for one that needs no configuration: what it says of TLS is all there is.

    `seconds` is how long connecting, and each answer, may take. Raises `Unreachable` if the certificates or
    keys that the URI names cannot be used.
    """
    tls = None
    if uri.tls:
        from gateway.tls.errors import CredentialsError
        from gateway.tls.server_uri import wanted_of

        try:
            tls = wanted_of(uri).load().session
        except CredentialsError as error:
            raise Unreachable(f"{uri}: {error}") from None
    server = Server(str(uri), partial(dial, uri), quirks=quirks, tls=tls)
    if seconds is not None:
        server.connect_seconds = server.negotiate_seconds = seconds
    return server
