"""Clients that go from a worker to another, and come to it from another, each by way of the supervisor.

A client that asks for a disk with another home is handed to the supervisor, which hands it to that worker, and
says what came of it. Until then nobody here reads from the client or tells it anything, and there is no limit
of time: the other worker may be serving it already. If the supervisor dies meanwhile, nobody knows; so the
client's socket is closed here without a word.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, replace
from itertools import count

import trio

from gateway.handover.channel import Channel
from gateway.handover.given import Given
from gateway.handover.message import ChannelMessage
from gateway.protocol.errors import Hangup, Refusal
from gateway.wire.constants import Rep
from gateway.workers.office import WorkerOffice

MOST_TIMES = 3
"""How often a client is handed over whose home dies meanwhile."""

_TOO_LONG = "what it has sent is too long to be handed over"


@dataclass(eq=False)
class _OnItsWay:
    """A client on its way to another worker."""

    answered: trio.Event = field(default_factory=trio.Event)
    taken: bool | None = None
    """None: nobody knows."""
    why: str = ""
    again: bool = False
    """The worker has died that was to have it, and there is another one, or will be."""

    def end(self, *, taken: bool, why: str = "", again: bool = False) -> None:
        """Note what came of it."""
        self.taken, self.why, self.again = taken, why, again
        self.answered.set()


class Handing:
    """Clients on their way, as one worker has them. `channel` leads to the supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._going: dict[int, _OnItsWay] = {}
        self._arriving: set[trio.SocketStream] = set()
        self._numbers = count(1)

    # --- Who goes

    async def give(self, client: Given, descriptor: int, home: int) -> None:
        """Have another worker take a client, of which the caller keeps a `descriptor` until then. Raises
        `Refusal` if that does not; and `Hangup` if nobody knows who has the client now.
        """
        try:
            for _ in range(MOST_TIMES):
                handed = await self._hand_over(client, os.dup(descriptor), home)
                if not handed.again:
                    break
        except OSError as error:  # as many are open as may be
            raise Refusal(Rep.ERR_SHUTDOWN, f"not handed over: {error.strerror}") from None
        if handed.taken is None:
            raise Hangup("the supervisor has ended while the client was handed over")
        if not handed.taken:
            raise Refusal(Rep.ERR_SHUTDOWN, handed.why)

    async def _hand_over(self, client: Given, descriptor: int, home: int) -> _OnItsWay:
        """Hand a client over, and give what came of it."""
        number = next(self._numbers)
        handed = self._going[number] = _OnItsWay()
        said = {"to": home, "client": replace(client, number=number).as_said()}
        goes = ChannelMessage("goes", said, client.unread, (descriptor,))

        def unsent() -> None:
            handed.end(taken=False, why=_TOO_LONG)

        try:
            try:
                self._channel.say(goes, unsent=unsent)
            except ValueError:
                unsent()
            if not self._channel.over:
                await handed.answered.wait()
        finally:
            del self._going[number]
        return handed

    def answered(self, message: ChannelMessage) -> None:
        """The supervisor says what came of a client: `taken`, or `refused`."""
        handed = self._going.get(message["number"])
        if handed is None:
            return
        if message.kind == "taken":
            handed.end(taken=True)
        else:
            handed.end(taken=False, why=message["why"], again=message["again"])

    # --- Who comes

    def take(self, message: ChannelMessage, office: WorkerOffice) -> None:
        """Take a client, and say so; or say why not."""
        [descriptor] = message.descriptors
        given = Given.of(message["client"], message.data)
        listener = office.listener_at(given.door)
        why = ""
        if office.ends:
            why = "the gateway is shutting down"
        elif listener is None:
            why = "the listener that it came by is closed"
        if why:
            os.close(descriptor)
            self.refuse(given.number, why)
            return
        assert listener is not None
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._arriving.add(stream)

        def take() -> None:
            self._arriving.discard(stream)
            office.take(listener, stream, given)

        # Not before that is sent: should we die, whoever had the client must not tell it anything more.
        self._channel.say(ChannelMessage("taken", {"number": given.number}), sent=take)

    def refuse(self, number: int, why: str) -> None:
        """Say that a client is not taken here."""
        said = {"number": number, "why": why, "again": False}
        self._channel.say(ChannelMessage("refused", said))

    # --- The end

    def end(self) -> None:
        """The supervisor has ended: nobody says any more what comes of those who go, and nobody begins with
        those who come.
        """
        for handed in self._going.values():
            handed.answered.set()
        for stream in self._arriving:
            stream.socket.close()
