"""The child that speaks HTTP, from its settings to its end.

It ends when the gateway has: its standard input is a pipe, whose other end nobody else has. What it has to say
to the log it says to the gateway, in lines of JSON on its standard output. On its standard error is only what
Python writes of a bug; the gateway has that in its log, too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper

from gateway.tls.credentials import ServerCredentials, server_credentials, server_paths
from gateway.tls.errors import CredentialsError
from gateway.tls.rotation import LOOK_AT_FILES_SECONDS, Rotating
from gateway.tls.session import TlsSession
from gateway.web.app import application
from gateway.web.gateway import Gateway
from gateway.web.guard import Guard, names_of_this_machine
from gateway.web.refusals import Refusals
from gateway.web.serving import HttpConnections
from gateway.web.settings import Settings, settings_in
from gateway.web.tokens import Tokens, load_tokens
from gateway.web.watch import Lookout

NICE = 10
"""How much others are preferred: whoever relays comes before whoever looks (nice(2)). This is a tenth of what
they have: who asks whether the gateway lives is answered in time still, on a machine that is busy."""

LEAVE_SECONDS = 1.0
"""How long answers may take that are being given when the gateway ends, or has other settings."""


def main() -> None:
    """Serve until the gateway has ended."""
    settings = settings_in(sys.argv[1])
    stand_back()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(serve, settings)


def stand_back() -> None:
    """Have whoever relays go first: he is preferred, and is not interrupted for us when we wake (SCHED_BATCH,
    sched(7)).
    """
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def serve(settings: Settings) -> None:
    """Serve until standard input ends."""
    refusals = Refusals(
        lambda why, client, count: say("refused", why=why, client=client, count=count)
    )
    gateway = Gateway(settings.control)
    watch = Lookout(gateway)
    tokens = _tokens(settings)
    app = Guard(
        application(gateway, watch),
        names_of_this_machine() | {*settings.hosts},
        lambda: None if tokens is None else tokens.current,
        refusals,
    )
    credentials = _credentials(settings)
    choose = None if credentials is None else _chooser(credentials)
    connections = HttpConnections(
        ASGIWrapper(app),  # type: ignore[arg-type] # it says less
        lambda why: say("failed", why=why),
        choose,
    )
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as beside:
            for door in settings.doors:
                beside.start_soon(connections.serve, door, clients)
            beside.start_soon(watch.run)
            beside.start_soon(refusals.run)
            for files in (tokens, credentials):
                if files is not None:
                    beside.start_soon(_exchange, files)
            await _gateway_ended()
            beside.cancel_scope.cancel()
        with trio.move_on_after(LEAVE_SECONDS):
            while connections.at_work > watch.watching:
                await trio.sleep(0.01)
        clients.cancel_scope.cancel()


async def _gateway_ended() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as pipe:
        while await pipe.receive_some(4096):
            pass


def say(what: str, **more: str | int) -> None:
    """Say something to the gateway's log."""
    with suppress(OSError):  # the gateway has gone
        os.write(1, json.dumps({"what": what, **more}).encode() + b"\n")


def _tokens(settings: Settings) -> Rotating[Tokens] | None:
    if settings.tokens is None:
        return None
    path = Path(settings.tokens)
    return Rotating(lambda: load_tokens(path), (path,))


def _credentials(settings: Settings) -> Rotating[ServerCredentials] | None:
    if settings.certificates is None:
        return None
    directory = Path(settings.certificates)
    return Rotating(
        lambda: server_credentials(directory, verify_client=settings.verify_client),
        server_paths(directory, None),
    )


def _chooser(
    credentials: Rotating[ServerCredentials],
) -> Callable[[bytes], TlsSession | None]:
    def choose(received: bytes) -> TlsSession | None:
        return credentials.current.session(received)

    return choose


async def _exchange(files: Rotating[Any]) -> None:
    """Take up files that have changed, until cancelled; those that are wrong change nothing."""
    while True:
        await trio.sleep(LOOK_AT_FILES_SECONDS)
        if files.changed():
            try:
                if changes := files.reload():
                    say("exchanged", why=", ".join(changes))
            except CredentialsError as error:
                say("kept", why=str(error))
