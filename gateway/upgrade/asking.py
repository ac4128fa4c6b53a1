"""Clients that were given to the other process, which has not said yet whose they are.

Each side gives clients to the other in the same way, and waits: for `taken`, and then the client is there; or
for `yours`, and then it stays. We keep our copy of its socket until then, and say nothing to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

import trio

from gateway.handover.given import Given
from gateway.handover.message import ChannelMessage
from gateway.protocol.errors import Hangup

ANSWER_SECONDS = 90
"""How long the other process may take to say whose a client is. At its deadline it lets its sessions end first,
which has a limit of its own (`drain-seconds`, 30 by default). Then the client is hung up on, and may come
again.
"""

NO_ANSWER = "another process of this gateway has its disk, and does not say what becomes of it"


class Say(Protocol):
    """Says something to the other process (`gateway.handover.channel.Channel.say`)."""

    def __call__(
        self,
        message: ChannelMessage,
        *,
        sent: Callable[[], object] | None = None,
        unsent: Callable[[], object] | None = None,
    ) -> None:
        """Say it."""
        ...


class _Asked:
    def __init__(self) -> None:
        self.answered = trio.Event()
        self.taken = False


class OnTheWay:
    """Those clients."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    async def given(self, say: Say, client: Given, descriptor: int) -> bool:
        """Give a client to the other process; say whether that has taken it. The descriptor belongs to this.
        Raises `Hangup`: not a word may be said to the client, for the other process may have it after all.
        """
        client = replace(client, number=next(self._numbers))
        asked = self._asked[client.number] = _Asked()
        said = {"client": client.as_said()}
        try:
            with trio.fail_after(ANSWER_SECONDS):
                message = ChannelMessage("client", said, client.unread, (descriptor,))
                say(message, unsent=asked.answered.set)
                await asked.answered.wait()
        except (trio.TooSlowError, ValueError):
            raise Hangup(NO_ANSWER) from None
        finally:
            del self._asked[client.number]
        return asked.taken

    def answered(self, number: int, *, taken: bool) -> None:
        """The other process has said whose a client is. Of one that is not waited for any more, nobody
        minds.
        """
        asked = self._asked.get(number)
        if asked is not None:
            asked.taken = taken
            asked.answered.set()

    def all_stay(self) -> None:
        """The other process has ended: whom it has not taken stays."""
        for asked in self._asked.values():
            asked.answered.set()


def take(
    say: Say, client: Given, descriptor: int, begin: Callable[[trio.SocketStream], None]
) -> None:
    """Take a client that the other process gives. We begin when that will know, whatever becomes of us: else
    both could answer the client. `descriptor` stays the caller's. Raises `OSError`.
    """
    sock = trio.socket.socket(fileno=os.dup(descriptor))
    stream = trio.SocketStream(sock)
    say(
        ChannelMessage("taken", {"number": client.number}),
        sent=partial(begin, stream),
        unsent=sock.close,
    )
