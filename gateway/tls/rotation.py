"""Credentials that are exchanged while the gateway runs: new sessions use the new ones, running ones go on.

Files are looked at every few seconds, not watched: inotify says nothing of a directory that is exchanged by
a symlink (as Kubernetes and certbot do) unless every step of the path is watched, nor of a network's files;
and eight stat calls cost nothing. A file is known by what it is where its path leads now: so an exchanged
link is seen, and so is a chmod, which mends a refused PSK file.

Certificate and key cannot be exchanged at once. A change is therefore taken up only when two looks, one
after the other, have seen the same; and what was taken up half-way all the same fails (the key does not
fit), is told, and is mended by the next look.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gateway.there import status_of, unseen
from gateway.tls.errors import CredentialsError

T = TypeVar("T")

LOOK_AT_FILES_SECONDS = 5
"""How often files are looked at: soon enough for whoever has just exchanged them and tries it out."""

TAKEN_UP_SECONDS = 2 * LOOK_AT_FILES_SECONDS
"""How long a change waits at most: it comes just after a look, and wants two that see the same."""

Stamp = tuple[int, int, int, int, int] | None
"""Device, inode, size, and when (ns) content and status were changed; None: there is no such file, or no
way to it."""


def stamp_of(path: Path) -> Stamp:
    """Give what distinguishes a file's state, following links."""
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

    `load` gives them or raises; `paths` are the files that they depend on, there or not. The first ones are
    loaded here, so this raises what `load` raises.
    """

    def __init__(self, load: Callable[[], T], paths: tuple[Path, ...]) -> None:
        self._load = load
        self._paths = paths
        # Before loading: what changes meanwhile counts as a change.
        self._good = self._tried = self._seen = self._look()
        self.current = load()

    def changed(self) -> bool:
        """Look at the files. True if they are not as they were at the last attempt, and were so at the last
        look, too: then `reload`. A broken file is so told of once, not at every look.
        """
        now = self._look()
        settled = now == self._seen
        self._seen = now
        return settled and now != self._tried

    def reload(self) -> tuple[str, ...]:
        """Load anew, and say which files have changed; the same credentials if none has.

        All or nothing: raises what `load` raises, and `CredentialsError` if a file is gone, and leaves
        `current` as it was.
        """
        self._seen = self._tried = now = self._look()
        for path, before in self._good.items():
            if before is not None and now[path] is None:
                # A list of revoked certificates that is missing for a moment must let nobody in.
                raise CredentialsError(path, _what_became_of(path))
        current = self._load()
        changes = differences(self._good, now)
        self.current, self._good = current, now
        return changes

    def _look(self) -> dict[Path, Stamp]:
        return {path: stamp_of(path) for path in self._paths}
