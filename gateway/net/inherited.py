"""Sockets that are listened on already when we start, by whoever starts us (sd_listen_fds(3)).

systemd, by a socket unit, listens before us and goes on when we have ended: no client is refused while we are
started anew. It hands the sockets over as descriptors 3, 4, ..., and says how many there are in `LISTEN_FDS`,
what each is called in `LISTEN_FDNAMES`, and for which process that is said in `LISTEN_PID`.

A `[[listen]]` takes those that its `descriptor` names, else the one that listens at its very address. What
nobody takes is an error: its clients would wait for ever in a queue of the kernel.

Whoever listens owns the file of a Unix socket, so it stays when we close our descriptor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trio

from gateway.config import Listen
from gateway.net.listen import Listener, ListenError
from gateway.net.socket_file import is_abstract, other_file
from gateway.plural import plural
from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT
from gateway.wire.handshake import shown

FIRST = 3
"""Behind standard input, output and error (sd_listen_fds(3), SD_LISTEN_FDS_START)."""

MOST = 1024
"""More than any unit has; a larger number is a mistake."""

_FAMILIES = {
    Transport.TCP: (socket.AF_INET, socket.AF_INET6),
    Transport.UNIX: (socket.AF_UNIX,),
    Transport.VSOCK: (socket.AF_VSOCK,),
}


class _Handed:
    """One descriptor. Raises `ListenError` if it is no socket that listens."""

    def __init__(self, number: int, name: str) -> None:
        self.name = name
        called = f'descriptor {number} "{name}"' if name else f"descriptor {number}"
        try:
            self.socket = socket.socket(fileno=number)
        except OSError as error:
            raise ListenError(f"{called}: {error.strerror}") from None
        self.where = f"{called} of {_shown(self.socket)}"
        listens = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if self.socket.type != socket.SOCK_STREAM or not listens:
            self.socket.close()
            raise ListenError(
                f"{self.where}: expected a stream socket that listens, as a socket unit makes it by"
                " ListenStream= and Accept=no"
            )
        self.socket.setblocking(False)
        self.socket.set_inheritable(False)

    async def is_meant(self, settings: Listen) -> bool:
        """Say whether a `[[listen]]` names it. Raises `ListenError`."""
        if settings.descriptor is not None:
            return self.name == settings.descriptor
        return await self._is_at(settings.uri)

    async def _is_at(self, uri: NbdUri) -> bool:
        if self.socket.family not in _FAMILIES[uri.transport]:
            return False
        here = self.socket.getsockname()
        match uri.transport:
            case Transport.UNIX:
                path = uri.socket_path or ""
                wanted = path if is_abstract(path) else str(Path(path).absolute())
                return _path(self.socket) == wanted
            case Transport.VSOCK:
                cid = socket.VMADDR_CID_ANY if uri.cid is None else uri.cid
                return bool(here == (cid, uri.port or DEFAULT_PORT))
            case Transport.TCP:
                return here[:2] in await _addresses(uri)


async def _addresses(uri: NbdUri) -> set[tuple[object, ...]]:
    """Give what a host and port are. Raises `ListenError`."""
    try:
        found = await trio.socket.getaddrinfo(
            uri.host or None,
            DEFAULT_PORT if uri.port is None else uri.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError) as error:
        raise ListenError(f"cannot listen on {uri}: {error}") from None
    return {tuple(address[:2]) for *_, address in found}


async def handed_over(
    listens: Sequence[Listen], environment: MutableMapping[str, str], first: int = FIRST
) -> list[Listener]:
    """Give the listeners of `[[listen]]` whose sockets are handed over to us, as the environment says, and take
    that out of it. Raises `ListenError`, also for a socket that no `[[listen]]` names.
    """
    with ExitStack() as opened:
        left = []
        for number, name in enumerate(_names(environment), start=first):
            left.append(_Handed(number, name))
            opened.callback(left[-1].socket.close)
        found = []
        for settings in listens:
            taken = [each for each in left if await each.is_meant(settings)]
            if taken:
                found.append(_listener(settings, taken))
                left = [each for each in left if each not in taken]
        if left:
            raise ListenError(
                "handed over by who has started us, and named by no [[listen]], neither by its descriptor nor"
                f" by its uri: {'; '.join(each.where for each in left)}"
            )
        opened.pop_all()
    return found


def _names(environment: MutableMapping[str, str]) -> list[str]:
    """Give what each descriptor is called: nothing, if there are no names. Raises `ListenError`."""
    keys = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    whose, count, names = (environment.pop(key, None) for key in keys)
    if whose != str(os.getpid()) or count is None:
        return []
    if not count.isdecimal() or int(count) > MOST:
        raise ListenError(f'LISTEN_FDS: expected a number up to {MOST}, got "{count}"')
    named = [""] * int(count) if names is None else names.split(":") if int(count) else []
    if len(named) != int(count):
        raise ListenError(
            f'LISTEN_FDNAMES: expected {plural(int(count), "name")} with ":" between them, as LISTEN_FDS says,'
            f' got "{names}"'
        )
    return named


def _listener(settings: Listen, taken: Sequence[_Handed]) -> Listener:
    """Give the listener of these sockets. Raises `ListenError`."""
    uri = settings.uri
    for each in taken:
        if each.socket.family not in _FAMILIES[uri.transport]:
            raise ListenError(
                f"{each.where}: expected a socket as in {uri}, whose [[listen]] names it"
            )
        if why := other_file(settings):
            raise ListenError(
                f"{each.where}: {why}; a socket unit has SocketMode=, SocketUser= and SocketGroup="
            )
    if uri.transport is Transport.TCP:
        uri = replace(uri, port=taken[0].socket.getsockname()[1])
    sockets = [trio.socket.from_stdlib_socket(each.socket) for each in taken]
    return Listener(settings, uri, [trio.SocketListener(each) for each in sockets], keeps_file=True)


def _shown(sock: socket.socket) -> str:
    """Say where a socket is, for people."""
    here = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host = f"[{here[0]}]" if sock.family == socket.AF_INET6 else here[0]
        return f"{host}:{here[1]}"
    return shown(_path(sock) if sock.family == socket.AF_UNIX else str(here))


def _path(sock: socket.socket) -> str:
    """Give where a Unix socket is; an abstract address begins with NUL."""
    here = sock.getsockname()
    return os.fsdecode(here) if isinstance(here, bytes | str) else ""
