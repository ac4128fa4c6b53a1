"""Addresses that we listen on: TCP (IPv4 and IPv6), Unix sockets, vsock."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import trio

from gateway.config import Listen
from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT

BACKLOG = 1024
"""Connections that the kernel holds for us while we are busy accepting others."""


class ListenError(Exception):
    """An address cannot be listened on; the text says which and why."""


class Listener:
    """One `[[listen]]` that is open: its sockets, and the URI by which clients reach it."""

    def __init__(self, settings: Listen, uri: NbdUri, sockets: list[trio.SocketListener]) -> None:
        self.settings = settings
        self.uri = uri
        self.sockets = sockets

    async def aclose(self) -> None:
        """Close, once; the file of a Unix socket is removed (a second time, it might be another's)."""
        sockets, self.sockets = self.sockets, []
        for listener in sockets:
            await listener.aclose()
        path = self.uri.socket_path
        if sockets and path is not None and not is_abstract(path):
            with suppress(OSError):
                Path(path).unlink()


def is_abstract(path: str) -> bool:
    """Say whether a Unix socket's path names no file (unix(7), "abstract")."""
    return path.startswith("\0")


async def open_listener(settings: Listen) -> Listener:
    """Listen where a `[[listen]]` says. Raises `ListenError`."""
    uri = settings.uri
    try:
        match uri.transport:
            case Transport.TCP:
                return await _listen_tcp(settings)
            case Transport.UNIX:
                sock = _bind_unix(settings)
            case Transport.VSOCK:
                sock = await _bind_vsock(uri)
        try:
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(f"cannot listen on {uri}: {error.strerror or error}") from None
    return Listener(settings, uri, [trio.SocketListener(sock)])


async def _listen_tcp(settings: Listen) -> Listener:
    uri = settings.uri
    port = DEFAULT_PORT if uri.port is None else uri.port
    if uri.host == "::" and socket.has_dualstack_ipv6():
        listeners = [await _bind_both_families(port)]
    else:
        listeners = await trio.open_tcp_listeners(port, host=uri.host or None, backlog=BACKLOG)
    port = listeners[0].socket.getsockname()[1]
    return Listener(settings, replace(uri, port=port), listeners)


async def _bind_both_families(port: int) -> trio.SocketListener:
    """Listen on every address of IPv6 and of IPv4 (ipv6(7), IPV6_V6ONLY), as other servers do on `[::]`; Trio
    would take IPv6 alone.
    """
    sock = trio.socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await sock.bind(("::", port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def _bind_unix(settings: Listen) -> trio.socket.SocketType:
    """Bind a Unix socket; its file has the mode and owner asked for before anybody can connect."""
    assert settings.uri.socket_path is not None
    if is_abstract(settings.uri.socket_path):
        return _bind_abstract(settings.uri.socket_path)
    path = Path(settings.uri.socket_path)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Until listen() is called nobody can connect, so the mode is right in time.
        sock.bind(str(path))
        if settings.socket_mode is not None:
            path.chmod(settings.socket_mode)
        if settings.socket_owner is not None:
            owner = settings.socket_owner
            try:
                shutil.chown(path, owner.user, owner.group)  # type: ignore[arg-type] # None is taken, and means "leave"
            except LookupError as error:
                raise ListenError(f"cannot give {path} away: {error}") from None
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


def _bind_abstract(path: str) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


async def _bind_vsock(uri: NbdUri) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        cid = socket.VMADDR_CID_ANY if uri.cid is None else uri.cid
        await sock.bind((cid, uri.port or DEFAULT_PORT))
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the file of a socket that nobody listens on any more: what a killed process leaves.

    Only a refused connection proves that. A socket that is in use, and a file that is no socket, stay.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "the file exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
