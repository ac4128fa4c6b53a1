"""Servers that are started by command."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from gateway.net.dial import DialError
from gateway.net.drive import Stream
from gateway.net.hearing import hear_out
from gateway.net.keeping import Keeper, Kept
from gateway.net.private import PrivateSocket
from gateway.net.processes import Child, session_lives
from gateway.peer import UNKNOWN, Peer
from gateway.there import unexpanded


def unstartable(command: Sequence[str]) -> str | None:
    """Say why a server cannot be started by a command; None if nothing is known against it."""
    if shutil.which(command[0]) is None:
        return f"there is no program {command[0]!r}{unexpanded(command[0])}"
    return None


def _nothing(_number: int) -> None:
    """Nobody minds."""


def _name_of(number: int) -> str:
    """Give a signal's name; those for real time have none of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


class Command:
    """A server that is started by socket activation when it is first needed, and again if it ended. It ends
    with the gateway, however that ends.

    It inherits a listening Unix socket as descriptor 3 (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS), as
    qemu-nbd, nbdkit and nbd-server take it; nobody else can connect there.
    """

    def __init__(self, name: str, command: tuple[str, ...], keeper: Keeper) -> None:
        self._name = name
        self._command = command
        self._keeper = keeper
        self._socket: PrivateSocket | None = None
        self._kept: Kept | None = None
        self._child: Child | None = None
        self._stopped: Kept | None = None
        self._left: Kept | None = None
        self._says = -1
        """The pipe that is its standard error, for another process that takes it over; -1: there is none."""
        self._hearing = trio.CancelScope()
        self._heard = trio.Event()
        self._heard.set()
        self._lock = trio.Lock()  # one start at a time: two servers on one disk would spoil it
        self.ours = trio.Event()
        """Set: it is for us to start it. Else another process has it still, and who connects waits."""
        self.ours.set()
        self.started: Callable[[int], object] = _nothing
        """Is called with the number of each server that is started."""

    @property
    def words(self) -> list[str]:
        """The command, word by word."""
        return [*self._command]

    @property
    def running(self) -> tuple[int, str, int] | None:
        """The number of the server that was started, if it lives, where its socket is, and what it says (-1: it
        says it elsewhere).
        """
        kept, place = self._kept, self._socket
        if kept is None or place is None or kept.status is not None:
            return None
        return kept.number, place.path, self._says

    def adopt(self, number: int, pidfd: int, path: str, says: int | None) -> None:
        """Take over a server that another process has started with this command; `pidfd` belongs to this from
        now on, and so does the pipe that is its standard error. Raises `OSError`.
        """
        kept = self._keeper.adopt(number, pidfd)
        self._socket, self._kept, self._child = PrivateSocket(path), kept, Child(kept)
        if says is not None:
            self._hear(says, number)
        self._say("info", "server taken over", pid=number, command=str(self))
        self._keeper.nursery.start_soon(self._see_off, kept)

    def leave(self) -> None:
        """Another process has taken the server over. Who connects here waits until it is ours again."""
        kept, place = self._kept, self._socket
        assert kept is not None
        assert place is not None
        self._kept, self._child, self._left = None, None, kept
        self._keeper.leave(kept)
        place.leave()
        self._hear_no_more()
        self.ours = trio.Event()

    def __str__(self) -> str:
        return " ".join(self._command)

    async def connect(self) -> trio.SocketStream:
        """Connect to the server, which is started if it does not run. Raises `DialError`."""
        await self.ours.wait()
        async with self._lock:
            if self._kept is not None and self._kept.status is not None:
                try:
                    await self._stop()
                except OSError as error:  # no descriptors, perhaps
                    why = f"cannot see what is left of it: {error.strerror}"
                    raise DialError(f"cannot start the server {self} again: {why}") from None
                if self._kept is not None:
                    text = f"something of session {self._kept.number} is there still, and cannot be ended"
                    raise DialError(f"cannot start the server {self} again: {text}")
            if self._kept is None:
                self._start()
            kept, place = self._kept, self._socket
            assert kept is not None
            assert place is not None
        try:
            return await trio.open_unix_socket(place.path)
        except OSError as error:
            status = kept.status
            why = f"{error.strerror}" if status is None else f"it has ended with status {status}"
            raise DialError(f"cannot connect to the server {self}: {why}") from None

    def at(self, _stream: Stream) -> Peer:
        """Say who is at the other end of a connection that has just been made."""
        return UNKNOWN if self._child is None else self._child

    def _start(self) -> None:
        """Start the server. Our own copy of its socket is closed, so that it is refused, not left waiting,
        whoever connects to a server that has ended.
        """
        if why := unstartable(self._command):
            raise DialError(f"cannot start the server {self}: {why}")
        place: PrivateSocket | None = None
        try:
            place = PrivateSocket()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(place.path)
                listener.listen()
                kept = self._start_and_hear(listener)
        except OSError as error:
            if place is not None:
                place.remove()
            raise DialError(f"cannot start the server {self}: {error.strerror}") from None
        self._socket, self._kept, self._child = place, kept, Child(kept)
        self._say("info", "server started", pid=kept.number, command=str(self))
        self.started(kept.number)
        self._keeper.nursery.start_soon(self._see_off, kept)

    def _start_and_hear(self, listener: socket.socket) -> Kept:
        """Start it with a pipe as its standard error, which the log has. Raises `OSError`."""
        if self._keeper.log is None:
            return self._keeper.start("session", self._command, listener=listener)
        ours, theirs = os.pipe()
        try:
            kept = self._keeper.start("session", self._command, listener=listener, stderr=theirs)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._hear(ours, kept.number)
        return kept

    def _hear(self, descriptor: int, pid: int) -> None:
        """Hear what a server says, from a pipe that belongs to this from now on. Raises `OSError`."""
        self._says = os.dup(descriptor)
        hearing = self._hearing = trio.CancelScope()
        over = self._heard = trio.Event()

        async def hear() -> None:
            try:
                with hearing:
                    await hear_out(descriptor, partial(self._tell_on, pid))
            finally:
                over.set()

        self._keeper.nursery.start_soon(hear)

    async def let_others_hear(self) -> None:
        """Hear a server no more, before another process does. Whoever closes a pipe that Trio has read makes it
        blocking again, for all who have it: a process that reads it then would stand still.
        """
        self._hearing.cancel()
        await self._heard.wait()

    def hear_again(self) -> None:
        """Nobody else has come to hear it."""
        if self._kept is not None and self._says >= 0:
            descriptor = os.dup(self._says)
            self._hear_no_more()
            self._hear(descriptor, self._kept.number)

    def _hear_no_more(self) -> None:
        if self._says >= 0:
            os.close(self._says)
        self._says = -1

    def _tell_on(self, pid: int, text: str) -> None:
        self._say("info", "server says", pid=pid, text=text)

    async def _see_off(self, kept: Kept) -> None:
        """Say when it has ended, and clear up if nothing of it lives; else who starts it next does."""
        status = await kept.wait()
        if self._left is kept:  # another process has it, and says so; but it is our child
            kept.reap()
            return
        said: dict[str, Any] = {"status": status}
        if status < 0:
            said = {"signal": _name_of(-status)}
        asked = self._stopped is kept
        level = "info" if asked or not status else "warning"
        self._say(level, "server ended", pid=kept.number, **said)
        async with self._lock:
            if self._kept is kept and not session_lives(kept.number):
                with suppress(OSError):  # whoever starts it next tries again
                    await self._stop()

    def _say(self, level: str, event: str, **said: object) -> None:
        if self._keeper.log is not None:
            getattr(self._keeper.log, level)(event, upstream=self._name, **said)

    async def stop(self) -> None:
        """End the server, and whatever it has started, and wait until it has ended."""
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        if self._kept is None:
            return
        self._stopped = self._kept
        if await self._keeper.end(self._kept):
            self._kept = None
            assert self._socket is not None
            self._socket.remove()
            self._hear_no_more()
