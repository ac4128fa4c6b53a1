"""How a process is started to take an older one's place, and what it finds: one end of a channel, by its number
in the environment.

Only a process that was started for it has the variable. It is taken out of the environment at once, and the
descriptor is not inherited any more: what this process starts has nothing to do with it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

VARIABLE = "NBD_GATEWAY_UPGRADE"


def program() -> list[str]:
    """Give the command line by which this process was started, for a newer one: what stands at its path now."""
    script = Path(sys.argv[0])
    if script.is_file() and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [*sys.orig_argv]


def started(
    program: Sequence[str], end: socket.socket, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a newer process, with its `end` of the channel, and with `environment` beside ours. Raises
    `OSError`.
    """
    number = end.fileno()
    env = os.environ | environment | {VARIABLE: str(number)}
    return subprocess.Popen(program, env=env, pass_fds=(number,))


def started_by(pid: int) -> list[int]:
    """Give the processes that one has started, and those have, as far as they are there. A newer process may be
    a script that starts the gateway and waits for it: if the script is ended alone, what it has started keeps
    our sockets.
    """
    found: list[int] = []
    left = [pid]
    while left and len(found) < MOST_STARTED:
        parent = left.pop()
        with suppress(OSError):
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()  # proc(5)
            children = [int(each) for each in text.split()]
            found += children
            left += children
    return found


def begun() -> socket.socket | None:
    """Give our end of the channel to an older process, once; None: there is none."""
    number = os.environ.pop(VARIABLE, "")
    if not number.isdecimal():
        return None
    try:
        os.set_inheritable(int(number), False)
        return socket.socket(fileno=int(number))
    except OSError:
        return None


def say_failed(problems: Sequence[str]) -> None:
    """Tell an older process, if there is one, that this one cannot be: before there is anything that runs."""
    end = begun()
    if end is None:
        return
    from gateway.handover.message import ChannelMessage, encode

    with end, suppress(OSError, ValueError):
        end.send(encode(ChannelMessage("failed", {"problems": [*problems][:MOST_PROBLEMS]})))


MOST_STARTED = 1000
"""More than any script starts before there is a gateway."""

MOST_PROBLEMS = 20
"""Told to who asks for an upgrade; standard error has all of them."""
