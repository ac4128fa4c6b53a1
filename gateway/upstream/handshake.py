"""A connection in its handshake: the greeting, TLS, and one option after the other.

Before the first option but STARTTLS it is good for any client: `gateway.upstream.greeting` brings it so far.
What else is asked, and on what terms, is for `gateway.upstream.option_phase`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.net.drive import Conversation, PeerClosed, Stream, close_stream, hang_up
from gateway.peer import Peer
from gateway.protocol.client_role import (
    Answered,
    ClientNegotiation,
    Event,
    Greeted,
    Refused,
    Style,
)
from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import (
    Died,
    LostTheWay,
    NotSecured,
    NotSecuredYet,
    Silent,
    Unreachable,
)
from gateway.upstream.slots import Slot
from gateway.wire.errors import WireError
from gateway.wire.framing import SIMPLE

if TYPE_CHECKING:
    from gateway.tls.session import TlsSession  # costs nothing where there is no TLS

FAREWELL_SECONDS = 1
"""How long it may take to leave a server. ABORT has to be sent, and then the server has to hang up, or what it
still says is answered by a reset. (Not every one answers ABORT, Q-N5; all hang up.) Any server that runs does
that at once."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection on which the server has begun to greet."""

    stream: Stream
    peer: Peer
    said: bytes
    """The beginning of the greeting."""
    place: int = 0
    """Which of the server's places it leads to."""


async def leave(
    stream: Stream, say: Callable[[], Awaitable[object]] | None = None, *, silent: bool
) -> None:
    """Close a connection to a server: `say` what there is to say, and let it hang up; except if it is silent,
    for we would only wait.
    """
    with trio.move_on_after(FAREWELL_SECONDS) as scope:
        scope.shield = True
        if say is not None:
            await say()
        if not silent:
            await hang_up(stream)
    await close_stream(stream)


class Handshake:
    """The handshake with the server of this name, on a connection in a slot. `era`: the state of the server
    that it belongs to, as the server's ladder counts them. `allowance`: how long the server may still take, for
    all that it is asked.
    """

    def __init__(
        self, server: str, reached: Reached, slot: Slot, era: int, allowance: Allowance
    ) -> None:
        self.slot = slot
        self.peer = reached.peer
        self.era = era
        self.allowance = allowance
        self.core = ClientNegotiation()
        """What says what is to be asked, and reads the answers."""
        self.core.receive(reached.said)
        self.greeting = Greeted(Style.FIXED_NEWSTYLE)
        self.asked = 0
        """How many options were sent, and one for the greeting."""
        self.secure = False
        """It is over TLS."""
        self._server = server
        self._talk: Conversation[Event] = Conversation(reached.stream, self.core)
        self._shaking_hands = (
            False  # for TLS: nothing else may be said, nor ever can be if that fails
        )
        self._silent = False  # the server

    @property
    def stream(self) -> Stream:
        """What goes over it."""
        return self._talk.stream

    async def next_event(self) -> Event:
        """Give the server's next event. Raises `LostTheWay`, or `Unreachable` if nothing comes."""
        began = trio.current_time()
        self.asked += 1
        try:
            return await self._talk.next_event(self.allowance.spend)
        except (PeerClosed, WireError) as error:
            raise LostTheWay(str(error), closed=isinstance(error, PeerClosed)) from None
        except trio.TooSlowError:
            self._silent = True
            waited, all_seconds = trio.current_time() - began, self.allowance.seconds
            text = f"has said nothing for {round(waited, 1):g} s"
            if waited < all_seconds:
                text += f", and has not opened the export within {all_seconds:g} s in all"
            raise Silent(f"upstream {self._server!r} {text}") from None

    async def ask(self) -> Answered | Refused:
        """Give the answer to the option that the core has been told to ask. Raises as `next_event` does."""
        event = await self.next_event()
        assert not isinstance(event, Greeted)
        return event

    async def greet(self) -> None:
        """Take the greeting. Raises `Unreachable`."""
        try:
            greeted = await self.next_event()
        except LostTheWay as error:
            # No option was sent, so none is to blame: it has died, or is no NBD server.
            text = f"upstream {self._server!r}, at its greeting: {error}"
            raise (Died if error.closed else Unreachable)(text) from None
        assert isinstance(greeted, Greeted)
        self.greeting = greeted

    async def start_tls(self, session: TlsSession) -> None:
        """Go over to TLS before anything is asked (Q-K3, Q-K4), or nowhere: there is no way back to the clear.

        Raises `Unreachable`: if TLS itself is to blame, `NotSecured`; if another try may do, `NotSecuredYet`.
        """
        from gateway.net import secure

        name, core = self._server, self.core
        if core.style is not Style.FIXED_NEWSTYLE:
            raise NotSecured(f"upstream {name!r} has no TLS: its greeting is too old for it")
        core.ask_starttls()
        try:
            answer = await self.ask()
        except LostTheWay as error:
            died = Died if error.closed else Unreachable
            raise died(f"upstream {name!r}, at STARTTLS: {error}") from None
        if isinstance(answer, Refused):
            raise NotSecured(f"upstream {name!r} has no TLS: {answer}")
        transport = self._talk.stream
        assert isinstance(transport, trio.SocketStream)
        self._shaking_hands = True
        try:
            secured = core.secured()
            with self.allowance.spend():
                stream, _server = await secure.TlsStream.connect(transport, session)
        except secure.OtherPurpose as error:
            raise NotSecuredYet(f"upstream {name!r}, TLS: {error}") from None
        except (WireError, secure.TlsError) as error:
            raise NotSecured(f"upstream {name!r}, TLS: {error}") from None
        except trio.TooSlowError:
            text = f"the handshake takes longer than {self.allowance.seconds:g} s"
            raise NotSecured(f"upstream {name!r}, TLS: {text}") from None
        self.core, self._talk = secured, Conversation(stream, secured)
        self._shaking_hands, self.secure = False, True

    async def wait_for_end(self) -> None:
        """Return as soon as a connection on which nothing is asked is of no use any more: the server has closed
        it, or said something.
        """
        with suppress(trio.BrokenResourceError):
            await self._talk.stream.receive_some(1)

    async def aclose(self) -> None:
        """Leave in good order, and let another have the slot."""
        try:
            await self.hang_up()
        finally:
            self.slot.leave()

    async def hang_up(self) -> None:
        """Leave in good order, and keep the slot: with ABORT from the option phase, with DISC from an export,
        which is where an oldstyle server begins. From anywhere else without a word: before the greeting, while
        an option is under way (the next would have to wait for its answer), and in a TLS handshake.
        """
        await leave(self.stream, self._say_farewell, silent=self._silent)

    async def _say_farewell(self) -> None:
        if self._shaking_hands or self.core.busy:
            return
        with suppress(PeerClosed, trio.BrokenResourceError):
            if self.core.style is Style.OLDSTYLE:
                await self._talk.stream.send_all(SIMPLE.disc())
                return
            if self.core.style is Style.FIXED_NEWSTYLE:
                self.core.abort()
            await self._talk.flush()  # a newstyle server waits for the client flags
