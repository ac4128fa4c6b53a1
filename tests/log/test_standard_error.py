"""Standard error on descriptors that fill up, hang, fail and come back."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest

from gateway.log import standard_error
from gateway.log.standard_error import (
    MAX_PARTIAL_CHARACTERS,
    StandardError,
    _Descriptor,
    taken_over,
)
from gateway.log.writer import MAX_BYTES, Writer
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def nobody_writes_later(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits for a descriptor when its test ends must not be written to what has its number then."""
    made: list[_Descriptor] = []

    def descriptor(fd: int) -> _Descriptor:
        made.append(_Descriptor(fd))
        return made[-1]

    monkeypatch.setattr(standard_error, "_Descriptor", descriptor)
    yield
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for each in made:
        each.fd = nowhere


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, int]]:
    """A pipe: its reader, and the descriptor to write to."""
    reader, writer = os.pipe()
    with FileIO(reader, "r") as ours, FileIO(writer, "w"):
        yield ours, writer


class Reader(threading.Thread):
    """Reads a descriptor to its end, or until enough has come."""

    def __init__(self, fd: int, until: bytes = b"the end\n") -> None:
        super().__init__(daemon=True)
        self._fd = fd
        self._until = until
        self.data = b""
        self.start()

    def run(self) -> None:
        while not self.data.endswith(self._until):
            data = os.read(self._fd, 1 << 16)
            if not data:
                return
            self.data += data

    def all(self) -> bytes:
        self.join(HANG_SECONDS)
        assert not self.is_alive(), self.data[-1000:]
        return self.data


def test_text_is_written_by_whole_lines(pipe: tuple[FileIO, int]) -> None:
    reader, fd = pipe
    ours = StandardError(fd)
    assert ours.write("one\ntwo ") == 8
    ours.flush()
    assert ours._writer.flush(HANG_SECONDS)
    assert reader.read(100) == b"one\n"
    print("three", file=ours)
    assert ours._writer.flush(HANG_SECONDS)
    assert reader.read(100) == b"two three\n"
    ours.write("four")
    assert ours.leave(HANG_SECONDS)
    assert reader.read(100) == b"four"
    assert ours.fileno() == fd
    assert ours.writable()
    assert not ours.isatty()


def test_a_line_without_an_end_is_not_kept_for_ever(pipe: tuple[FileIO, int]) -> None:
    read = Reader(pipe[0].fileno(), b"y")
    ours = StandardError(pipe[1])
    ours.write("x" * MAX_PARTIAL_CHARACTERS)
    assert ours._writer._given == 0
    ours.write("y")
    assert read.all() == b"x" * MAX_PARTIAL_CHARACTERS + b"y"


def test_any_text_can_be_written(pipe: tuple[FileIO, int]) -> None:
    ours = StandardError(pipe[1], "ascii")
    ours.write("\udcff\u20ac\n")
    assert ours.leave(HANG_SECONDS)
    assert pipe[0].read(100) == b"\\udcff\\u20ac\n"


def numbered(data: bytes) -> list[int]:
    """The numbers of whole lines; nothing else may be there but the count of those lost."""
    return [int(line) for line in data.splitlines() if b"lost" not in line]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_sleeps_hangs_nobody(pipe: tuple[FileIO, int], blocking: bool) -> None:
    """Whoever shares the descriptor with us may have made it so, and it stays so."""
    reader, fd = pipe
    os.set_blocking(fd, blocking)
    ours = StandardError(fd)
    count = 2 * MAX_BYTES // 100
    for number in range(count):
        ours.write(f"{number:99}\n")
    read = Reader(reader.fileno(), b"log lines lost\n")
    data = read.all()
    [lost] = map(int, re.findall(rb"(\d+) log lines lost\n", data))
    assert lost > 0
    assert numbered(data) == list(range(count - lost))
    ours.write(f"{count}\n")
    assert ours.leave(HANG_SECONDS)
    assert reader.read(1000) == b"%d\n" % count
    assert os.get_blocking(fd) is blocking


