"""What a server that we have started says on its standard error, as lines of our log: so it has a time, the
name of its upstream, and is JSON where all else is.

A server may say very much (nbdkit with -v: ten lines for each request). It is always heard to the end, or it
would stand still; but only so many lines a second are told on, for all sessions wait while we write them.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway.plural import plural

MOST_LINES_A_SECOND = 50
"""More than a server says that has something to say to a person."""

MAX_LINE_BYTES = 4096
"""What is longer is told in pieces."""

RECEIVE_BYTES = 64 * 1024
"""What a pipe holds, by default (pipe(7))."""


class Heard:
    """Makes lines of what is said, and leaves out what is too much. `tell` is called with each line."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._rest = b""
        self._second = -1
        self._told = self._left_out = 0

    def hear(self, data: bytes) -> None:
        """It has said this; nothing: that was all."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) >= MAX_LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        self._turn(int(self._clock()))
        for line in lines:
            for start in range(0, len(line), MAX_LINE_BYTES):
                self._pass_on(line[start : start + MAX_LINE_BYTES])
        if not data:
            self._turn(-1)

    def _turn(self, second: int) -> None:
        if second == self._second:
            return
        self._second, self._told = second, 0
        if self._left_out:
            self._tell(f"({plural(self._left_out, 'line of it is', 'lines of it are')} left out)")
            self._left_out = 0

    def _pass_on(self, line: bytes) -> None:
        if self._told >= MOST_LINES_A_SECOND:
            self._left_out += 1
            return
        self._told += 1
        self._tell(line.decode(errors="replace").rstrip("\r"))


async def hear_out(descriptor: int, tell: Callable[[str], None]) -> None:
    """Hear a pipe to its end, and close it; or until cancelled."""
    heard = Heard(tell, trio.current_time)
    async with trio.lowlevel.FdStream(descriptor) as stream:
        while data := await stream.receive_some(RECEIVE_BYTES):
            heard.hear(bytes(data))
    heard.hear(b"")
