"""Which process is at the other end of a connection on this machine, and whether it has ended
(`gateway.peer.Peer`).

A process has closed all that it had open before its end can be seen (do_exit in the kernel). So if a link to it
is open when it has ended, it is not the one that serves: others have the connection as well, or alone. Then it
proves nothing.

**A server that we have started** leads a session of its own (setsid(2)), which whatever it starts belongs to,
unless that makes one itself. It is gone when we have seen its end and nobody of its session lives.

**The listener at a Unix socket** is what SO_PEERCRED names (unix(7)): who has called listen(2). It need not be
who has accepted the connection: nbdkit without -f listens, forks and ends; nbd-server forks for each
connection; socat is there for another one. So

- it counts only where the operator says that it is the one that writes;
- process 1 (systemd's sockets) and we ourselves serve nothing there;
- it has to live when we connect, and still when the server has answered all of a negotiation. A process that
  cannot be found then has ended, or is in another container;
- it may have no children then, for they may be those that serve. (Who forks twice for each connection, as
  daemons do, is not found out by this.)
- from then on a pidfd stands for it, for its number is given away when it has ended. `Processes.watch` waits
  for the end, so that it is seen while links that are still open can prove it wrong. What ends together with
  its links, within the moment that this takes, is believed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from pathlib import Path

import trio

from gateway.net.drive import Stream
from gateway.net.keeper import LOOK_WHO_LIVES_SECONDS, of_session, seen
from gateway.net.keeping import Kept
from gateway.net.options import has_gone, peer_of
from gateway.peer import UNKNOWN, Connection, Peer

MOST_PROCESSES = 8
"""How many listeners of one upstream are kept track of at the same time, with a descriptor for each. One is
usual; there are two while a server is exchanged for another."""

SO_PEERPIDFD = 77
"""Since Linux 6.5: the pidfd of who listened, and of nobody who has its number now (asm-generic/socket.h).
Python has no name for it."""


class Served:
    """A process; by the links to it we find out whether it is the one that serves."""

    def __init__(self) -> None:
        self._links: list[Connection] = []
        self._gone = False
        self.wrong = False
        """It has ended, and a link to it has not."""

    @property
    def provable(self) -> bool:
        """`gone` may come to be true."""
        return not self.wrong

    def serves(self, sock: Connection) -> None:
        """A link to it has been made."""
        self._links = [link for link in self._links if link.fileno() >= 0]
        self._links.append(sock)

    def kept(self) -> bool:
        """Its end says nothing of what it had not flushed."""
        return False

    def gone(self) -> bool:
        """Say whether it has ended, as far as is proven."""
        if not self._gone and not self.wrong and self._ended():
            self._gone = not any(map(_is_open, self._links))
            self.wrong = not self._gone
            self._links = []
        return self._gone

    def _ended(self) -> bool:
        raise NotImplementedError


def _is_open(link: Connection) -> bool:
    """Say whether anybody has the other end of a link. What has come over it need not have been read."""
    return not has_gone(link)


# --- A server that we have started


class Child(Served):
    """A server that we have started, and whatever it has started. It was started with a session of its own."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept
        self._look_at = 0.0

    def _ended(self) -> bool:
        if self._kept.status is None or trio.current_time() < self._look_at:
            return False
        self._look_at = trio.current_time() + LOOK_WHO_LIVES_SECONDS
        return not session_lives(self._kept.number)


def session_lives(session: int) -> bool:
    """Say whether any process of a session lives. If we cannot see all processes, one may."""
    try:
        now = seen()
    except OSError:
        return True
    return 1 not in now or bool(of_session(session)(now))  # others' are hidden (proc(5), hidepid)


# --- The listener of a Unix socket


class ListeningProcess(Served):
    """The process that listens at a Unix socket, by its pidfd, which `Processes` closes."""

    def __init__(self, number: int, pidfd: int) -> None:
        super().__init__()
        self._number = number
        self.pidfd = pidfd
        """-1: it is closed."""

    @property
    def provable(self) -> bool:
        """`gone` may come to be true."""
        return self._gone or (self.pidfd >= 0 and not self.wrong)

    def serves(self, sock: Connection) -> None:
        """A link to it has been made."""
        super().serves(sock)
        self.wrong = self.wrong or has_children(self._number)

    @property
    def ended(self) -> bool:
        """It has ended, whatever that proves."""
        return self._ended()

    def _ended(self) -> bool:
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)  # pidfd_open(2)
        return bool(poll.poll(0))


class Processes:
    """The processes that listen, one after the other, at an upstream's socket. `watch` has to run, or nothing
    is known.
    """

    def __init__(self) -> None:
        self._by_number: dict[int, ListeningProcess] = {}
        self._nursery: trio.Nursery | None = None
        self._wrong = False

    def at(self, stream: Stream) -> Peer:
        """Say who is at the other end of a connection that has just been made."""
        if self._nursery is None or self._wrong or stream.socket.family != socket.AF_UNIX:
            return UNKNOWN
        try:
            unix = peer_of(stream.socket).unix
            if unix is None or unix.pid in (0, 1, os.getpid()):  # 0: in another container
                return UNKNOWN
            number = unix.pid
            known = self._by_number.get(number)
            if known is not None:  # one that has ended is about to be seen off
                return UNKNOWN if known.ended else known
            if len(self._by_number) >= MOST_PROCESSES:
                return UNKNOWN
            listener = ListeningProcess(number, _pidfd(stream.socket, number))
        except OSError:
            return UNKNOWN
        if listener.ended:  # before we came
            os.close(listener.pidfd)
            return UNKNOWN
        self._by_number[number] = listener
        self._nursery.start_soon(self._see_off, number, listener)
        return listener

    async def watch(self) -> None:
        """Notice their ends, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def _see_off(self, number: int, listener: ListeningProcess) -> None:
        try:
            await trio.lowlevel.wait_readable(listener.pidfd)
            listener.gone()
            self._wrong = self._wrong or listener.wrong
        finally:
            del self._by_number[number]
            pidfd, listener.pidfd = listener.pidfd, -1
            os.close(pidfd)


def _pidfd(sock: trio.socket.SocketType, number: int) -> int:
    """Open a pidfd of the process that listened. Raises OSError if it is not there any more."""
    try:
        option = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(number)
    [pidfd] = struct.unpack("i", option)
    return int(pidfd)


def has_children(number: int) -> bool:
    """Say whether a process has children. If we cannot see that, it may."""
    try:
        tasks = list(Path(f"/proc/{number}/task").iterdir())  # each thread has its own
        return any((task / "children").read_bytes() for task in tasks)
    except OSError:
        return True
