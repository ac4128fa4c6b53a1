"""Tells the service manager what becomes of us, as sd_notify(3) says, if it wants to be told.

systemd names a datagram socket in `NOTIFY_SOCKET` and takes lines of `KEY=VALUE` there:

    READY=1       clients can connect (at the start, and when a reload is over, whatever came of it)
    RELOADING=1   a reload has begun, with MONOTONIC_USEC: systemd tells by it which reload that is
    STOPPING=1    we drain, with EXTEND_TIMEOUT_USEC: how long that may take, whatever TimeoutStopSec says
    WATCHDOG=1    we are alive. Without it for WatchdogSec the manager ends us, and starts another
    STATUS=...    a line for people, which `systemctl status` shows
    MAINPID=...   who of its processes serves

To be alive is not to have a process, nor a task that runs: it is to serve sessions. So WATCHDOG=1 is sent when
the hub has gone round once more, by way of its epoll, since we last looked. Whatever keeps it from that, in
its own task or in any other of the thread, keeps the watchdog from being told.

Nothing of that may hold up, or end, a gateway: who is told may be slow, or gone. Then the log says so, once,
until it can be told again. What the environment says of it is taken out of there, for it is said to us: what
we start (a server of `command`, `--run`) would otherwise speak in our name.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from gateway.upstream.configured import StartError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

SOCKET = "NOTIFY_SOCKET"
PERIOD = "WATCHDOG_USEC"
WHOSE = "WATCHDOG_PID"

MICROSECONDS = 1_000_000
"""In a second: the manager's unit."""

LOOK_SECONDS = 10.0
"""How often, at most, it is told how many sessions there are: it tells all who watch the unit."""

TELL_SECONDS = 5.0
"""How long it may take nothing: its queue is full. It is busy, and what we say is said again."""


class Manager:
    """Whoever runs us as a service. Where nobody wants to be told, nothing is told."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.address = address
        """Where it is told: a path, or an abstract address with `@` for the NUL; None: nowhere."""
        self.watchdog_seconds = watchdog_seconds
        """How long it waits for a sign of life; None: it wants none."""
        self.log: FilteringBoundLogger | None = None
        """Where it is said that it cannot be told, once there is a log."""
        self._socket: trio.socket.SocketType | None = None
        self._turn = trio.Lock()
        self._failed = False

    @property
    def environment(self) -> dict[str, str]:
        """Give what another process needs in its environment to speak in our name."""
        found = {} if self.address is None else {SOCKET: self.address}
        if self.watchdog_seconds is not None:
            found[PERIOD] = str(round(self.watchdog_seconds * MICROSECONDS))
        return found

    async def hand_over(self, pid: int) -> None:
        """Say which process serves from now on, and nothing after that: that process does, and only who is
        known to serve is heard (NotifyAccess=main).
        """
        await self.tell(f"MAINPID={pid}")
        self.address = None
        self.close()

    def goes_on(self, environment: Mapping[str, str]) -> None:
        """Speak again, as `environment` said before it was handed over."""
        self.address = environment.get(SOCKET)

    async def run(self, alive: Callable[[], Awaitable[None]], status: Callable[[], str]) -> None:
        """Say that clients can connect; then, until cancelled, that we are alive, and what `status` says when
        that has changed. `alive` comes back if we are.
        """
        if self.address is None:
            return
        said = status()
        await self.tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={said}")
        while True:
            # Half of the time that it waits for it, as sd_watchdog_enabled(3) recommends.
            await trio.sleep(min(LOOK_SECONDS, (self.watchdog_seconds or 2 * LOOK_SECONDS) / 2))
            await alive()
            if self.address is None:
                return  # it was handed over
            before, said = said, status()
            news = [f"STATUS={said}"] if said != before else []
            if self.watchdog_seconds is not None:
                news.append("WATCHDOG=1")
            if news:
                await self.tell(*news)

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Have it know that we reload, until the block ends."""
        now = round(time.clock_gettime(time.CLOCK_MONOTONIC) * MICROSECONDS)
        await self.tell("RELOADING=1", f"MONOTONIC_USEC={now}")
        try:
            yield
        finally:
            await self.tell("READY=1")

    async def stopping(self, seconds: float, status: str) -> None:
        """Say that we end, and need no more than so many seconds for it."""
        usec = round(seconds * MICROSECONDS)
        await self.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={usec}", f"STATUS={status}")

    async def tell(self, *lines: str) -> None:
        """Tell it something, in one datagram. Never raises: the log says that it cannot be told."""
        if self.address is None:
            return
        why = "it takes nothing"
        async with self._turn:
            with trio.move_on_after(TELL_SECONDS):
                try:
                    await self._send("\n".join(lines).encode())
                except OSError as error:
                    why = os.strerror(error.errno) if error.errno else str(error)
                else:
                    self._failed = False
                    return
            self.close()  # the next one may listen there, and is another socket
        if not self._failed and self.log is not None:
            self.log.warning("service manager cannot be told", socket=self.address, why=why)
        self._failed = True

    async def _send(self, datagram: bytes) -> None:
        assert self.address is not None
        if self._socket is None:
            self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # Connected, for only then does the kernel say when a full queue has room again (unix(7)).
            await self._socket.connect(self.address.replace("@", "\0", 1))
        await self._socket.send(datagram)

    def close(self) -> None:
        """Close what it is told by."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def manager_of(environment: MutableMapping[str, str]) -> Manager:
    """Give whoever the environment says wants to be told, and take that out of it. Raises `StartError`."""
    address, period, whose = (environment.pop(key, None) for key in (SOCKET, PERIOD, WHOSE))
    if not address:
        return Manager()
    if address[0] not in "/@":
        raise StartError(
            f'{SOCKET}: expected a path, or "@" and an abstract address, got "{address}"'
        )
    if period is None or whose not in (None, str(os.getpid())):
        return Manager(address)
    # It ends by SIGABRT whoever gives no sign of life. Then standard error has where each thread was.
    faulthandler.enable()
    if not period.isdecimal() or not int(period):
        raise StartError(f'{PERIOD}: expected a number of microseconds, got "{period}"')
    return Manager(address, int(period) / MICROSECONDS)
