"""Start, watch and end real programs: nothing sleeps for luck, nothing outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.tools.patience import HANG_SECONDS

# Between two looks at something that offers no event to wait for (a file, /proc).
LOOK_AGAIN_SECONDS = 0.005

ENVIRONMENT: Mapping[str, str] = {
    **os.environ,
    "LC_ALL": "C.UTF-8",
    # nbd-client and haproxy are in sbin, which is not on every user's path.
    "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
}


def wait_until(predicate: Callable[[], object], what: str, seconds: float = HANG_SECONDS) -> None:
    """Return as soon as `predicate` holds; fail in the words of `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    never = threading.Event()
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain until {what}")
        never.wait(LOOK_AGAIN_SECONDS)


def at_rest(*pids: int) -> None:
    """Wait until programs that speak to each other wait for somebody else: all their threads sleep, and none
    has run while that was looked at. Bytes that are on their way would have woken one.
    """

    def look() -> dict[str, str]:
        tasks = [each for pid in pids for each in Path(f"/proc/{pid}/task").iterdir()]
        return {
            str(task): (task / "stat").read_text().rpartition(")")[2].split()[0]
            + (task / "schedstat").read_text()
            for task in tasks
        }

    def rests() -> bool:
        before = look()
        return all(each.startswith("S") for each in before.values()) and look() == before

    wait_until(rests, "all wait for somebody else")


def shown(command: Sequence[str]) -> str:
    """A command for people: some of ours have arguments of kilobytes."""
    return " ".join(word if len(word) < 200 else f"{word[:80]}..." for word in command)


class Finished:
    """How a program ended, and all that it said."""

    def __init__(self, command: Sequence[str], status: int, out: bytes, err: bytes) -> None:
        self.command = list(command)
        self.status = status
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    def __str__(self) -> str:
        return (
            f"{shown(self.command)}\nexit status {self.status}\n"
            f"--- stdout\n{self.out}--- stderr\n{self.err}"
        )


def attempt(*command: str | Path, seconds: float = HANG_SECONDS) -> Finished:
    """Run a program to its end, whichever that is; only taking too long is a failure here."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            env=ENVIRONMENT,
            check=False,
        )
    except subprocess.TimeoutExpired as hang:
        raise AssertionError(
            f"still running after {seconds:g} s: {shown(words)}\n"
            f"--- stdout\n{hang.stdout!r}\n--- stderr\n{hang.stderr!r}"
        ) from None
    return Finished(words, done.returncode, done.stdout, done.stderr)


def run(*command: str | Path, seconds: float = HANG_SECONDS) -> str:
    """Run a program that has to succeed, and return what it printed."""
    done = attempt(*command, seconds=seconds)
    assert done.status == 0, str(done)
    return done.out


class Process:
    """A program in the background, its output kept in memory."""

    # All of one test, so that none is left behind when the test fails halfway.
    started: ClassVar[list[Process]] = []

    def __init__(self, *command: str | Path) -> None:
        self.command = [str(word) for word in command]
        self._log = os.memfd_create("output")
        weakref.finalize(self, os.close, self._log)
        # A process group of its own: a Ctrl-C at the terminal is for pytest, which then ends
        # its children in order.
        self._child = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            process_group=0,
        )
        Process.started.append(self)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def output(self) -> str:
        """Everything that the program printed so far, on both streams."""
        # pread: the file position is the child's.
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, seconds: float = HANG_SECONDS) -> int:
        """The exit status, once the program has ended by itself."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {seconds:g} s: {' '.join(self.command)}\n{self.output}"
            ) from None

    def stop(self, seconds: float = HANG_SECONDS) -> int:
        """Ask the program to end; the status is that with which it did, also if long ago."""
        if self.running:
            self.signal(signal.SIGTERM)
            try:
                return self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._child.wait()

    def kill(self) -> None:
        """End the program without asking it."""
        if self.running:
            self.signal(signal.SIGKILL)
        self._child.wait()

    def ready_when(self, predicate: Callable[[], object], what: str) -> None:
        """Wait for a program that may also die of its own mistake meanwhile."""
        wait_until(lambda: predicate() or not self.running, what)
        assert self.running, f"{' '.join(self.command)} ended at once:\n{self.output}"

    def descriptors(self) -> int:
        """How many files and sockets it holds open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self.command[0]} is gone")


def listening(uri: str) -> bool:
    """Does anyone listen there? From the kernel's tables.

    Connecting would say it too, and would be the one connection of a server that serves only one.
    """
    parts = urlsplit(uri)
    if "+unix" in parts.scheme:
        path = parse_qs(parts.query)["socket"][0]
        rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
        # Num RefCount Protocol Flags Type St Inode Path, where this flag is __SO_ACCEPTCON.
        return any(int(row[3], 16) & 0x10000 and row[7:] == [path] for row in rows)
    port = f":{parts.port or 10809:04X}"
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    rows = (
        row.split()
        for table in tables
        if table.exists()
        for row in table.read_text().splitlines()[1:]
    )
    return any(row[1].endswith(port) and row[3] == "0A" for row in rows)
