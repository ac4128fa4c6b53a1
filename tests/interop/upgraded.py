"""A gateway that newer processes take the place of: who serves now, and what all of them have said."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from .gateways import Configured
from .processes import Finished, Process, attempt, wait_until


def lives(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Upgraded(Configured):
    """It has a pidfile, by which it is known who serves; `end` ends all of them."""

    def __init__(self, workdir: Path, text: str, *, base: str = "") -> None:
        self.pidfile = workdir / "g.pid"
        super().__init__(workdir, text, base=base)
        self.all = [self.pid]

    def started(self) -> Process:
        """Start the first."""
        config, file = self.config, self.pidfile
        return Process(
            *(sys.executable, "-m", "gateway", "serve", "--config", config, "--pidfile", file)
        )

    @property
    def pid(self) -> int:
        """Who serves."""
        wait_until(lambda: self.pidfile.exists() and self.pidfile.read_text().strip(), "it serves")
        return int(self.pidfile.read_text())

    def upgrade(self, *options: str) -> Finished:
        """Ask for an upgrade, and note who serves afterwards."""
        done = attempt(
            *(sys.executable, "-m", "gateway", "upgrade"), "--socket", self.socket, *options
        )
        if done.status == 0 and self.pid not in self.all:
            self.all.append(self.pid)
        return done

    def upgraded(self, *options: str) -> int:
        """Upgrade, which has to be done; give who served before."""
        before = self.pid
        done = self.upgrade(*options)
        assert done.status == 0, f"{done}\n{self.log}"
        assert self.pid != before
        return before

    def ended(self, pid: int) -> None:
        """Wait until one of its processes has ended."""
        wait_until(lambda: not lives(pid), f"process {pid} has ended")

    def end(self) -> str:
        """End all of it in good order, and give what it has said."""
        for pid in reversed(self.all):
            if lives(pid):
                os.kill(pid, signal.SIGTERM)
        for pid in self.all:
            self.ended(pid)
        for word in ("Traceback", "internal error"):
            assert word not in self.log, self.log
        return self.log

    def put_away(self) -> None:
        """End what a failed test has left, and print what all have said."""
        left = [pid for pid in self.all if lives(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if left:
            print(f"--- processes {left} had to be killed\n{self.log}")
