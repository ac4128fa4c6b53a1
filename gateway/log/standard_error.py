"""Standard error while the gateway serves: nothing that is written there can hang or break the gateway.

Not only the log writes there, but Python too: tracebacks, warnings, what a destructor raises. All of it goes to
`sys.stderr`, so we replace that by one that hands text on to a `Writer`. What cannot be written is kept, and
tried again: if a disk is full for a minute nothing is lost as long as the queue has room, and a FIFO may get
another reader. Lines for which there is no room are counted, and their number is written when there is. What
Python itself writes is bounded by the queue alone, and not by `rates`: half a traceback helps nobody.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from gateway.log.counted import COUNTED
from gateway.log.writer import LEAVE_SECONDS, Writer, flush_all

RETRY_SECONDS = 1
"""How long we wait before we try again to write: nobody empties a full disk sooner."""

READER_SECONDS = 0.1
"""How long a full pipe stays full before it is given up at the end of the process: a reader that is awake takes
something sooner."""

MAX_PARTIAL_CHARACTERS = 64 << 10
"""How long a line may be before its end has come: then it is written as it is."""


class StandardError(io.TextIOBase):
    """Text for a descriptor that others may have, too, so its flags stay as they are. Never waits or raises."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self._encoding = encoding
        self._sink = _Descriptor(fd)
        self._writer = Writer(self._sink, "standard error")
        self._lock = threading.RLock()
        self._partial = ""

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has a variable there
        """The encoding by which text becomes bytes."""
        return self._encoding

    def writable(self) -> bool:
        """Always: nothing else can be done with it."""
        return True

    def fileno(self) -> int:
        """Give the descriptor, for child processes to inherit."""
        return self._sink.fd

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        return os.isatty(self._sink.fd)

    def write(self, text: str, /) -> int:
        """Have text written, in whole lines."""
        with self._lock:
            whole, newline, partial = (self._partial + text).rpartition("\n")
            if len(partial) > MAX_PARTIAL_CHARACTERS:
                whole, newline, partial = whole + newline + partial, "", ""
            self._partial = partial
        self._give(whole + newline)
        return len(text)

    def say_lost_by(self, line_of: Callable[[int], str]) -> None:
        """Have `line_of` make the line that says how many were lost."""
        self._sink.line_of = line_of

    def leave(self, seconds: float) -> bool:
        """The process ends: wait until all is written, by other writers too, but no longer than `seconds`; say
        whether it is. What cannot be written at once is given up.
        """
        until = time.monotonic() + seconds
        others = flush_all(seconds, but=self._writer)
        with self._lock:
            partial, self._partial = self._partial, ""
        self._give(partial)
        self._sink.leaving.set()
        return self._writer.flush(max(0, until - time.monotonic())) and others

    def _give(self, text: str) -> None:
        if text and not self._writer.write(text.encode(self._encoding, "backslashreplace")):
            self._sink.lose(1)


class Nobody(io.TextIOBase):
    """Text that nobody gets. It stands in for None, for which `print` would take standard output."""

    def write(self, text: str, /) -> int:
        """Forget it."""
        return len(text)


class _Descriptor:
    """The sink: a descriptor that was inherited."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.leaving = threading.Event()
        self.line_of: Callable[[int], str] = "{} log lines lost\n".format
        self._lock = threading.RLock()
        self._lost = 0

    def put(self, lines: Sequence[bytes]) -> int:
        """Write lines, however long that takes. Raises `OSError` only while leaving."""
        data = memoryview(b"".join(lines))
        try:
            while data:
                data = data[self._write(data) :]
        except OSError:
            self.lose(len(lines))
            raise
        return len(lines)

    def drained(self) -> None:
        """Write how many lines were lost, at the place where they are missing."""
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            with suppress(OSError):  # we are leaving
                self.put([self.line_of(lost).encode()])

    def close(self) -> None:
        """Do nothing: the descriptor is not ours to close."""

    def lose(self, count: int) -> None:
        """Count lines that are not written."""
        COUNTED.drop(count)
        with self._lock:
            self._lost += count

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:  # somebody else has made it non-blocking
            leaving = self.leaving.is_set()
            wait = select.poll()
            wait.register(self.fd, select.POLLOUT)
            if not wait.poll(READER_SECONDS * 1000) and leaving:
                raise
        except OSError:
            if self.leaving.wait(RETRY_SECONDS):
                raise
        return 0


@contextmanager
def taken_over() -> Iterator[None]:
    """Replace `sys.stderr` meanwhile by one that can hang nobody. At the end, wait a little for what is still
    to be written. If it leads to no descriptor, leave it as it is.
    """
    before, ours = sys.stderr, _in_place_of(sys.stderr)
    sys.stderr = ours
    try:
        yield
    except BaseException:
        # Python will still write of this error, and that must not hang either.
        if isinstance(ours, StandardError):
            atexit.register(ours.leave, LEAVE_SECONDS)
        raise
    if isinstance(ours, StandardError):
        ours.leave(LEAVE_SECONDS)
    sys.stderr = before


def _in_place_of(stream: TextIO | None) -> Any:
    if stream is None:  # the shell has closed it: 2>&-
        return Nobody()
    try:
        return StandardError(stream.fileno(), stream.encoding)
    except (OSError, ValueError):
        return stream
