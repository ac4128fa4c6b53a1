"""Addresses that we listen on: TCP (IPv4 and IPv6), Unix sockets, vsock."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import trio

from gateway.config import Listen, SocketOwner
from gateway.net.socket_file import give_away, homeless, is_abstract, remove_stale, usual_mode
from gateway.uri import NbdUri, Transport
from gateway.wire.constants import DEFAULT_PORT

BACKLOG = 1024
"""Connections that the kernel holds for us while we are busy accepting others."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why a connection cannot be accepted now, though it may be later (accept(2))."""

ACCEPT_AGAIN_SECONDS = 0.1
"""How long to leave a connection in the kernel's queue while there is a shortage."""


class ListenError(Exception):
    """An address cannot be listened on; the text says which and why."""


def _nothing() -> None:
    """Nobody minds."""


class Listener:
    """One `[[listen]]` that is open: its sockets, and the URI by which clients reach it."""

    def __init__(
        self,
        settings: Listen,
        uri: NbdUri,
        sockets: list[trio.SocketListener],
        *,
        keeps_file: bool = False,
    ) -> None:
        self.settings = settings
        self.uri = uri
        self.sockets = sockets
        self.keeps_file = keeps_file
        """The file of its Unix socket is another's."""
        self.file_is_ours = True
        """It goes with the listener, if it is not another's. False: another process listens there as well."""
        self.closed: Callable[[], object] = _nothing
        """Is called when it is closed."""

    def take_over(self, settings: Listen) -> None:
        """Go over to other settings of the same address: clients that come from now on have them."""
        self.settings = settings
        self.uri = replace(settings.uri, port=self.uri.port)

    async def aclose(self) -> None:
        """Close, once; the file of a Unix socket is removed (a second time, it might be another's)."""
        sockets, self.sockets = self.sockets, []
        for listener in sockets:
            await listener.aclose()
        path = self.uri.socket_path
        if sockets and path is not None and not is_abstract(path) and not self.keeps_file:
            with suppress(OSError):
                if self.file_is_ours:
                    Path(path).unlink()
        if sockets:
            self.closed()


def address(uri: NbdUri) -> tuple[object, ...]:
    """Give what of a listener's URI cannot be listened on twice."""
    port = DEFAULT_PORT if uri.port is None else uri.port
    return (uri.transport, uri.host, port, uri.socket_path, uri.cid)


def is_for(here: Listen, settings: Listen) -> bool:
    """Say whether what is listened on by some settings can be kept for others: it is the same address, or what
    was handed over by the same name.
    """
    if here.descriptor is not None and here.descriptor == settings.descriptor:
        return here.uri.transport is settings.uri.transport
    return address(here.uri) == address(settings.uri)


_NO_WAY_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES})
"""What bind(2) says of a path whose directory is not there, or is not ours. It does not say of which part."""


def _why(error: OSError, path: str | None) -> str:
    """Say why an address cannot be listened on."""
    if path is not None and not is_abstract(path) and error.errno in _NO_WAY_THERE:
        return homeless(Path(path)) or os.strerror(error.errno)
    return error.strerror or str(error)


async def open_listener(settings: Listen) -> Listener:
    """Listen where a `[[listen]]` says. Raises `ListenError`."""
    uri = settings.uri
    if settings.descriptor is not None:
        raise ListenError(
            f"cannot listen on {uri}: its socket is handed over by systemd when we are started, by the name of"
            f' "{settings.descriptor}", and none of that name is'
        )
    try:
        match uri.transport:
            case Transport.TCP:
                return await _listen_tcp(settings)
            case Transport.UNIX:
                sock = _bind_unix(settings)
            case Transport.VSOCK:
                sock = await _bind_vsock(uri)
        return Listener(settings, uri, [_listening(sock)])
    except OSError as error:
        raise ListenError(f"cannot listen on {uri}: {_why(error, uri.socket_path)}") from None
    except UnicodeError as error:  # of who looks names up; URIs have none that it would be
        raise ListenError(f"cannot listen on {uri}: no name of a host: {error}") from None


def open_unix(path: Path, mode: int) -> trio.SocketListener:
    """Listen on a Unix socket that is no `[[listen]]`. Raises `ListenError`."""
    try:
        return _listening(_bind_file(path, mode, None))
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {_why(error, str(path))}") from None


def open_nameless() -> trio.SocketListener:
    """Listen on an abstract Unix socket whose name the kernel chooses (unix(7), "autobind"). Raises
    `ListenError`.
    """
    try:
        return _listening(_bind_abstract(""))
    except OSError as error:
        raise ListenError(f"cannot listen on a Unix socket: {error.strerror}") from None


def _listening(sock: trio.socket.SocketType) -> trio.SocketListener:
    """Listen on a socket that is bound. Raises `OSError`; then it is closed."""
    try:
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


@contextmanager
def file_as_in(settings: Listen, before: Listen) -> Iterator[None]:
    """Give the file of a Unix socket that is listened on already the mode and owner of other settings, if those
    are not what they were `before`; what goes wrong inside takes that back. Raises `ListenError`.
    """
    path = settings.uri.socket_path
    same = (settings.socket_mode, settings.socket_owner) == (
        before.socket_mode,
        before.socket_owner,
    )
    if same or path is None or is_abstract(path):
        yield
        return
    file = Path(path)
    try:
        there = file.stat()
    except OSError:  # somebody has removed it, and nobody can connect any more
        yield
        return
    try:
        mode = settings.socket_mode
        file.chmod(usual_mode() if mode is None else mode)
        if settings.socket_owner is not None:
            _give_away(file, settings.socket_owner)
        yield
    except BaseException as error:
        with suppress(OSError):
            os.chown(file, there.st_uid, there.st_gid)
            file.chmod(stat.S_IMODE(there.st_mode))
        if isinstance(error, OSError):
            text = f"cannot change mode or owner of {path}: {error.strerror or error}"
            raise ListenError(text) from None
        raise


async def take_clients(
    listening: trio.SocketListener,
    take: Callable[[trio.SocketStream], None],
    short: Callable[[int], None],
) -> None:
    """Take clients until the listener is closed, like trio.serve_listeners. That logs a traceback ten times a
    second while there is a shortage; here `short` is told its errno instead.
    """
    with suppress(trio.ClosedResourceError):
        while True:
            try:
                stream = await listening.accept()
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                short(error.errno)
                await trio.sleep(ACCEPT_AGAIN_SECONDS)
            else:
                take(stream)


def _give_away(path: Path, owner: SocketOwner) -> None:
    """Give a socket's file to an owner. Raises `ListenError`, `OSError`."""
    try:
        give_away(path, owner)
    except LookupError as error:
        raise ListenError(f"cannot give {path} away: {error}") from None


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
    return _bind_file(path, settings.socket_mode, settings.socket_owner)


def _bind_file(path: Path, mode: int | None, owner: SocketOwner | None) -> trio.socket.SocketType:
    remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Until listen() is called nobody can connect, so the mode is right in time.
        sock.bind(str(path))
        if mode is not None:
            path.chmod(mode)
        if owner is not None:
            _give_away(path, owner)
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
