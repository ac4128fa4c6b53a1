"""Servers of `command` on their way from the older process to the newer one.

A server has its disk open, so there is one. Until the older process gives it, who connects to it in the newer
one waits (`Command.ours`). Then the newer one keeps it (`gateway.net.keeper`), says so, and only then the older
one has its keeper forget it: whoever of both dies meanwhile, somebody sees to its end. A server whose command
is another one in the newer configuration is not given: it ends before the newer one may start its own.

nbdkit is not given, for it ends with the process that has started it (seen with 1.32: with socket activation it
has itself killed when its parent ends). It is ended while nobody uses it, and the newer process starts another.

If the older process dies, its keeper ends what it had started, and the newer process waits for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import trio

from gateway.handover.message import ChannelMessage
from gateway.net.command import Command
from gateway.net.keeper import KILL_SECONDS, LOOK_WHO_LIVES_SECONDS, STOP_SECONDS
from gateway.net.processes import session_lives
from gateway.upstream.server import Server

ENDED_SECONDS = STOP_SECONDS + KILL_SECONDS + 5
"""How long the servers of an older process that has died may take to end: as long as its keeper takes, and
some. What is there then cannot be ended by anybody."""


END_WITH_WHO_STARTS_THEM = frozenset({"nbdkit"})
"""Programs that cannot be given. One that is started by a script is not known here: it ends a moment after it
was given, and is started again as any server that has ended."""


def commands_of(servers: Iterable[Server]) -> Iterator[tuple[str, Command]]:
    """Give what is started for servers, by the names of their upstreams."""
    for server in servers:
        command = server.recipe.backend.command
        if command is not None and server.recipe.uri is None:
            yield server.recipe.upstream, command


def given(upstream: str, command: Command) -> ChannelMessage | None:
    """Give the message by which a server goes to the newer process; None: none runs that can go. Raises
    `OSError`.
    """
    running = command.running
    if running is None or Path(command.words[0]).name in END_WITH_WHO_STARTS_THEM:
        return None
    number, path, says = running
    descriptors = [os.pidfd_open(number), *([os.dup(says)] if says >= 0 else [])]
    said = {"upstream": upstream, "command": command.words, "pid": number, "path": path}
    return ChannelMessage("child", said, descriptors=tuple(descriptors))


async def all_ended(numbers: Mapping[str, int]) -> None:
    """Wait until nobody lives of the servers of an older process that has died."""
    with trio.move_on_after(ENDED_SECONDS):
        for number in numbers.values():
            while session_lives(number):
                await trio.sleep(LOOK_WHO_LIVES_SECONDS)
