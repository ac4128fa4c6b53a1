"""The keeper: a small process beside the gateway that ends what the gateway has started, when that has gone.

The gateway may go in ways that it cannot see to: SIGKILL, the kernel's want of memory, a bug. What it has
started would live on, with a disk open that the next server cannot open beside it. A death signal (prctl(2),
PR_SET_PDEATHSIG) is no help: it follows the thread that has started a process, and does not reach whatever
that has started in its turn.

So the gateway holds one end of a pipe, and this process the other. Whichever way the gateway goes, the kernel
closes its end, and this one sees it: it ends what it was told of, first by SIGTERM, then by SIGKILL. It does
nothing else. What is started stays the gateway's own child, which sees its end at first hand
(`gateway.net.processes`); and if the keeper is killed, nothing is lost but the guard, and the gateway begins
another (`gateway.net.keeping`).

What is told, a line each:

    session 123    a session of processes (setsid(2)): a server of `command`
    tree 123       a process and its descendants, in our own session, for it may need the terminal: `--run`
    ended 123      it has ended; its number may be somebody else's from now on

Whatever is started says the first two itself, before it becomes what it is to be (`launch`). So there is no
moment at which the gateway may be killed and something runs that is not kept. The last is said by the
gateway, which reaps only then: as long as a process is not reaped, nobody else has its number. When the
gateway has gone, others reap, and at once. But a number is given out again only after all others (pid_max,
32768 at least), and between two looks here lies a quarter of a second.

This file is a program of its own, run without our package and without `site`: it starts fast and is small.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

STOP_SECONDS = 5
"""How long what we have started may take to end after SIGTERM: a server has flushed its disk by then, or never
will."""

KILL_SECONDS = 5
"""How long it may take after SIGKILL. A process that is still there then is not ours to end, or hangs in the
kernel, which ends it as soon as it can: there is nothing left to do."""

FIRST_LOOK_SECONDS = 0.01
LOOK_WHO_LIVES_SECONDS = 0.25
"""How soon we look for the first time which of them are still there, and how often we look later. All processes
are looked through for that, which may take some milliseconds."""

FIRST_PASSED_DESCRIPTOR = 3
"""Where socket activation puts the sockets (sd_listen_fds(3))."""

CANNOT_START = 127
"""Exit status of a process that could not become what it was to be, as shells have it."""

SPARED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""What does not end the keeper. systemd sends SIGTERM to all of a service at once, and the gateway has to
drain first."""

IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ")
"""What is ignored goes on being ignored by what a process becomes (execve(2))."""


class Process:
    """A process as /proc shows it (proc(5))."""

    __slots__ = ("began", "lives", "number", "parent", "session")

    def __init__(self, number: int, stat: bytes) -> None:
        # Behind its name, which may have any character in it: state, ppid, pgrp, session, ... num_threads,
        # itrealvalue, starttime.
        fields = stat.rpartition(b")")[2].split()
        self.number = number
        self.parent, self.session = int(fields[1]), int(fields[3])
        # Of a process whose first thread has ended, others may be at work.
        self.lives = fields[0] not in b"ZX" or int(fields[17]) > 1
        self.began = int(fields[19])

    @property
    def identity(self) -> tuple[int, int]:
        """Who it is, even when its number is somebody else's."""
        return self.number, self.began


Seen = Mapping[int, Process]
Find = Callable[[Seen], list[Process]]
"""Finds among all processes those that belong to something and live."""


def seen() -> Seen:
    """Give all processes that can be seen, by number."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 # pathlib costs more than all the rest
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 # as above
                    found[int(name)] = Process(int(name), file.read())
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                pass
            except PermissionError:  # another user's, and not shown (proc(5), hidepid)
                pass
    return found


def of_session(number: int) -> Find:
    """Find who is in a session."""
    return lambda now: [each for each in now.values() if each.session == number and each.lives]


def of_tree(number: int) -> Find:
    """Find a process and its descendants, also those whose parent has ended since they were first found."""
    known: set[tuple[int, int]] = set()

    def find(now: Seen) -> list[Process]:
        children: dict[int, list[Process]] = {}
        for each in now.values():
            children.setdefault(each.parent, []).append(each)
        found: dict[int, Process] = {}
        left = [each for each in now.values() if each.identity in known]
        if not known and number in now:
            left.append(now[number])
        while left:
            each = left.pop()
            if each.number not in found:
                found[each.number] = each
                left += children.get(each.number, ())
        known.update(each.identity for each in found.values())
        return [each for each in found.values() if each.lives]

    return find


KINDS: Mapping[str, Callable[[int], Find]] = {"session": of_session, "tree": of_tree}


def ending(finds: Iterable[Find]) -> Iterator[float]:
    """End all that is found; between the steps give for how long to wait. Who is there at the end cannot be
    ended by us.
    """
    finds = list(finds)
    told: set[tuple[int, int]] = set()
    waited, pause = 0.0, FIRST_LOOK_SECONDS
    while waited < STOP_SECONDS + KILL_SECONDS:
        now = seen()
        found = [find(now) for find in finds]
        # What has ended is not looked for again: its number may be somebody else's soon.
        finds = [find for find, its in zip(finds, found, strict=True) if its]
        left = [each for its in found for each in its]
        if not left:
            return
        for each in left:
            if waited >= STOP_SECONDS:
                send(each, signal.SIGKILL)
            elif each.identity not in told:
                told.add(each.identity)
                send(each, signal.SIGTERM)
        yield pause
        waited += pause
        pause = min(2 * pause, LOOK_WHO_LIVES_SECONDS)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal, if that can be done."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process.number, number)


# --- The two programs that this file is


def keep(gateway: str) -> None:
    """Hear what is to be kept, over standard input, until the gateway has gone; then end it."""
    for name in SPARED:
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    kept: dict[int, str] = {}
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word, _, number = line.decode().partition(" ")
            if word == "ended":
                kept.pop(int(number), None)
            else:
                kept[int(number)] = word
    if kept:
        for seconds in ending([KINDS[kind](number) for number, kind in kept.items()]):
            time.sleep(seconds)
        numbers = ", ".join(map(str, sorted(kept)))
        complain(f"the gateway (pid {gateway}) has gone; ended what it had started: pid {numbers}")


def launch(kind: str, pipe: int, listener: int, command: list[str]) -> None:
    """Have it kept what we are about to become, and become it. `listener` is a socket to pass on, or -1."""
    try:
        os.write(pipe, f"{kind} {os.getpid()}\n".encode())
        os.close(pipe)
        if listener >= 0:
            if listener != FIRST_PASSED_DESCRIPTOR:
                os.dup2(listener, FIRST_PASSED_DESCRIPTOR)
                os.close(listener)
            os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        for name in IGNORED_BY_PYTHON:
            signal.signal(signal.Signals[name], signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        complain(f"cannot start {command[0]}: {error.strerror}")
        sys.exit(CANNOT_START)


def complain(text: str) -> None:
    """Say something on standard error, if there is any."""
    with suppress(OSError):
        os.write(2, f"nbd-gateway: {text}\n".encode(errors="surrogateescape"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", gateway]:
            keep(gateway)
        case ["launch", kind, pipe, listener, *command]:
            launch(kind, int(pipe), int(listener), command)