def test_a_fifo_that_gets_another_reader(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    ours = StandardError(fd)
    try:
        ours.write("first\n")
        assert ours._writer.flush(HANG_SECONDS)
        assert os.read(first, 100) == b"first\n"
        os.close(first)
        for number in range(1000):
            ours.write(f"{number}\n")
        second = os.open(path, os.O_RDONLY)
        try:
            assert numbered(Reader(second, b"\n999\n").all()) == list(range(1000))
        finally:
            os.close(second)
    finally:
        os.close(fd)


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full: what goes beyond is written in part, and then not at all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_was_full_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ours = StandardError(fd)
    tried = threading.Event()
    tries = ours._sink.leaving.wait

    def wait(seconds: float) -> bool:
        tried.set()
        return tries(seconds)

    ours._sink.leaving.wait = wait  # type: ignore[method-assign, assignment] # to see it wait
    try:
        with no_file_longer_than(1000):
            for number in range(1000):
                ours.write(f"{number}\n")
            assert tried.wait(HANG_SECONDS)
            assert path.stat().st_size == 1000
        assert ours._writer.flush(HANG_SECONDS)
        assert numbered(path.read_bytes()) == list(range(1000))
    finally:
        os.close(fd)


def test_leaving_gives_up_what_cannot_be_written() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        ours = StandardError(fd)
        ours.write("one\n")
        assert ours.leave(HANG_SECONDS)  # it waits for the thread, which would try again for ever
        ours.write("two\n")
        assert ours.leave(HANG_SECONDS)
    finally:
        os.close(fd)


def test_leaving_does_not_wait_for_a_reader_that_sleeps(pipe: tuple[FileIO, int]) -> None:
    ours = StandardError(pipe[1])
    ours.write("x" * (MAX_BYTES // 2) + "\n")
    assert not ours.leave(0)
    ours.write("what comes later hangs nobody either\n")
    assert Reader(pipe[0].fileno(), b"either\n").all().startswith(b"xxx")


def test_leaving_gives_up_a_reader_that_sleeps_where_it_need_not_wait(
    pipe: tuple[FileIO, int],
) -> None:
    """Somebody has made the descriptor non-blocking, so the thread itself can give up."""
    os.set_blocking(pipe[1], False)
    ours = StandardError(pipe[1])
    ours.write("x" * (MAX_BYTES // 2) + "\n")
    assert ours.leave(HANG_SECONDS)


def test_leaving_waits_for_a_reader_that_is_awake(
    pipe: tuple[FileIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_error, "READER_SECONDS", HANG_SECONDS)  # on a slow machine, too
    os.set_blocking(pipe[1], False)
    ours = StandardError(pipe[1])
    read = Reader(pipe[0].fileno(), b"end\n")
    ours.write("x" * (MAX_BYTES // 2) + "end\n")
    assert ours.leave(HANG_SECONDS)
    assert len(read.all()) == MAX_BYTES // 2 + 4


def test_leaving_waits_for_other_files(pipe: tuple[FileIO, int]) -> None:
    class Sleeper:
        def __init__(self) -> None:
            self.gate = threading.Event()
            self.there: list[bytes] = []

        def put(self, lines: Sequence[bytes]) -> int:
            assert self.gate.wait(HANG_SECONDS)
            self.there += lines
            return len(lines)

        def drained(self) -> None:
            pass

        def close(self) -> None:
            pass

    ours, sink = StandardError(pipe[1]), Sleeper()
    other = Writer(sink, "another file")
    assert other.write(b"line\n")
    ours.write("log\n")
    assert not ours.leave(0)
    threading.Timer(0.01, sink.gate.set).start()
    assert ours.leave(HANG_SECONDS)
    assert sink.there == [b"line\n"]
    other.retire()


# --- In place of Python's own


def test_it_is_put_back(pipe: tuple[FileIO, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(pipe[1]), "w") as before:
        monkeypatch.setattr(sys, "stderr", before)
        with taken_over():
            assert type(sys.stderr) is not type(before)
            print("one", file=sys.stderr)
        assert sys.stderr == before
    assert pipe[0].read(100) == b"one\n"


def test_without_a_descriptor_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with taken_over():
        assert sys.stderr is stream


def test_where_there_is_none_nothing_is_said_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with taken_over():
        print("nobody reads this", file=sys.stderr)
    assert sys.stderr is None
    assert capsys.readouterr().out == ""


ENDS = {
    "a traceback": "raise ValueError",
    "a destructor": "class D:\n  def __del__(self): raise ValueError\nD()",
    "a warning": "import warnings; warnings.warn('w')",
    "Python's log": "import logging; logging.error('e')",
    "an exit": "sys.exit(1)",
    "nothing": "",
}


@pytest.mark.parametrize("stderr", ["/dev/full", "a reader that sleeps", "nobody"])
@pytest.mark.parametrize("says", ENDS)
def test_a_process_ends_whoever_does_not_read(
    pipe: tuple[FileIO, int], stderr: str, says: str
) -> None:
    reader, fd = pipe
    if stderr == "nobody":
        reader.close()
    elif stderr == "/dev/full":
        with FileIO(stderr, "w") as full:
            os.dup2(full.fileno(), fd)
    block = "".join(f"\n  {line}" for line in ENDS[says].splitlines())
    program = (
        "import sys\nfrom gateway.log.standard_error import taken_over\n"
        f"with taken_over():\n  sys.stderr.write('x' * 200_000 + '\\n'){block}\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=fd) as process:
        status = process.wait(HANG_SECONDS)
    assert status == (says in ("a traceback", "an exit"))
