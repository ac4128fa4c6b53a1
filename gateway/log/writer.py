"""Writes text in a thread of its own, so that whoever writes does not wait for whoever reads.

Any file may hang: a pipe whose reader sleeps, a terminal that is held by Ctrl-S, a network file system. Nothing
in the kernel prevents that: O_NONBLOCK means nothing to a regular file, and on a descriptor that we inherited
it would hold for all others who have it, too (open(2), "open file description"). So lines go through a queue to
a thread. There is one for each file, because a file that hangs must not hold up another. The queue has a bound:
a line for which there is no room is not taken, and the caller is told so and counts it. Once full, the queue
takes nothing until it is empty. So lines are missing at one place only, and can be reported there.

The thread ends when nothing comes, and the next line starts another. While a process has a second thread, even
one that sleeps, each system call that names a descriptor costs more (the kernel has to count who uses it), and
so does the allocator. Single requests are relayed three to six percent slower for it.

`Writer.write` may be called at any moment by any thread, also by a destructor or a warning in the middle of
another `write` of the same thread. So the lock is one that its holder may take again, such a call never finds
or leaves the counts wrong, and the queue is a `SimpleQueue`, which is made for that. The lock is held only to
move a line, never while a file is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol
from weakref import WeakSet

MAX_BYTES = 1 << 20
"""How many bytes may wait to be written to one file: half a minute of a log at its highest rate, in which a
collector of logs restarts; and little beside what a session may hold."""

MAX_LINES = 10_000
"""How many lines may wait likewise: short lines take more memory than their bytes."""

BATCH_BYTES = 64 << 10
"""About how much is written to a file at once: what a pipe holds."""

IDLE_SECONDS = 1
"""How long a thread waits for the next line before it ends: to begin one takes some 100 µs, as much as a few
lines do."""

LEAVE_SECONDS = 1
"""How long the end of the process waits for what is still to be written: a supervisor waits for us."""

Told = Callable[[OSError | None], None]
"""Called in the writer's thread when a line is written (None), or with the reason why it never will be."""


class Sink(Protocol):
    """Where a writer's lines go. The writer's thread calls all of this, and it may take its time."""

    def put(self, lines: Sequence[bytes]) -> int:
        """Write one or more of the lines; give how many were written. Raises `OSError` if none of them ever
        will be.
        """
        ...

    def drained(self) -> None:
        """For now there is nothing more to write: say how many lines were lost, if any were."""

    def close(self) -> None:
        """Keep nothing open until the next line comes."""


class _Line(NamedTuple):
    data: bytes
    given: int
    """`Writer._given` with this line included."""
    told: Told | None


class Writer:
    """Writes lines to a sink, in the order in which they come. It has a thread while there are any."""

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self._name = name
        self._lock = threading.RLock()
        # None wakes the thread. An Event is set when all that is before it in the queue is written.
        self._queue: SimpleQueue[_Line | threading.Event | None] = SimpleQueue()
        # The difference is what waits. We do not count that up and down: if a line came in the middle of
        # another, the count would be off for ever.
        self._given = self._written = 0
        self._full = False
        self._retired = False
        self._thread: threading.Thread | None = None
        _writers.add(self)

    def write(self, line: bytes, told: Told | None = None) -> bool:
        """Have a line written; say whether there was room for it. Never waits, and never raises."""
        with self._lock:
            if self._full:
                return False
            given = self._given + len(line)
            self._full = given - self._written > MAX_BYTES or self._queue.qsize() >= MAX_LINES
            if not self._wakes():
                self._full = False
                return False
            if self._full:
                self._queue.put(None)
                return False
            self._given = given
            self._queue.put(_Line(line, given, told))
            return True

    def flush(self, seconds: float) -> bool:
        """Wait, for no more than `seconds`, until all that was given is written; say whether it is."""
        mark = threading.Event()
        with self._lock:
            if self._thread is None:
                return True
            self._queue.put(mark)
        return mark.wait(seconds)

    def retire(self) -> None:
        """Keep nothing open while there is nothing to write: from now on hardly anything will come."""
        with self._lock:
            self._retired = True
            if self._thread is not None:
                self._queue.put(None)

    def _wakes(self) -> bool:
        """See to it that there is a thread, and say whether there is: the system may have no more of them."""
        if self._thread is not None and self._thread.is_alive():
            return True
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    # --- The thread

    def _run(self) -> None:
        while True:
            try:
                lines, marks = self._next()
            except Empty:
                with self._lock:
                    if self._queue.empty():
                        self._thread = None
                        return
                continue
            self._put(lines)
            with self._lock:
                drained = self._queue.empty()
                if drained:
                    self._full = False
            if drained:
                self._sink.drained()
            retires = drained and self._retired
            if retires:
                self._sink.close()
            for mark in marks:
                mark.set()
            with self._lock:
                if retires and self._queue.empty():
                    self._thread = None
                    return

    def _next(self) -> tuple[list[_Line], list[threading.Event]]:
        """Wait for something, and take what has come. Raises `Empty` if nothing comes for `IDLE_SECONDS`."""
        lines: list[_Line] = []
        marks: list[threading.Event] = []
        size = 0
        item = self._queue.get(timeout=IDLE_SECONDS)
        while True:
            if isinstance(item, _Line):
                lines.append(item)
                size += len(item.data)
            elif item is not None:
                marks.append(item)
            if size >= BATCH_BYTES:
                return lines, marks
            try:
                item = self._queue.get_nowait()
            except Empty:
                return lines, marks

    def _put(self, lines: list[_Line]) -> None:
        while lines:
            failed: OSError | None = None
            try:
                count = self._sink.put([line.data for line in lines])
            except OSError as error:
                count, failed = len(lines), error
            done, lines = lines[:count], lines[count:]
            self._written = done[-1].given
            for line in done:
                if line.told is not None:
                    line.told(failed)


_writers: WeakSet[Writer] = WeakSet()


def flush_all(seconds: float, *, but: Writer | None = None) -> bool:
    """Wait, for no more than `seconds`, until all that any writer was given is written; say whether it is."""
    until = time.monotonic() + seconds
    writers = [writer for writer in list(_writers) if writer is not but]
    return all(writer.flush(max(0, until - time.monotonic())) for writer in writers)


class Outcome:
    """Lets a task wait for a line. It is the `told` of that line's `Writer.write`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known = False
        self._error: OSError | None = None
        self._wake: Callable[[], None] | None = None

    def __call__(self, error: OSError | None) -> None:
        """The line is written, or never will be."""
        with self._lock:
            self._known, self._error = True, error
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    async def wait(self) -> None:
        """Wait, in one task at a time, until the line is written. Raises `OSError` if it never will be."""
        import trio  # only here, so that a process without Trio need not import it

        event, token = trio.Event(), trio.lowlevel.current_trio_token()

        def wake() -> None:
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(event.set)

        with self._lock:
            known = self._known
            if not known:
                self._wake = wake
        if known:
            await trio.lowlevel.checkpoint()
        else:
            await event.wait()
        if self._error is not None:
            raise self._error
