"""One upstream of the configuration: how it is reached, and what has been learnt of it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

import trio

from gateway.net.dial import DialError, Dialler
from gateway.net.drive import RECEIVE_BYTES, Stream, close_stream, hang_up
from gateway.net.options import RelaySocket, tune
from gateway.net.processes import Processes
from gateway.peer import UNKNOWN, Peer
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Evidence, Quirk, catalogue, recognised
from gateway.upstream.allowance import Allowance
from gateway.upstream.coherence import Decision, decide
from gateway.upstream.examined import Examined
from gateway.upstream.ladder import Ladder
from gateway.upstream.mode import ONE_FOR_EACH, Mode
from gateway.upstream.places import (
    FIRST_BACK_OFF_SECONDS,
    MOST_BACK_OFF_SECONDS,
    GiveUp,
    Outage,
    Places,
    Try,
    Wait,
)
from gateway.uri import NbdUri
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport

if TYPE_CHECKING:
    from gateway.tls.credentials import Session  # costs nothing where there is no TLS
    from gateway.upstream.maker import Recipe  # these two are made of what is here
    from gateway.upstream.warm import Warm

Connect = Callable[[], Awaitable[trio.SocketStream]]


FAREWELL_SECONDS = 1
"""How long it may take to leave a server. ABORT has to be sent, and then the server has to hang up, or what it
still says is answered by a reset. (Not every one answers ABORT, Q-N5; all hang up.) Any server that runs does
that at once."""

QUEUED = (
    "probably it serves as many clients as it may (qemu-nbd one, unless --shared says more), and this one"
    " waits in its queue until another leaves"
)
"""What a silence before the greeting means."""

ONE_ALONE = (
    "it has taken one connection, and none after that: a server that serves a single one, as qemu-nbd"
    " without -t, ends with it"
)
"""What is said of a server that cannot be connected to for a second time."""

MAX_SAID = 1000
"""What has been said of how many exports is remembered: names are the clients' choice."""

LISTING_SECONDS = 2
"""How long a list of exports is good: `nbdinfo --list` and its like ask several times at once."""


class Unreachable(Refusal):
    """The upstream cannot be reached, or says nothing that can be understood. Of all that a client may be told
    that keeps the export from seeming not to exist, qemu and libnbd make the best sentence of ERR_SHUTDOWN: of
    ERR_PLATFORM they say that the option is not supported (docs/troubleshooting.md).
    """

    def __init__(self, text: str) -> None:
        super().__init__(Rep.ERR_SHUTDOWN, text)


class Silent(Unreachable):
    """The upstream has a connection, and says nothing."""


class Full(Unreachable):
    """The upstream has as many connections of ours as the configuration lets it have."""


class TlsRequired(Refusal):
    """The upstream says nothing before TLS. To a client that is a matter of policy: it may be over TLS itself,
    and cannot help it. Nor would `why`, which says how it is mended, be of use to it: the URI is ours.
    """

    def __init__(self, why: str) -> None:
        text = "the gateway's own server wants TLS, which the gateway does not use there"
        super().__init__(Rep.ERR_POLICY, text, why=why)


@dataclass(frozen=True, slots=True)
class WentDown:
    """Connecting has begun to fail."""

    why: str
    entirely: bool = True
    """No other place works either."""


@dataclass(frozen=True, slots=True)
class CameBack:
    """Connecting works again."""

    outage: Outage
    entirely: bool = True
    """No other place had worked."""


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A client was told that the upstream is down."""


@dataclass(frozen=True, slots=True)
class Unwell:
    """A health check has connected, and got no further."""

    why: str


@dataclass(frozen=True, slots=True)
class WellAgain:
    """A health check gets a greeting again."""


News = WentDown | CameBack | TurnedAway | Unwell | WellAgain


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection on which the server has begun to greet."""

    stream: trio.SocketStream
    peer: Peer
    said: bytes
    """The beginning of the greeting."""
    place: int = 0
    """To which of the server's places."""


async def leave(
    stream: Stream, say: Callable[[], Awaitable[object]] | None = None, *, silent: bool
) -> None:
    """Close a connection to a server: `say` what there is to say, and have it hang up; not if it is silent,
    and would only be waited for.
    """
    with trio.move_on_after(FAREWELL_SECONDS) as scope:
        scope.shield = True
        if say is not None:
            await say()
        if not silent:
            await hang_up(stream)
    await close_stream(stream)


