"""Writers, with sinks that hang and fail when the test says so."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence

import pytest
import trio

from gateway.log.writer import BATCH_BYTES, MAX_BYTES, MAX_LINES, Outcome, Writer
from tests.tools.patience import HANG_SECONDS


class Sink:
    """Keeps what it is given, if the gate is open."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.batches: list[int] = []
        self.drains: list[int] = []
        self.open = False
        self.fails = False
        self.at_most = MAX_LINES
        self.reached = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def put(self, lines: Sequence[bytes]) -> int:
        self.reached.release()
        assert self.gate.wait(HANG_SECONDS)
        if self.fails:
            raise OSError(errno.ENOSPC, "full")
        self.open = True
        lines = lines[: self.at_most]
        self.lines += lines
        self.batches.append(sum(map(len, lines)))
        return len(lines)

    def drained(self) -> None:
        self.drains.append(len(self.lines))

    def close(self) -> None:
        self.open = False


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.gate.set()


@pytest.fixture
def writer(sink: Sink) -> Iterator[Writer]:
    made = Writer(sink, "test")
    yield made
    sink.gate.set()
    made.retire()
    assert made.flush(HANG_SECONDS)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d\n" % number for number in range(start, end)]


def hang(sink: Sink, writer: Writer) -> None:
    """Have the writer's thread wait in its sink, with one line."""
    sink.gate.clear()
    assert writer.write(b"hangs\n")
    assert sink.reached.acquire(timeout=HANG_SECONDS)


def test_lines_are_written_in_their_order(sink: Sink, writer: Writer) -> None:
    for line in numbers(0, 1000):
        assert writer.write(line)
    assert writer.flush(HANG_SECONDS)
    assert sink.lines == numbers(0, 1000)
    assert sink.drains[-1] == 1000


def test_a_sink_may_take_less_than_it_is_given(sink: Sink, writer: Writer) -> None:
    sink.at_most = 3
    for line in numbers(0, 100):
        assert writer.write(line)
    assert writer.flush(HANG_SECONDS)
    assert sink.lines == numbers(0, 100)


def test_what_is_handed_over_at_once_is_bounded(sink: Sink, writer: Writer) -> None:
    hang(sink, writer)
    line = b"x" * 1000
    while writer.write(line):
        pass
    sink.gate.set()
    assert writer.flush(HANG_SECONDS)
    assert max(sink.batches) < BATCH_BYTES + len(line)


@pytest.mark.parametrize(
    ("line", "room"), [(b"\n", MAX_LINES), (b"x" * 1024, MAX_BYTES // 1024 - 1)]
)
def test_a_sink_that_hangs_holds_up_nobody_and_the_queue_is_bounded(
    sink: Sink, writer: Writer, line: bytes, room: int
) -> None:
    hang(sink, writer)
    taken = [writer.write(line) for _ in range(room + 10)]
    assert taken == [True] * room + [False] * 10
    assert not writer.flush(0)
    sink.gate.set()
    assert writer.flush(HANG_SECONDS)
    assert len(sink.lines) == 1 + room
    assert writer.write(b"after\n")
    assert writer.flush(HANG_SECONDS)
    assert sink.lines[-1] == b"after\n"


def test_once_full_it_takes_nothing_until_it_is_empty(sink: Sink, writer: Writer) -> None:
    hang(sink, writer)
    while writer.write(b"x" * 1024):
        pass
    assert not writer.write(b"")
    before = len(sink.drains)
    sink.gate.set()
    assert writer.flush(HANG_SECONDS)
    assert writer.write(b"after\n")
    assert writer.flush(HANG_SECONDS)
    # What was lost was missing before this line, and there was an occasion to say so there.
    assert len(sink.lines) - 1 in sink.drains[before:]


def test_a_line_that_never_fits_leaves_room_for_others(sink: Sink, writer: Writer) -> None:
    assert not writer.write(b"x" * (MAX_BYTES + 1))
    assert writer.flush(HANG_SECONDS)
    assert writer.write(b"after\n")
    assert writer.flush(HANG_SECONDS)
    assert sink.lines == [b"after\n"]


def test_who_writes_in_the_middle_of_writing(sink: Sink, writer: Writer) -> None:
    class Nested(bytes):
        """As a destructor that complains while a line is being moved."""

        def __len__(self) -> int:
            assert writer.write(b"inner\n")
            return super().__len__()

    assert writer.write(Nested(b"outer\n"))
    assert writer.flush(HANG_SECONDS)
    assert sink.lines.count(b"outer\n") == 1
    assert writer._given == writer._written


def test_many_threads_write(sink: Sink, writer: Writer) -> None:
    def write(first: int) -> None:
        for line in numbers(first, first + 500):
            assert writer.write(line)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(HANG_SECONDS)
    assert sorted(sink.lines) == sorted(numbers(0, 4000))


def test_without_a_thread_nothing_is_taken(
    sink: Sink, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        assert not writer.write(b"lost\n")
        assert writer.flush(HANG_SECONDS)
    assert writer.write(b"there\n")
    assert writer.flush(HANG_SECONDS)
    assert sink.lines == [b"there\n"]


def test_who_retires_keeps_nothing_open(sink: Sink, writer: Writer) -> None:
    assert writer.write(b"before\n")
    assert writer.flush(HANG_SECONDS)
    assert sink.open
    writer.retire()
    assert writer.flush(HANG_SECONDS)
    ended(writer)
    assert not sink.open
    assert writer.write(b"after\n")
    assert writer.flush(HANG_SECONDS)
    ended(writer)
    assert (sink.open, sink.lines) == (False, [b"before\n", b"after\n"])


def test_the_thread_goes_when_nothing_comes(
    sink: Sink, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.log.writer.IDLE_SECONDS", 0)
    for line in (b"first\n", b"second\n"):
        assert writer.write(line)
        ended(writer)
        assert writer._thread is None
    assert sink.lines == [b"first\n", b"second\n"]


def ended(writer: Writer) -> None:
    """Wait for the writer's thread."""
    thread = writer._thread
    if thread is not None:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()


# --- Who waits for a line


async def test_who_waits_for_a_line_is_told(sink: Sink, writer: Writer) -> None:
    there = Outcome()
    assert writer.write(b"there\n", there)
    await there.wait()
    assert sink.lines == [b"there\n"]
    await there.wait()
    sink.fails = True
    never = Outcome()
    assert writer.write(b"never\n", never)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            await never.wait()


async def test_who_waits_may_give_up(sink: Sink, writer: Writer) -> None:
    hang(sink, writer)
    there = Outcome()
    assert writer.write(b"there\n", there)
    with trio.move_on_after(0) as scope:
        await there.wait()
    assert scope.cancelled_caught
    sink.gate.set()
    await there.wait()
    assert sink.lines == [b"hangs\n", b"there\n"]


def test_who_has_ended_is_told_nothing(sink: Sink, writer: Writer) -> None:
    hang(sink, writer)
    there = Outcome()

    async def wait() -> None:
        assert writer.write(b"there\n", there)
        with trio.move_on_after(0):
            await there.wait()

    trio.run(wait)
    sink.gate.set()
    assert writer.flush(HANG_SECONDS)
    assert sink.lines[-1] == b"there\n"
