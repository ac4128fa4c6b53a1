"""Credentials that are exchanged while the gateway runs. New sessions use the new ones, running ones go on.

We look at files every few seconds, and do not watch them. inotify says nothing of a directory that a symlink
exchanges (as Kubernetes and certbot do) unless every step of the path is watched, nor of files on a network;
and eight stat calls cost nothing. We compare the file to which a path leads now with the one before. So we see
an exchanged link, and a chmod, too, which mends a refused PSK file.

Certificate and key cannot be exchanged at once. So we take up a change only after two looks in a row have seen
the same. If a change was half done all the same, loading fails (the key does not fit) and the log says so; when
the other file has come, a later look takes up both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gateway.there import status_of, unseen
from gateway.tls.errors import CredentialsError

T = TypeVar("T")

LOOK_AT_FILES_SECONDS = 5
"""How often we look at files: soon enough for somebody who has just exchanged them and tries it out."""

TAKEN_UP_SECONDS = 2 * LOOK_AT_FILES_SECONDS
"""How long a change waits at most: it may come just after a look, and two looks have to see the same."""

Stamp = tuple[int, int, int, int, int] | None
"""Device, inode, size, and when (ns) content and status were changed; None: there is no such file, or we cannot
get to it."""


def stamp_of(path: Path) -> Stamp:
    """Give what tells a file's states apart, following links."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def differences(before: dict[Path, Stamp], after: dict[Path, Stamp]) -> tuple[str, ...]:
    """Say of each file what became of it."""
    return tuple(
        f"{path} {'is new' if before.get(path) is None else 'has changed'}"
        for path, new in after.items()
        if before.get(path) != new
    )


def _what_became_of(path: Path) -> str:
    try:
        status_of(path)
    except OSError as error:
        return unseen(error)
    return "is gone; to go without it, start anew"


class Rotating(Generic[T]):
    """The newest credentials that could be loaded.

    `load` gives them or raises. `paths` are the files that they depend on, there or not. The first credentials
    are loaded at once, so this raises what `load` raises.
    """

    def __init__(self, load: Callable[[], T], paths: tuple[Path, ...]) -> None:
        self._load = load
        self._paths = paths
        # Look before loading: what changes meanwhile then counts as a change.
        self._good = self._tried = self._seen = self._look()
        self.current = load()

    def changed(self) -> bool:
        """Look at the files, and say whether to `reload`: they differ from those of the last attempt to load,
        and the last look saw the same. So a broken file is reported once, and not at every look.
        """
        now = self._look()
        settled = now == self._seen
        self._seen = now
        return settled and now != self._tried

    def reload(self) -> tuple[str, ...]:
        """Load anew, and say which files have changed. If this raises, `current` stays as it was. Raises what
        `load` raises, and `CredentialsError` if a file is gone.
        """
        self._seen = self._tried = now = self._look()
        for path, before in self._good.items():
            if before is not None and now[path] is None:
                # If a list of revoked certificates is missing for a moment, that must let nobody in.
                raise CredentialsError(path, _what_became_of(path))
        current = self._load()
        changes = differences(self._good, now)
        self.current, self._good = current, now
        return changes

    def _look(self) -> dict[Path, Stamp]:
        return {path: stamp_of(path) for path in self._paths}
