"""The socket between two processes of the gateway: messages one way and the other, with descriptors.

It is a pair of Unix sockets that keep messages apart (SOCK_SEQPACKET, unix(7)). So a message is there as a
whole, with its descriptors (SCM_RIGHTS), or not at all; messages come in the order in which they were said; and
when the other process ends, however it ends, what it had said before is still read, and then comes the end.

To say something never waits: it is put in a queue that a task of its own sends. Whoever lets `MOST_WAITING`
messages wait reads nothing any more, and is as good as dead. Descriptors that were said are the channel's,
which closes them when they are sent, or never will be.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from gateway.handover.message import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    ChannelMessage,
    DescriptorsLost,
    NotUnderstood,
    decode,
    encode,
)

MOST_WAITING = 65_536
"""Messages that may wait to be sent: each client that comes or goes is one, and each disk with losses."""

SEND_BUFFER_BYTES = 4 * MAX_MESSAGE_BYTES
"""What is asked of the kernel for the socket. If it gives less, a message that is too long for it is an error
of whoever says it (EMSGSIZE), and its client is refused."""

_DESCRIPTOR = array.array("i").itemsize

GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""What sending says when the other process has ended (unix(7), send(2))."""

Call = Callable[[], object]


def pair() -> tuple[socket.socket, socket.socket]:
    """Give the two ends of a channel. Raises `OSError`."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        end.setblocking(False)
    return ends


class Channel:
    """One end of it. `run` has to run."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = trio.socket.from_stdlib_socket(end)
        self._queue: deque[tuple[ChannelMessage, bytes, Call | None, Call | None]] = deque()
        self._news = trio.Event()
        self._sent = trio.Event()
        self.over = False
        """The other process has ended, or is as good as dead. Nothing is said any more."""
        self.why = ""
        """Why, if it was not by its end."""

    def say(
        self, message: ChannelMessage, *, sent: Call | None = None, unsent: Call | None = None
    ) -> None:
        """Say something, unless the other process has ended. `sent` is called when it will be read, if the
        other process lives, whatever becomes of us; `unsent` when it will not be. Raises `ValueError` if it is
        too long; then the descriptors are closed.
        """
        if self.over:
            _close(message)
            if unsent is not None:
                unsent()
            return
        try:
            whole = encode(message)
        except ValueError:
            _close(message)
            raise
        self._queue.append((message, whole, sent, unsent))
        if len(self._queue) > MOST_WAITING:
            self._give_up(f"{MOST_WAITING} messages wait to be read by the other process")
        self._news.set()

    async def all_sent(self) -> None:
        """Wait until all that was said is sent, or never will be."""
        while self._queue and not self.over:
            await self._sent.wait()

    async def run(
        self,
        heard: Callable[[ChannelMessage], None],
        lost: Callable[[ChannelMessage], None] | None = None,
    ) -> None:
        """Send, and have `heard` called with each message that comes, until the other process has ended. The
        descriptors of a message are for `heard` to close. `lost` is called with one that came without its
        descriptors, because this process had no room for them; without it, such a message is the end.
        Never raises for anything that the other process does.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self._receive(heard, lost)
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def next(self) -> ChannelMessage | None:
        """Give the next message, before `run` runs; None: the other process has ended. Raises
        `NotUnderstood`.
        """
        try:
            received = await self._received()
        except ConnectionResetError:
            # It has ended without having read all that we said. That is told once, and before what it has said.
            try:
                received = await self._received()
            except OSError:
                return None
        except OSError:
            return None
        whole, ancillary, flags, _address = received
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % _DESCRIPTOR])
        try:
            if flags & socket.MSG_TRUNC:
                raise NotUnderstood(f"expected at most {MAX_MESSAGE_BYTES} bytes in a message")
            if flags & socket.MSG_CTRUNC:
                # It has no more than there is room for: see `MAX_DESCRIPTORS`.
                raise DescriptorsLost(decode(whole))
            return decode(whole, descriptors) if whole else None
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    async def _received(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        room = MAX_DESCRIPTORS * _DESCRIPTOR
        return await self._socket.recvmsg(
            MAX_MESSAGE_BYTES + 1, socket.CMSG_SPACE(room), socket.MSG_CMSG_CLOEXEC
        )

    async def send_waiting(self) -> None:
        """Send all that was said, before `run` runs."""
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self.all_sent()
                scope.cancel()

    def close(self) -> None:
        """Close it; the other process sees the end."""
        self._give_up("")
        self._socket.close()

    async def _receive(
        self,
        heard: Callable[[ChannelMessage], None],
        lost: Callable[[ChannelMessage], None] | None,
    ) -> None:
        while True:
            try:
                message = await self.next()
                if message is None:
                    return
                heard(message)
            except DescriptorsLost as error:
                if lost is None:
                    self._give_up(str(error))
                    return
                lost(error.message)
            except NotUnderstood as error:
                self._give_up(str(error))
                return

    async def _send(self) -> None:
        while not self.over:
            if not self._queue:
                self._news = trio.Event()
                await self._news.wait()
                continue
            message, whole, sent, unsent = self._queue[0]
            rights = array.array("i", message.descriptors).tobytes()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            try:
                await self._socket.sendmsg([whole], ancillary)
            except OSError as error:
                if error.errno in GONE:
                    self._fall_silent()  # what the other process said before it ended is still to be read
                    return
                if unsent is None or error.errno != errno.EMSGSIZE:
                    self._give_up(error.strerror or str(error))
                    return
                unsent()
            else:
                if sent is not None:
                    sent()
            if self._queue:  # else it was given up meanwhile
                self._queue.popleft()
                _close(message)
            self._sent.set()
            self._sent = trio.Event()

    def _give_up(self, why: str) -> None:
        """Say nothing any more, and hear nothing."""
        self.why = self.why or why
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._fall_silent()

    def _fall_silent(self) -> None:
        self.over = True
        while self._queue:
            message, _whole, _sent, unsent = self._queue.popleft()
            _close(message)
            if unsent is not None:
                unsent()
        self._news.set()
        self._sent.set()


def _close(message: ChannelMessage) -> None:
    for descriptor in message.descriptors:
        os.close(descriptor)


@contextmanager
def closing_descriptors(message: ChannelMessage) -> Iterator[None]:
    """Obey a message, and close what came along with it then: who keeps a descriptor has a copy of his own."""
    try:
        yield
    finally:
        for descriptor in message.descriptors:
            with suppress(OSError):
                os.close(descriptor)
