"""Starting processes that end with the gateway, however it ends (`gateway.net.keeper` says how)."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import trio

from gateway.net import keeper
from gateway.net.keeper import KINDS, STOP_SECONDS, ending, seen

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PROGRAM = (sys.executable, "-I", "-S", os.path.abspath(keeper.__file__))  # noqa: PTH100 # links stay
"""The keeper, and what becomes what is kept: neither has use for our package, or for anybody else's."""

AGAIN_SECONDS = 1
"""How soon after it was begun a keeper that has ended is followed by another. Where it is killed whenever it is
seen, by whatever does not know it, that costs a process a second and no more."""

Kind = Literal["session", "tree"]


class Kept:
    """A process that we have started, and whatever belongs to it. It is not reaped before all of that has
    ended: until then its number stands for it.
    """

    def __init__(self, process: subprocess.Popen[bytes], kind: Kind = "session") -> None:
        self.process = process
        self.kind: Kind = kind
        self.number = process.pid
        self._ended = trio.Event()

    @property
    def status(self) -> int | None:
        """Its exit status, or less than 0: the signal that ended it; None: it lives. What it has started may
        live when it does not.
        """
        if self.process.returncode is not None:
            return self.process.returncode
        ended = os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def reap(self) -> None:
        """It has ended, and all that belongs to it: its number may be given away."""
        self.process.wait()

    async def wait(self) -> int:
        """Wait for its end, and give the status."""
        await self._ended.wait()
        status = self.status
        assert status is not None
        return status

    async def see_end(self, pidfd: int) -> None:
        """Have `wait` know of its end."""
        await _end_at(pidfd)
        self._ended.set()


UNKNOWN_STATUS = 255
"""The exit status of a process that was not our child: only its parent is told (waitid(2))."""


class Adopted(Kept):
    """A process that another gateway has started. When that has ended, process 1 reaps it."""

    def __init__(self, number: int, pidfd: int) -> None:
        self.kind = "session"
        self.number = number
        self._ended = trio.Event()
        self._pidfd = pidfd

    @property
    def status(self) -> int | None:
        """None: it lives; else it is not known."""
        return UNKNOWN_STATUS if self._pidfd < 0 or has_ended(self._pidfd) else None

    def reap(self) -> None:
        """Others do."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1


def has_ended(pidfd: int) -> bool:
    """Say whether a process has ended (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Keeper:
    """Starts processes, and sees to it that they end with us. Its tasks live in the nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.log: FilteringBoundLogger | None = None
        """Where it says what it does, once there is a log."""
        self._kept: dict[int, Kept] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._closed = False

    def start(
        self,
        kind: Kind,
        command: Sequence[str],
        *,
        listener: socket.socket | None = None,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Kept:
        """Start a program: a `session` of its own that has nothing to read, or a `tree` at our terminal.
        `listener` is passed on as sd_listen_fds(3) says. `stderr` is its standard error, which the caller
        closes; None: ours. Raises `OSError`.
        """
        if self._process is None or self._process.poll() is not None:
            self._begin()
        passed = -1 if listener is None else listener.fileno()
        process, pidfd = _started(
            ("launch", kind, str(self._pipe), str(passed), *command),
            stdin=subprocess.DEVNULL if kind == "session" else None,
            pass_fds=(self._pipe,) if passed < 0 else (self._pipe, passed),
            env=environment,
            stderr=stderr,
            # Ctrl-C is for us: we still have to drain. And what belongs to it can be told by this.
            start_new_session=kind == "session",
        )
        kept = self._kept[process.pid] = Kept(process, kind)
        self.nursery.start_soon(kept.see_end, pidfd)
        return kept

    async def end(self, kept: Kept) -> bool:
        """End it, and whatever belongs to it, if that has not ended yet, and forget it. Say whether it could be
        ended.
        """
        find = KINDS[kept.kind](kept.number)
        steps = ending([find])
        while (seconds := await trio.to_thread.run_sync(next, steps, None)) is not None:
            await trio.sleep(seconds)
        left = await trio.to_thread.run_sync(lambda: find(seen()))
        if left or kept.status is None:
            return False
        told = _tell(self._pipe, "ended", kept.number)  # before its number may be another's
        if not told and self._process is not None:
            self._process.kill()  # it takes nothing: the next one is told of what there is
        self._kept.pop(kept.number, None)
        kept.reap()
        return True

    def adopt(self, number: int, pidfd: int) -> Kept:
        """Keep a session of processes that another gateway's keeper has kept, and which is no child of ours.
        `pidfd` is its first process's, and belongs to this from now on. Raises `OSError`.
        """
        kept = self._kept[number] = Adopted(number, os.dup(pidfd))
        if self._process is None or self._process.poll() is not None:
            self._begin()  # which tells of it
        else:
            _tell(self._pipe, kept.kind, number)
        self.nursery.start_soon(kept.see_end, pidfd)
        return kept

    def leave(self, kept: Kept) -> None:
        """Another gateway's keeper keeps it from now on."""
        _tell(self._pipe, "ended", kept.number)
        self._kept.pop(kept.number, None)

    async def aclose(self) -> None:
        """Let the keeper go. What could not be ended it tries to end once more, and is not waited for."""
        self._closed = True
        if self._process is None:
            return
        pipe, self._pipe = self._pipe, -1
        os.close(pipe)
        if self._kept:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(STOP_SECONDS) as limit:
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        if limit.cancelled_caught:  # somebody has stopped it
            self._process.kill()
            self._process.wait()

    # --- The keeper's own process

    def _begin(self) -> None:
        """Begin a keeper, and tell it of all that there is. Raises `OSError`."""
        theirs, ours = os.pipe()
        os.set_blocking(ours, False)
        for kept in self._kept.values():  # it is there to be read from the first moment
            _tell(ours, kept.kind, kept.number)
        try:
            process, pidfd = _started(
                ("keep", str(os.getpid())),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                cwd="/",  # it keeps no file system from being unmounted
                start_new_session=True,  # what comes from the terminal is for us
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        if self._process is not None:
            os.close(self._pipe)
        self._process, self._pipe = process, ours
        self.nursery.start_soon(self._watch, process, pidfd)

    async def _watch(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        """Begin another when this one ends before us."""
        again_at = trio.current_time() + AGAIN_SECONDS
        await _end_at(pidfd)
        if self._closed:
            return
        if self.log is not None:
            self.log.error("keeper ended, another is begun", pid=process.pid, status=process.wait())
        while not self._closed and process is self._process:
            await trio.sleep_until(again_at)
            again_at = trio.current_time() + AGAIN_SECONDS
            with suppress(OSError):  # no descriptors, perhaps: in a second there may be some
                self._begin()


def _started(arguments: Sequence[str], **how: Any) -> tuple[subprocess.Popen[bytes], int]:
    """Start one of the keeper's programs; give its pidfd as well. Raises `OSError`."""
    process = subprocess.Popen([*PROGRAM, *arguments], **how)
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _tell(pipe: int, word: str, number: int) -> bool:
    """Tell the keeper; False: it lives, perhaps, and takes nothing. One that has ended need not be told: the
    next is told of all that there is.
    """
    try:
        os.write(pipe, f"{word} {number}\n".encode())
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


async def _end_at(pidfd: int) -> None:
    """Wait until a process has ended (pidfd_open(2)); its pidfd is closed then, or when this is cancelled."""
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
