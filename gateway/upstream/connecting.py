"""Connects to a server: to the first of its places that works, after back-offs.

`gateway.upstream.circuits` says which place is next, and when. Here it is dialled, and heard until it greets.
Whoever has to know is told what came of it: those who wait for the same, the log, and those for whom the server
may be another one now.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import trio

from gateway.net.dial import DialError
from gateway.net.drive import RECEIVE_BYTES, Stream
from gateway.net.options import has_said, tune
from gateway.upstream.allowance import Allowance
from gateway.upstream.circuits import (
    FIRST_BACK_OFF_SECONDS,
    MOST_BACK_OFF_SECONDS,
    Circuits,
    GiveUp,
    Try,
    Wait,
)
from gateway.upstream.errors import Silent, Unreachable
from gateway.upstream.handshake import Reached, leave
from gateway.upstream.news import CameBack, News, TurnedAway, WentDown
from gateway.upstream.recipe import Recipe

QUEUED = (
    "probably it serves as many clients as it may (qemu-nbd one, unless --shared says more), and this one"
    " waits in its queue until another leaves"
)
"""What a silence before the greeting means."""

NOT_ACCEPTED = (
    "perhaps the program does not take the socket that it has as descriptor 3 (systemd's socket activation,"
    " LISTEN_FDS), or it is not ready yet"
)
"""What it means of a server that we have started: the socket is ours, and who connects to it gets that far."""

ONE_ALONE = (
    "it has taken one connection, and none after that: a server that serves a single one, as qemu-nbd"
    " without -t, ends with it"
)
"""What is said of a server that cannot be connected to a second time."""


DISABLED = "an operator has disabled it"


class Connector:
    """Connects to the server of a recipe. `chance` gives numbers from 0 to 1, so that many do not come at once.
    `tell` is told when the server goes down and comes back. `serves` says whether a link to it is there, as far
    as is known. `another` is called when what was learnt of the server has to be forgotten: it was seen down,
    or another place has greeted.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        chance: Callable[[], float],
        tell: Callable[[News], None],
        serves: Callable[[], bool],
        another: Callable[[], None],
    ) -> None:
        self.connects = recipe.connects
        """Each gives a stream to a place or raises `DialError`, in the order in which places are tried."""
        self.peer_of = recipe.peer_of
        """Says who is at the other end of a connection that has just been made."""
        self.patient = True
        """Whoever asks waits through back-offs when it is down. False: rather knows at once."""
        self.disabled = False
        """An operator lets nobody connect to it."""
        self.tried_at = -math.inf
        """When we last tried to connect to it, with success or without."""
        self._recipe = recipe
        self._settings = recipe.settings
        self._name = recipe.name
        self._tell = tell
        self._serves = serves
        self._another = another
        self._circuits = Circuits(
            len(self.connects),
            patience_seconds=self._settings.connect_seconds,
            chance=chance,
            stay=self._settings.same_storage,
        )
        self._changed = trio.Event()
        self._place_known = 0
        """The place whose server has shown what it bears."""
        self._greeted = 0
        """How often it has begun to greet."""

    @property
    def down(self) -> bool:
        """It cannot be connected to, as far as is known."""
        return self.disabled or self._circuits.down

    @property
    def why_down(self) -> str:
        """Why, if it is."""
        if self.disabled:
            return DISABLED
        return self._circuits.why if self._circuits.down else ""

    async def connect(
        self,
        *,
        patient: bool = True,
        for_client: bool = True,
        beside: bool = False,
        seconds: float | None = None,
        answering: Allowance | None = None,
    ) -> Reached:
        """Connect: at once, or as soon as it is up again, within `seconds` (None: `connect_seconds`). A server
        that closes the connection before it greets is down, too: a forwarder that has no server behind it does
        so. The greeting may take as long as `answering` lasts (None: `negotiate_seconds`). If it is not
        `for_client`, nobody is turned away. `beside`: it is one more than those that clients have, or are about
        to get; as long as any of them serves, a failure says nothing of the server, and concerns nobody else.
        Raises `Unreachable`.
        """
        if answering is None:
            answering = Allowance(self._settings.negotiate_seconds)
        deadline = trio.current_time() + (
            self._settings.connect_seconds if seconds is None else seconds
        )
        patient = patient and self.patient
        failures = 0
        while True:
            if self.disabled:
                raise Unreachable(f"upstream {self._name!r} is unreachable: {DISABLED}")
            step = self._circuits.next_step(trio.current_time(), deadline, patient=patient)
            match step:
                case Try():
                    reached = await self._try(step, answering, beside=beside)
                    if isinstance(reached, Reached):
                        return reached
                    if reached is not None:
                        pause = min(FIRST_BACK_OFF_SECONDS * 2**failures, MOST_BACK_OFF_SECONDS)
                        failures += 1
                        if not patient or trio.current_time() + pause > deadline:
                            raise Unreachable(f"upstream {self._name!r} is unreachable: {reached}")
                        await trio.sleep(pause)
                case Wait():
                    with trio.move_on_at(step.until):
                        await self._changed.wait()
                case GiveUp():
                    if for_client:
                        self._tell(TurnedAway())
                    raise Unreachable(f"upstream {self._name!r} is unreachable: {step.why}")

    def try_soon(self) -> None:
        """An operator says that it is there: the next who connects tries."""
        self._circuits.try_soon(trio.current_time())

    async def _try(self, step: Try, answering: Allowance, *, beside: bool) -> Reached | str | None:
        """Connect to one place; or give None if it is down, or the reason if it has no room for one more
        connection. Raises `Unreachable` if none of this can be said.
        """
        circuits, why = self._circuits, ""
        self.tried_at = trio.current_time()
        try:
            with trio.fail_after(step.seconds):
                stream = await self.connects[step.place]()
            self._tune(stream)
            peer = self.peer_of(stream)
            try:
                said = await self._first_word(stream, answering)
            except BaseException:
                # Nothing was read. One that is silent may not have accepted us: we would only wait.
                await leave(stream, silent=not has_said(stream.socket))
                raise
        except DialError as error:
            if not error.down and len(self.connects) == 1:
                circuits.abandoned(step)
                raise Unreachable(f"upstream {self._name!r} is unreachable: {error}") from None
            why = str(error)
        except trio.TooSlowError:
            if step.seconds < self._settings.connect_seconds / len(self.connects) / 2:
                # That was our client's hurry: it proves nothing to others.
                circuits.abandoned(step, trio.current_time())
                return None
            which = "it" if len(self.connects) == 1 else f"uris[{step.place}]"
            why = f"{which} did not take a connection within {round(step.seconds, 1):g} s"
        except BaseException:
            circuits.abandoned(step)
            raise
        else:
            self._has_greeted(step)
            return Reached(stream, peer, said, step.place)
        finally:
            self._changed.set()
            self._changed = trio.Event()
        if beside and self._serves():
            circuits.abandoned(step)
            return why
        if self._greeted == 1:
            why = f"{why} ({ONE_ALONE})"
        if step.place == self._place_known:
            self._another()
        if circuits.failed(step, trio.current_time(), why):
            self._tell(WentDown(why, entirely=circuits.down))
        return None

    async def _first_word(self, stream: Stream, answering: Allowance) -> bytes:
        """Give the beginning of the greeting. Raises `DialError`, or `Silent`."""
        why = "it closed the connection before its greeting"
        try:
            with answering.spend():
                said = bytes(await stream.receive_some(RECEIVE_BYTES))
        except trio.TooSlowError:
            # The kernel connects whom the program has not accepted yet (listen(2)).
            text = f"has connected and not greeted for {answering.seconds:g} s: {QUEUED}"
            if self._recipe.started_by_us and not self._greeted:
                text = (
                    f"was started and has not greeted for {answering.seconds:g} s: {NOT_ACCEPTED}"
                )
            raise Silent(f"upstream {self._name!r} {text}") from None
        except trio.BrokenResourceError as error:
            said = b""
            why = f"the connection broke before its greeting: {error.__cause__ or error}"
        if not said:
            raise DialError(why, down=not self._recipe.started_by_us)
        return said

    def _has_greeted(self, step: Try) -> None:
        """A connection has come about."""
        circuits = self._circuits
        was_down = circuits.down
        outage = circuits.succeeded(step, trio.current_time())
        self._greeted += 1
        if step.place != self._place_known:
            self._place_known = step.place
            self._another()  # as far as it is concerned: this is another one
        if outage is not None:
            self._tell(CameBack(outage, entirely=was_down))

    def _tune(self, stream: Stream) -> None:
        with suppress(OSError):  # it may have gone already, which the greeting will tell
            tune(
                stream.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
                keepalive_seconds=self._settings.keepalive_seconds,
                user_timeout_seconds=self._settings.user_timeout_seconds,
            )
