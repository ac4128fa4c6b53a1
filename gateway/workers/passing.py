"""Clients on their way from one worker to another, as the supervisor passes them on (`handing` is what the
workers do).

A client for a worker that is being started waits for it, but not for long. One for a worker that dies before it
has said that it has the client was not served, so it may go to the next one. While some workers have gone over
to another configuration and some have not, all clients on their way wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import count

import trio

from gateway.handover.message import ChannelMessage
from gateway.workers.worker import Worker

ABSENT_SECONDS = 5.0
"""How long a client waits for its disk's home to be there again; most are there in half a second."""

MOST_WAITING = 4096
"""Clients that wait for a worker which is being started; each is a descriptor of ours."""


class Passing:
    """Those clients. `ends` says whether no worker is started any more."""

    def __init__(self, ends: Callable[[], bool]) -> None:
        self.holds = False
        """Clients on their way wait: some workers have gone over to another configuration, some have not."""
        self._ends = ends
        self._held: list[tuple[Worker, ChannelMessage]] = []
        self._numbers = count(1)
        self._under_way: dict[int, tuple[Worker, int, Worker]] = {}
        """Clients by number -> who has handed it over, by what number, and to whom."""

    def goes(self, came: Worker, to: Worker, message: ChannelMessage) -> None:
        """Hand a client to another worker; or have it wait."""
        number = next(self._numbers)
        client = message["client"]
        theirs = client["number"]
        self._under_way[number] = came, theirs, to
        said = {"client": {**client, "number": number}}
        on = ChannelMessage("client", said, message.data, message.descriptors)
        if self.holds:
            self._held.append((to, on))
        else:
            self._pass_on(to, on)

    def answered(self, message: ChannelMessage) -> None:
        """A worker has taken a client, or refused it: tell the one that has handed it over."""
        came = self._under_way.pop(message["number"], None)
        if came is not None:
            back = {**message.said, "number": came[1]}
            came[0].say(ChannelMessage(message.kind, back))

    def go_on(self) -> None:
        """All workers have the same configuration again: hand over who has waited for that."""
        self.holds = False
        held, self._held = self._held, []
        for to, message in held:
            self._pass_on(to, message)

    def _pass_on(self, to: Worker, message: ChannelMessage) -> None:
        if to.serves and to.channel is not None and not to.channel.over:
            to.say(message)
        elif self._ends() or len(to.waiting) >= MOST_WAITING:
            self._give_up(message, f"worker {to.number}, which serves this disk, is not there")
        else:  # it is being started, or will be
            to.waiting.append((message, trio.current_time() + ABSENT_SECONDS))

    async def refuse_who_has_waited(self, workers: Iterable[Worker]) -> None:
        """Refuse those whose time to wait for a worker is over, until cancelled."""
        while True:
            await trio.sleep(ABSENT_SECONDS / 5)
            now = trio.current_time()
            for worker in workers:
                over = [message for message, until in worker.waiting if until < now]
                worker.waiting = [each for each in worker.waiting if each[1] >= now]
                for message in over:
                    self._give_up(
                        message, f"worker {worker.number}, which serves this disk, is not there"
                    )

    def _give_up(self, message: ChannelMessage, why: str) -> None:
        for descriptor in message.descriptors:
            os.close(descriptor)
        came = self._under_way.pop(message["client"]["number"], None)
        if came is not None:
            refuse(came[0], came[1], why)

    # --- Workers that come and go

    def has_begun(self, worker: Worker) -> None:
        """Hand a worker the clients that have waited for it."""
        waiting, worker.waiting = worker.waiting, []
        for message, _until in waiting:
            worker.say(message)

    def has_ended(self, worker: Worker) -> None:
        """A worker has died: nobody hears any more of those that it had handed over, and those that were on
        their way to it may be handed over once more.
        """
        why = f"worker {worker.number}, which serves this disk, has ended"
        for number, (came, theirs, to) in list(self._under_way.items()):
            if to is worker:
                del self._under_way[number]
                # It was not served: else it had been taken. So it may be handed over to the next one.
                refuse(came, theirs, why, again=True)
            elif came is worker:
                del self._under_way[number]


def refuse(worker: Worker, number: int, why: str, *, again: bool = False) -> None:
    """Tell a worker that a client it has handed over is not taken."""
    said = {"number": number, "why": why, "again": again}
    worker.say(ChannelMessage("refused", said))