class Place:
    """One of the connections that an upstream may have. Without a limiter, somebody else has it for this
    connection.
    """

    def __init__(self, places: trio.CapacityLimiter | None) -> None:
        self._limiter = places
        self.left = False
        """Another may have it by now."""

    def leave(self) -> None:
        """Let another have it, once."""
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter, self.left = None, True


class Connections:
    """The connections to one backend, of all servers that are over it."""

    def __init__(self, most: float = math.inf) -> None:
        self.limiter = trio.CapacityLimiter(most)
        """How many there may be is said by the server in force."""
        self.warm: set[Warm] = set()
        """Who keeps some ready."""

    def free(self) -> Place | None:
        """Take a place if there is one that nobody waits for."""
        place = Place(self.limiter)
        try:
            self.limiter.acquire_on_behalf_of_nowait(place)
        except trio.WouldBlock:
            return None
        return place

    async def given_up(self) -> Place | None:
        """Take a place that was taken by what is only kept ready, if there is such a one."""
        for warm in list(self.warm):
            await warm.give_way()
            if place := self.free():
                return place
        return None


class Server:
    """One `[upstream.NAME]`, or a server that an export was switched to. `gateway.upstream.maker` makes them.

    `connects` give a stream to it or raise `DialError`: one for each place that it has, in the order in which
    they are tried. `quirks` is "auto" or the names of those that are taken to apply. If it is `started_by_us`,
    one that ends before its greeting does so however long it is waited for.
    """

    def __init__(
        self,
        name: str,
        *connects: Connect,
        connect_seconds: float = 10,
        negotiate_seconds: float = 30,
        keepalive_seconds: int = 60,
        user_timeout_seconds: int = 60,
        quirks: str | tuple[str, ...] = "auto",
        trust_allocation: bool = False,
        canonical_names: bool = False,
        tls: Sequence[Callable[[], Session]] = (),
        disks: Hashable = None,
        same_storage: bool = False,
        max_connections: float = math.inf,
        connections: Connections | None = None,
        mode: Mode = ONE_FOR_EACH,
        chance: Callable[[], float] = random.random,
        keep_warm: int = 0,
        check_seconds: float = 0,
        peer_of: Callable[[trio.SocketStream], Peer] = lambda _stream: UNKNOWN,
        processes: Processes | None = None,
        started_by_us: bool = False,
    ) -> None:
        self.name = name
        self.keep_warm = keep_warm
        self.check_seconds = check_seconds
        """What `gateway.upstream.warm` does for it: so many connections ahead, a health check so often."""
        self.peer_of = peer_of
        """Says who is at the other end of a connection that has just been made."""
        self.processes = processes
        """What knows that, if it has to be watched for it."""
        self._started_by_us = started_by_us
        self.warm: Warm | None = None
        """Those connections, while somebody sees to them."""
        self.tried_at = -math.inf
        """When it was connected to last, with success or without."""
        self.chance = chance
        self.recipe: Recipe | None = None
        """What it was made of, if that was by `gateway.upstream.maker`."""
        self.disks: Hashable = self if disks is None else disks
        """Whose disks they are: servers of which this is equal lead to the same ones, however they are spoken
        to.
        """
        self.same_storage = same_storage
        """Connections may lead to different servers, of the same disks."""
        self.may_differ = len(connects) > 1 and not same_storage
        """Connections may lead to different servers, and for all that is known to different disks."""
        self.mode = mode
        """Over how many connections it serves, and what becomes of clients when they are lost."""
        self.trust_allocation = trust_allocation
        """base:allocation is believed whatever the server is."""
        self.canonical_names = canonical_names
        """What it has under two names is surely two disks."""
        self.tls = tls
        """Give the TLS session of a new connection, one for each place; none: it is spoken to in the clear."""
        self.negotiate_seconds = negotiate_seconds
        self._max_connections = max_connections
        self.connections = connections or Connections(max_connections)
        self._connects = connects
        self._places = Places(
            len(connects), patience_seconds=connect_seconds, chance=chance, stay=same_storage
        )
        self._changed = trio.Event()
        self.connect_seconds = connect_seconds
        self.patient = True
        """It is waited for through back-offs when it is down. False: who asks would rather know."""
        self.tell: Callable[[News], None] = lambda _news: None
        """Is told when it goes down and comes back."""
        self._keepalive_seconds = keepalive_seconds
        self._user_timeout_seconds = user_timeout_seconds
        self._quirks = quirks
        self.ladder = Ladder()
        """How much of the protocol it bears."""
        self.examined = Examined()
        """What an INFO has shown of it."""
        self._place_known = 0
        """The place that this is known of."""
        self._greeted = 0
        """How often it has begun to greet."""
        self.links: WeakSet[RelaySocket] = WeakSet()
        """The sockets of the links that it has served, as long as anybody has them."""
        self._listing: tuple[float, list[ListedExport] | Refusal] | None = None
        self._listing_lock = trio.Lock()
        self.repaired: Counter[str] = Counter()
        """Links on which each quirk was in force, by its name."""
        self._said: set[tuple[str, str]] = set()

    def decide(self, exports: Sequence[Export], repaired: Iterable[str]) -> Decision:
        """Decide over how many connections an export is served that is this on each of those that are open."""
        return decide(
            self.mode.wanted,
            exports,
            same_storage=self.same_storage,
            may_differ=self.may_differ,
            repaired=repaired,
        )

    def is_news(self, export: str, what: str) -> bool:
        """Say whether this is the first time that it is said of an export: every client would say it again."""
        if (export, what) in self._said:
            return False
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said.add((export, what))
        return True

    def come_into_force(self, tell: Callable[[News], None]) -> None:
        """Be the one that clients are led to. `tell` is told when it goes down and comes back."""
        self.tell = tell
        self.connections.limiter.total_tokens = self._max_connections

    @property
    def serves(self) -> bool:
        """A link to it is there, as far as is known."""
        return any(sock.fileno() >= 0 for sock in self.links)

    async def place(self, *, patient: bool = True, seconds: float | None = None) -> Place:
        """Take a place for a connection, as soon as there is one, within `seconds` (None: `connect_seconds`).
        Raises `Full`.
        """
        connections = self.connections
        place = connections.free() or await connections.given_up()
        if place is not None:
            return place
        if patient and self.patient:
            place = Place(connections.limiter)
            with trio.move_on_after(self.connect_seconds if seconds is None else seconds):
                await connections.limiter.acquire_on_behalf_of(place)
                return place
        most = f"max-connections = {connections.limiter.total_tokens:g}"
        raise Full(f"upstream {self.name!r} is in use: {most} lets it have no more connections")

    @property
    def down(self) -> bool:
        """It cannot be connected to, as far as is known."""
        return self._places.down

    @property
    def why_down(self) -> str:
        """Why, if it is."""
        return self._places.why if self._places.down else ""

    async def connect(
        self,
        *,
        patient: bool = True,
        for_client: bool = True,
        beside: bool = False,
        seconds: float | None = None,
        answering: Allowance | None = None,
    ) -> Reached:
        """Connect: at once, or as soon as it is up again, within `seconds` (None: `connect_seconds`). A
        server that closes the connection before it greets is down, too: so does a forwarder that has none
        behind it. The greeting is waited for as long as `answering` lasts (None: `negotiate_seconds`).

        If it is not `for_client`, nobody is turned away. `beside`: it is one more than those that clients
        have, or are about to get. While any of them serves, a failure says nothing of the server, and is
        nobody else's.

        Raises `Unreachable`.
        """
        if answering is None:
            answering = Allowance(self.negotiate_seconds)
        deadline = trio.current_time() + (self.connect_seconds if seconds is None else seconds)
        patient = patient and self.patient
        failures = 0
        while True:
            step = self._places.next_step(trio.current_time(), deadline, patient=patient)
            match step:
                case Try():
                    reached = await self._try(step, answering, beside=beside)
                    if isinstance(reached, Reached):
                        return reached
                    if reached is not None:
                        pause = min(FIRST_BACK_OFF_SECONDS * 2**failures, MOST_BACK_OFF_SECONDS)
                        failures += 1
                        if not patient or trio.current_time() + pause > deadline:
                            raise Unreachable(f"upstream {self.name!r} is unreachable: {reached}")
                        await trio.sleep(pause)
                case Wait():
                    with trio.move_on_at(step.until):
                        await self._changed.wait()
                case GiveUp():
                    if for_client:
                        self.tell(TurnedAway())
                    raise Unreachable(f"upstream {self.name!r} is unreachable: {step.why}")

    def try_soon(self) -> None:
        """An operator says that it is there: the next who connects tries."""
        self._places.try_soon(trio.current_time())

    async def _try(self, step: Try, answering: Allowance, *, beside: bool) -> Reached | str | None:
        """Connect to one place, or (None) learn that it is down, or (why) that it has no room for one more.
        Raises `Unreachable` where none of this is said.
        """
        places, why = self._places, ""
        self.tried_at = trio.current_time()
        try:
            with trio.fail_after(step.seconds):
                stream = await self._connects[step.place]()
            self._tune(stream)
            peer = self.peer_of(stream)
            try:
                said = await self._first_word(stream, answering)
            except BaseException as error:
                await leave(stream, silent=isinstance(error, Silent))
                raise
        except DialError as error:
            if not error.down and len(self._connects) == 1:
                places.abandoned(step)
                raise Unreachable(f"upstream {self.name!r} is unreachable: {error}") from None
            why = str(error)
        except trio.TooSlowError:
            if step.seconds < self.connect_seconds / len(self._connects) / 2:
                # That was our client's hurry: it proves nothing to others.
                places.abandoned(step, trio.current_time())
                return None
            which = "it" if len(self._connects) == 1 else f"uris[{step.place}]"
            why = f"{which} did not take a connection within {round(step.seconds, 1):g} s"
        except BaseException:
            places.abandoned(step)
            raise
        else:
            self._has_greeted(step)
            return Reached(stream, peer, said, step.place)
        finally:
            self._changed.set()
            self._changed = trio.Event()
        if beside and self.serves:
            places.abandoned(step)
            return why
        if self._greeted == 1:
            why = f"{why} ({ONE_ALONE})"
        if step.place == self._place_known:
            self._seen_down()
        if places.failed(step, trio.current_time(), why):
            self.tell(WentDown(why, entirely=places.down))
        return None

    async def _first_word(self, stream: trio.SocketStream, answering: Allowance) -> bytes:
        """Give the beginning of the greeting. Raises `DialError`, or `Silent`."""
        why = "it closed the connection before its greeting"
        try:
            with answering.spend():
                said = bytes(await stream.receive_some(RECEIVE_BYTES))
        except trio.TooSlowError:
            # The kernel connects whom the program has not accepted yet (listen(2)).
            text = f"has connected and not greeted for {answering.seconds:g} s: {QUEUED}"
            raise Silent(f"upstream {self.name!r} {text}") from None
        except trio.BrokenResourceError as error:
            said = b""
            why = f"the connection broke before its greeting: {error.__cause__ or error}"
        if not said:
            raise DialError(why, down=not self._started_by_us)
        return said

    def _seen_down(self) -> None:
        self.ladder.seen_down()
        self.examined.forget()

    def _has_greeted(self, step: Try) -> None:
        """A connection has come about."""
        places = self._places
        was_down = places.down
        outage = places.succeeded(step, trio.current_time())
        self._greeted += 1
        if step.place != self._place_known:
            self._place_known = step.place
            self._seen_down()  # as far as it is concerned: this is another one
        if outage is not None:
            self.tell(CameBack(outage, entirely=was_down))

    def _tune(self, stream: trio.SocketStream) -> None:
        with suppress(OSError):  # it may have gone already, which the greeting will tell
            tune(
                stream.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
                keepalive_seconds=self._keepalive_seconds,
                user_timeout_seconds=self._user_timeout_seconds,
            )

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
        time, and within `LISTING_SECONDS` of that. That there was no server is for those alone who have waited
        for it. Raises `Refusal` if the upstream will not say.
        """
        came = trio.current_time()
        async with self._listing_lock:
            if self._listing is None or came > self._listing[0]:
                told: list[ListedExport] | Refusal
                try:
                    told = await ask(self)
                except Refusal as refusal:
                    told = refusal
                good_for = 0 if isinstance(told, Unreachable) else LISTING_SECONDS
                self._listing = (trio.current_time() + good_for, told)
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
    tls = []
    if uri.tls:
        from gateway.tls.errors import CredentialsError
        from gateway.tls.server_uri import wanted_of

        try:
            tls = [wanted_of(uri).load().session]
        except CredentialsError as error:
            raise Unreachable(f"{uri}: {error}") from None
    server = Server(str(uri), Dialler(uri).connect, quirks=quirks, tls=tls)
    server.patient = False
    if seconds is not None:
        server.connect_seconds = server.negotiate_seconds = seconds
    return server
