"""Signals, and what each has the gateway do.

- SIGTERM, SIGINT: the end in good order (`gateway.app.farewell`). A second one ends sessions that were given
  time, and where they were not, everything at once, with the status of one that it would have killed.
- SIGHUP: the configuration and TLS credentials are loaded anew (`gateway.app.reload`).
- SIGUSR1: the state is written to the log (`gateway.status.dump`).
- SIGUSR2: a newer process takes this one's place (`gateway.app.upgrading`).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.app.draining import Leaving
from gateway.sessions.service import Service

if TYPE_CHECKING:
    from gateway.app.fleet import FleetPart
    from gateway.workers.member import Member

KILLED = 128
"""Exit status after a second signal, beside its number: what a shell gives for who was killed by it."""

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def none_held_back(heard: Collection[signal.Signals]) -> Iterator[None]:
    """Have signals come that were held back (`gateway.__main__`), and what we start have none held back. At the
    end they are again: nobody hears them then.
    """
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Obeying:
    """Does what signals ask for. A fleet has neither reload nor upgrade; one of several workers leaves both to
    its supervisor.
    """

    def __init__(
        self,
        service: Service,
        leaving: Leaving,
        reload: Callable[[], None],
        upgrade: Callable[[], None],
        write_state: Callable[[], Awaitable[None]],
        member: Member | None,
        fleet: FleetPart | None,
    ) -> None:
        self._service = service
        self._leaving = leaving
        self._reload = reload
        self._upgrade = upgrade
        self._write_state = write_state
        self._member = member
        self._fleet = fleet

    async def run(self, signals: AsyncIterator[int], end_now: Callable[[int], object]) -> None:
        """Obey, until cancelled. `end_now` ends everything, with a status."""
        async for number in signals:
            if number in (signal.SIGHUP, signal.SIGUSR2):
                self._change(signal.Signals(number))
            elif number == signal.SIGUSR1:
                await self._service.hub.attempt(self._write_state)
            else:
                if self._leaving.begun.is_set() and not self._leaving.begin(0):
                    self._service.log.warning(
                        "ending at once",
                        signal=signal.Signals(number).name,
                        sessions_cut=len(self._service.running),
                    )
                    end_now(KILLED + number)
                self._leaving.begin(self._service.config.leave_seconds)

    def _change(self, number: signal.Signals) -> None:
        is_reload = number == signal.SIGHUP
        if self._fleet is not None:
            verb = "reload" if is_reload else "upgrade"
            self._service.log.warning("signal is not obeyed in a fleet", verb=verb)
        elif self._member is not None:
            return  # a terminal's, or a slip: the supervisor reloads all
        elif is_reload:
            self._reload()
        else:
            self._upgrade()
