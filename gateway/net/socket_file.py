"""The file of a Unix socket: whether there can be one at a path, whose it is, and what a killed process leaves.

Who may connect is said by the file's mode and owner (unix(7)), which are right before anybody can: they are set
between bind(2) and listen(2). The file outlives the process. So one that nobody listens on any more is removed,
and only that: a socket that is in use, and a file that is no socket, stay.

An abstract address looks like a path and has no file.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from pathlib import Path

from gateway.config import Listen, SocketOwner
from gateway.there import unexpanded


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


def other_file(settings: Listen) -> str | None:
    """Say what is not as a `[[listen]]` says of the file of a Unix socket that somebody else has made."""
    path = settings.uri.socket_path
    if path is None or is_abstract(path):
        return None
    try:
        there = Path(path).stat()
        wanted = (
            (_AS_IT_IS,) * 2
            if settings.socket_owner is None
            else _identified(settings.socket_owner)
        )
    except (OSError, LookupError) as error:
        return str(error)
    mode, wanted_mode = stat.S_IMODE(there.st_mode), settings.socket_mode
    if wanted_mode not in (None, mode):
        return f"the file's mode is {mode:04o}, and socket-mode is {wanted_mode:04o}"
    owner = (there.st_uid, there.st_gid)
    if any(each not in (_AS_IT_IS, its) for each, its in zip(wanted, owner, strict=True)):
        return f"the file's owner is {owner[0]}:{owner[1]}, and socket-owner is {settings.socket_owner}"
    return None


def usual_mode() -> int:
    """Give the mode that a socket's file gets from the umask."""
    umask = os.umask(0o077)  # to know it is to set it
    os.umask(umask)
    return 0o777 & ~umask


def give_away(path: Path, owner: SocketOwner) -> None:
    """Give a socket's file to an owner. Raises `LookupError`, which says whom there is not, and `OSError`."""
    user, group = _identified(owner)
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


def remove_stale(path: Path) -> None:
    """Remove the file of a socket that nobody listens on any more, which only a refused connection proves.
    Raises `OSError` if something else is there.
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
