"""Children that end when we do, however we end, and how much memory they hold."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_SECONDS = 15.0
STOP_SECONDS = 5.0
_POLL_SECONDS = 0.002
_PR_SET_PDEATHSIG = 1
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)


class Broken(Exception):
    """A measurement or a contestant that did not work; the text is for the report."""


class Child:
    """One server in the foreground, listening on a port of the loopback, or on a Unix socket."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, log: Path, *, unix: Path | None = None
    ) -> None:
        self.name = name
        self.port = port
        self._unix = unix
        self._log = log
        began = time.perf_counter()
        with log.open("ab") as output:
            # A session of its own: Ctrl-C reaches us alone, and we end it in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        try:
            self._await_listening(began)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def uri(self) -> str:
        if self._unix is not None:
            return f"nbd+unix:///?socket={self._unix}"
        return f"nbd://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, time to finish, then SIGKILL."""
        if not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The end of what it printed."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-8:]) or "(it printed nothing)"

    def _await_listening(self, began: float) -> None:
        while time.perf_counter() - began < START_SECONDS:
            if not self.running:
                status = self._process.returncode
                raise Broken(f"{self.name} ended with status {status}:\n{self.last_words()}")
            with contextlib.suppress(OSError):
                self._connect()
                return
            time.sleep(_POLL_SECONDS)
        raise Broken(f"{self.name} does not listen after {START_SECONDS:g} s:\n{self.last_words()}")

    def _connect(self) -> None:
        if self._unix is None:
            socket.create_connection(("127.0.0.1", self.port)).close()
            return
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self._unix))


def run_tool(command: Sequence[str], seconds: float) -> str:
    """The standard output of a tool that succeeds in time."""
    # A group of its own, because fio forks: when it hangs or we are interrupted, all of it ends.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    ) as tool:
        try:
            output, complaints = tool.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tool.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Broken(f"{command[0]} hung for {seconds:g} s") from None
            raise
    if tool.returncode:
        lines = (complaints or output).strip().splitlines()
        raise Broken(f"{command[0]} failed: {' / '.join(lines[-3:])}")
    return output


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_mib(pid: int) -> float:
    """VmRSS of a process and all its descendants."""
    return sum(_resident_kib(member) for member in _family(pid)) / 1024


def processor_seconds(pid: int) -> float:
    """What a process, its threads and its children have used so far, those that have ended among them; to a
    tick (10 ms).
    """
    return sum(map(_ticks, _family(pid))) / _TICKS_PER_SECOND


def idle_and_all_seconds() -> tuple[float, float]:
    """How long the machine's processors have had nothing to do, and how long they have been there."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return (ticks[3] + ticks[4]) / _TICKS_PER_SECOND, sum(ticks) / _TICKS_PER_SECOND


def allow_many_files() -> None:
    """A thousand sessions are two thousand sockets in a gateway; children inherit what is set here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _family(pid: int) -> Iterator[int]:
    yield pid
    # A process may end while we look at it; then it holds nothing.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _resident_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def _ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        # What follows the name, which may have blanks in it: the state, and from the twelfth on the times of
        # this process in user and kernel mode, and those of children that it has waited for (proc_pid_stat(5)).
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:15]))
    return 0


def _end_with_parent() -> None:
    # For the day that we are killed outright and no handler of ours runs.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
