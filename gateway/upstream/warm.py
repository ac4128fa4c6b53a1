"""Connections to a server that nobody has asked for: some that are ready for the next clients (`warm`), and now
and then one that sees whether the server is there (`health-check-seconds`).

A **warm** connection is connected, over TLS if need be, and greeted. No option but STARTTLS has been sent, so
it is good for any client, whatever it wants of framing, export and contexts, and on any rung of the ladder; to
agree on framing ahead would save one more round trip, and be wrong for every client that is not like the last.
It is taken once, and never by two: a server may keep something of each connection's own (copy on write).

None is made before the first client has its export. Until then nobody knows whether this server is wanted at
all, and one that serves a single client, or is still being started, should meet that client and not us; so what
goes for every other upstream holds at the start of these as well: nothing is dialled before somebody asks.

They are not in anybody's way:

- they have slots under `max-connections`, but only such as nobody waits for, and give them up when a client
  needs one. One that is still being made when a client has to dial is dropped: it may stand in the queue of a
  server that serves one client (qemu-nbd), and the client would stand behind it;
- one that the server closes (a time-out, as qemu 9.1 has after 10 s, or its end) is noticed and replaced; if it
  did not live long, or cannot be made, after longer and longer breaks. And `Circuits` has its say before each
  attempt, as with clients: a server that is down is asked no oftener.

One that is old is replaced too, for what a client gets should be what it would get by dialling: the credentials
that are in force, and the server that is at the address. While an export is paused, there are none to its
server, which may be about to be exchanged (`gateway.sessions.upkeep`).

A **health check** connects, takes the greeting and leaves with ABORT, where nobody else has tried to connect
for so long, and not all slots are taken. Whether connecting works is what `Circuits` learns from it; so the log
tells of an outage before a client finds out, and clients that come later are told at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from gateway.protocol.errors import Refusal
from gateway.upstream.greeting import greeted
from gateway.upstream.handshake import Handshake
from gateway.upstream.news import Unwell, WellAgain
from gateway.upstream.server import Server
from gateway.upstream.slots import Slot

RENEW_SECONDS = 300.0
"""How old a warm connection may get: a new one every few minutes bothers nobody, and credentials, addresses and
servers that are exchanged are out of use soon. (A rung of the ladder is remembered as long.)"""

STEADY_SECONDS = 5.0
"""A connection that has lived so long was worth making, and its successor is made at once. qemu's time-out is
twice that."""

FIRST_PAUSE_SECONDS = 0.25
"""How long we wait after the first failure, as in `Circuits`: a server that is being restarted is back in less
than a second."""

MOST_PAUSE_SECONDS = 30.0
"""What doubling ends at. Nobody waits for these: who comes meanwhile dials."""

FULL_SECONDS = 1.0
"""How often we look whether there is a slot again, if there was none. That costs the server nothing."""


@dataclass(eq=False)
class _Kept:
    """A connection that waits for a client."""

    handshake: Handshake
    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """The scope of the task that watches it."""
    released: trio.Event = field(default_factory=trio.Event)
    """Set when that task has ended."""


class Warm:
    """So many connections to one server, kept ready by `run`."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._count = count
        self._kept: deque[_Kept] = deque()
        """The connections that are kept, the oldest first."""
        self._served = trio.Event()
        self._changed = trio.Event()
        self._dialling: trio.CancelScope | None = None
        self._dial_over = trio.Event()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._not_before = 0.0

    @property
    def count(self) -> int:
        """How many are ready."""
        return len(self._kept)

    def served(self) -> None:
        """A client has its export: whatever there was, the server is well."""
        self._served.set()
        if self._pause_seconds > FIRST_PAUSE_SECONDS:
            self._steady()
            soon = trio.current_time() + FIRST_PAUSE_SECONDS
            self._not_before = min(self._not_before, soon)
            self._changed.set()

    async def take(self) -> Handshake | None:
        """Give a connection, which is the caller's from now on. None: there is none, and the caller has to
        dial.
        """
        if not self._kept:
            await self._drop_dial()
            return None
        kept = self._kept.pop()  # the newest is the least likely to be dead
        self._steady()
        await _release(kept)
        return kept.handshake

    async def give_way(self) -> None:
        """Give up one connection, or the one that is being made: somebody needs the slot."""
        if self._kept:
            kept = self._kept.popleft()
            await _release(kept)
            await kept.handshake.aclose()
        else:
            await self._drop_dial()

    async def run(self) -> None:
        """Keep connections ready until cancelled; then leave them in good order."""
        self._server.warm = self
        self._server.slots.spare.add(self)
        try:
            await self._served.wait()
            async with trio.open_nursery() as nursery:
                while True:
                    await self._until_one_is_due()
                    slot = self._server.slots.free()
                    if slot is None:
                        await trio.sleep(FULL_SECONDS)
                        continue
                    handshake = await self._dial(slot)
                    if handshake is None:
                        continue
                    kept = _Kept(handshake, trio.current_time())
                    self._kept.append(kept)
                    nursery.start_soon(self._watch, kept)
        finally:
            self._server.slots.spare.discard(self)
            if self._server.warm is self:  # else others are kept by now, while these were left
                self._server.warm = None

    async def _until_one_is_due(self) -> None:
        while True:
            self._changed = trio.Event()
            if len(self._kept) >= self._count:
                await self._changed.wait()
            elif trio.current_time() < self._not_before:
                with trio.move_on_at(self._not_before):
                    await self._changed.wait()
            else:
                return

    async def _dial(self, slot: Slot) -> Handshake | None:
        self._dial_over = trio.Event()
        try:
            with trio.CancelScope() as self._dialling:
                return await greeted(
                    self._server, slot, patient=False, for_client=False, beside=True
                )
            self._steady()  # it was dropped, which says nothing of the server
            self._failed()
        except Refusal:  # if that is news, the server has told it
            self._failed()
        finally:
            self._dialling = None
            self._dial_over.set()
        return None

    async def _drop_dial(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            await self._dial_over.wait()

    async def _watch(self, kept: _Kept) -> None:
        """See to a connection until it is taken (then it is somebody else's), dead, old, or all ends."""
        try:
            with kept.scope, trio.move_on_after(RENEW_SECONDS):
                await kept.handshake.wait_for_end()
        finally:
            if kept in self._kept:
                self._kept.remove(kept)
                if trio.current_time() - kept.since < STEADY_SECONDS:
                    self._failed()
                else:
                    self._steady()
                await kept.handshake.aclose()
            kept.released.set()
            self._changed.set()

    def _failed(self) -> None:
        if trio.current_time() < self._not_before:
            return  # several that end with their server are one failure
        seconds = self._pause_seconds * (0.5 + self._server.chance() / 2)
        self._not_before = trio.current_time() + seconds
        self._pause_seconds = min(2 * self._pause_seconds, MOST_PAUSE_SECONDS)

    def _steady(self) -> None:
        self._pause_seconds = FIRST_PAUSE_SECONDS


async def _release(kept: _Kept) -> None:
    """End the watch over a connection that is no longer among those kept."""
    kept.scope.cancel()
    with trio.CancelScope(shield=True):  # it is cancelled, and waits for nothing
        await kept.released.wait()


async def check_health(server: Server, seconds: float) -> None:
    """See whether a server is there whenever it was not connected to for so long, until cancelled."""
    checked = trio.current_time()
    well = True
    while True:
        due = max(checked, server.connector.tried_at) + seconds
        if trio.current_time() < due:
            await trio.sleep_until(due)
            continue
        checked = trio.current_time()
        slot = server.slots.free()
        if slot is None:
            continue
        try:
            handshake = await greeted(server, slot, patient=False, for_client=False)
        except Refusal as refusal:
            if well and not server.down:  # else that has been told
                well = False
                server.tell(Unwell(refusal.text))
        else:
            await handshake.aclose()
            if not well:
                well = True
                server.tell(WellAgain())
