"""Real servers that are killed: those that we start, and one that the gateway starts."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio

from tests.interop.processes import Process, listening
from tests.interop.servers import free_port, unix_uri
from tests.interop.upgraded import lives
from tests.tools.cutter import Address
from tests.tools.kill_plan import COARSE_BYTES, Plan
from tests.tools.patience import HANG_SECONDS
from tests.tools.stamps import BLOCK_BYTES, Broken, stamps_of

TERM_AGAIN_SECONDS = 1.0
"""qemu-nbd does not hear a SIGTERM that comes when it listens already and has not begun to run."""

TERM_SECONDS = 20
"""How long a server may take to go in good order: nbdkit waits until its clients have left."""


class Killed(Protocol):
    """A server that is killed."""

    address: Address
    """Where it is."""
    said: str
    """How the configuration has it."""

    async def start(self) -> None:
        """Start it; when this returns it listens."""

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""

    async def terminate(self) -> None:
        """SIGTERM; when this returns it is dead. Raises `Broken` if its clients have not let it go."""

    async def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""


class Victim:
    """One that we start."""

    def __init__(self, plan: Plan, workdir: Path) -> None:
        self.disk = workdir / "disk"
        with self.disk.open("wb") as file:
            file.truncate(plan.blocks * BLOCK_BYTES)
        self._path = workdir / "server"
        port = free_port() if plan.tcp else 0
        self.uri = f"nbd://127.0.0.1:{port}" if plan.tcp else unix_uri(self._path)
        self.said = f'uri = "{self.uri}"'
        self.address: Address = ("127.0.0.1", port) if plan.tcp else self._path
        if plan.server == "nbdkit":
            where = ("-i", "127.0.0.1", "-p", str(port)) if plan.tcp else ("-U", str(self._path))
            coarse = ["--filter=blocksize-policy"] if plan.coarse else []
            self._command = ["nbdkit", "--foreground", *where, *coarse, "--filter=cache"]
            delay = [f"delay-write={plan.write_delay_ms}ms"] if plan.write_delay_ms else []
            if delay:
                self._command.append("--filter=delay")
            self._command += ["file", str(self.disk), "cache=writeback", "cache-on-read=false"]
            self._command += delay
            if plan.coarse:
                self._command += [f"blocksize-minimum={COARSE_BYTES}"]
                self._command += [f"blocksize-preferred={COARSE_BYTES}"]
                self._command += ["blocksize-error-policy=error"]
        else:
            where = ("-b", "127.0.0.1", "-p", str(port)) if plan.tcp else ("-k", str(self._path))
            self._command = ["qemu-nbd", "--persistent", "--shared=0", "--cache=writeback"]
            self._command += ["--discard=unmap", "-f", "raw", *where, str(self.disk)]
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it; when this returns it listens."""
        self._path.unlink(missing_ok=True)
        process = self._process = Process(*self._command)
        await listens(process, self.uri)

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""
        if self._process is not None:
            self._process.kill()
            Process.started.remove(self._process)
            self._process = None

    async def terminate(self) -> None:
        """SIGTERM; when this returns it is dead. Raises `Broken` if its clients have not let it go."""
        assert self._process is not None
        with trio.move_on_after(TERM_SECONDS) as limit:
            while self._process.running:
                self._process.signal(signal.SIGTERM)
                with trio.move_on_after(TERM_AGAIN_SECONDS):
                    while self._process.running:
                        await trio.sleep(0.002)
        self.kill()
        if limit.cancelled_caught:
            raise Broken(f"the server has not gone in {TERM_SECONDS} s")

    async def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            self._process.signal(signal.SIGCONT)

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""
        return stamps_of(self.disk.read_bytes())


class Child:
    """One that the gateway starts, and starts again: `command`."""

    def __init__(self, plan: Plan, workdir: Path) -> None:
        self.disk = workdir / "disk"
        with self.disk.open("wb") as file:
            file.truncate(plan.blocks * BLOCK_BYTES)
        self.address: Address = workdir / "none"
        words = ["qemu-nbd", "-t", "-e", "0", "-x", "", "--cache=writeback", "--discard=unmap"]
        self.said = f"command = {json.dumps([*words, '-f', 'raw', str(self.disk)])}"

    def _numbers(self) -> list[int]:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (each / "cmdline").read_bytes().split(b"\0")
                if words[0] == b"qemu-nbd" and str(self.disk).encode() in words:
                    found.append(int(each.name))
        return found

    async def start(self) -> None:
        """The gateway does that."""

    def kill(self) -> None:
        """kill -9; when this returns it is dead."""
        killed = self._numbers()
        for number in killed:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        while any(map(lives, killed)):  # that takes no time
            pass

    async def terminate(self) -> None:
        """There is no such run."""
        raise NotImplementedError

    async def stop(self, seconds: float) -> None:
        """Nor such."""
        raise NotImplementedError

    def stamps(self) -> list[int]:
        """What is on the disk. Raises `Broken`."""
        return stamps_of(self.disk.read_bytes())


async def listens(process: Process, uri: str) -> None:
    """Wait until somebody listens there."""
    with trio.fail_after(HANG_SECONDS):
        while not listening(uri):
            if not process.running:
                raise CannotStart(f"{' '.join(process.command)} ended:\n{process.output}")
            await trio.sleep(0.002)  # the kernel's table of sockets offers no event


class CannotStart(Exception):
    """A program that is needed has ended at once."""
