"""Addresses that we listen on: TCP (IPv4 and IPv6), Unix sockets, vsock."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import trio

from gateway.config import Listen, SocketOwner
from gateway.there import unexpanded
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


def is_abstract(path: str) -> bool:
    """Say whether a Unix socket's path names no file (unix(7), "abstract")."""
    return path.startswith("\0")


def homeless(path: Path) -> str | None:
    """Say why no socket can be made at a path; None if nothing is known against it. Nothing is tried."""
    directory = path.parent
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        return f"there is no directory {directory}{unexpanded(path)}"
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if not stat.S_ISDIR(mode):
        return f"{directory} is no directory"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"nothing can be made in the directory {directory}"
    return _occupied(path)


def _occupied(path: Path) -> str | None:
    """Say what stands at a path where a socket is to be, and is no socket. A socket that nobody listens on any
    more is no hindrance, and we do not find out here whether somebody does.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there; or who makes the socket is told
        return None
    return None if stat.S_ISSOCK(mode) else "the file exists and is not a socket"


def ungivable(owner: SocketOwner) -> str | None:
    """Say why a socket's file cannot be given to an owner: there is none of that name, or it takes root. None
    if it can.
    """
    try:
        user, group = _identified(owner)
    except LookupError as error:
        return str(error)
    # Who may do it is up to capabilities, groups and user namespaces. So it is tried out, on a file of nowhere.
    fd = os.memfd_create("owner")
    try:
        os.fchown(fd, user, group)
    except OSError as error:
        return _not_given(owner, error)
    finally:
        os.close(fd)
    return None


def _not_given(owner: SocketOwner, error: OSError) -> str:
    return f"its file cannot be given to {owner}: {error.strerror}"


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
        try:
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(f"cannot listen on {uri}: {_why(error, uri.socket_path)}") from None
    except UnicodeError as error:  # of who looks names up; URIs have none that it would be
        raise ListenError(f"cannot listen on {uri}: no name of a host: {error}") from None
    return Listener(settings, uri, [trio.SocketListener(sock)])


def open_unix(path: Path, mode: int) -> trio.SocketListener:
    """Listen on a Unix socket that is no `[[listen]]`. Raises `ListenError`."""
    try:
        sock = _bind_file(path, mode, None)
        try:
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {_why(error, str(path))}") from None
    return trio.SocketListener(sock)


def open_nameless() -> trio.SocketListener:
    """Listen on an abstract Unix socket whose name the kernel chooses (unix(7), "autobind"). Raises
    `ListenError`.
    """
    try:
        sock = _bind_abstract("")
        sock.listen(BACKLOG)
    except OSError as error:
        raise ListenError(f"cannot listen on a Unix socket: {error.strerror}") from None
    return trio.SocketListener(sock)


@contextmanager
def file_as_in(settings: Listen) -> Iterator[None]:
    """Give the file of a Unix socket that is listened on already the mode and owner of other settings; what
    goes wrong inside takes that back. Raises `ListenError`.
    """
    path = settings.uri.socket_path
    if path is None or is_abstract(path):
        yield
        return
    file = Path(path)
    try:
        before = file.stat()
    except OSError:  # somebody has removed it, and nobody can connect any more
        yield
        return
    try:
        mode = settings.socket_mode
        file.chmod(_usual_mode() if mode is None else mode)
        if settings.socket_owner is not None:
            _give_away(file, settings.socket_owner)
        yield
    except BaseException as error:
        with suppress(OSError):
            os.chown(file, before.st_uid, before.st_gid)
            file.chmod(stat.S_IMODE(before.st_mode))
        if isinstance(error, OSError):
            text = f"cannot change mode or owner of {path}: {error.strerror or error}"
            raise ListenError(text) from None
        raise


def other_file(settings: Listen) -> str | None:
    """Say what is not as a `[[listen]]` says of the file of a Unix socket that somebody else has made."""
    path = settings.uri.socket_path
    if path is None or is_abstract(path):
        return None
    try:
        there = Path(path).stat()
        wanted = (-1, -1) if settings.socket_owner is None else _identified(settings.socket_owner)
    except (OSError, LookupError) as error:
        return str(error)
    mode, wanted_mode = stat.S_IMODE(there.st_mode), settings.socket_mode
    if wanted_mode not in (None, mode):
        return f"the file's mode is {mode:04o}, and socket-mode is {wanted_mode:04o}"
    owner = (there.st_uid, there.st_gid)
    if any(each not in (_AS_IT_IS, its) for each, its in zip(wanted, owner, strict=True)):
        return f"the file's owner is {owner[0]}:{owner[1]}, and socket-owner is {settings.socket_owner}"
    return None


def _usual_mode() -> int:
    """Give the mode that a socket's file gets from the umask."""
    umask = os.umask(0o077)  # to know it is to set it
    os.umask(umask)
    return 0o777 & ~umask


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
    _remove_stale(path)
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


def _give_away(path: Path, owner: SocketOwner) -> None:
    try:
        user, group = _identified(owner)
    except LookupError as error:
        raise ListenError(f"cannot give {path} away: {error}") from None
    try:
        os.chown(path, user, group)
    except OSError as error:
        raise OSError(error.errno, _not_given(owner, error)) from None


_AS_IT_IS = -1
"""What chown(2) takes for "leave it"."""


def _identified(owner: SocketOwner) -> tuple[int, int]:
    """Give the numbers of an owner's user and group. Raises `LookupError`, which says whom there is not."""
    user = group = _AS_IT_IS
    if owner.user is not None:
        try:
            user = pwd.getpwnam(owner.user).pw_uid
        except (KeyError, ValueError):  # ValueError: NUL in it
            raise LookupError(f"there is no user {owner.user!r}") from None
    if owner.group is not None:
        try:
            group = grp.getgrnam(owner.group).gr_gid
        except (KeyError, ValueError):
            raise LookupError(f"there is no group {owner.group!r}") from None
    return user, group


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
    if why := _occupied(path):
        raise OSError(errno.EEXIST, why)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
