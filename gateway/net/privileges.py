"""Another user than the one who has started us, once all is open that takes more rights (setresuid(2)).

Ports below 1024, sockets in /run, keys that only root reads: root opens them, and then is not root any more.
What is opened later (a new listener, exchanged credentials, the file of a policy) is opened as that user. There
is no way back: all three user ids change, and with them go all capabilities (capabilities(7)).

Python itself, and we, are loaded in parts, when they are needed. A user who cannot read them could serve until
something is, so that is looked at first.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class CannotBecome(Exception):
    """We cannot be somebody else; the text says whom, and why."""


@dataclass(frozen=True)
class Somebody:
    """Whom to become, by numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """All groups of the user, and that one."""

    @property
    def is_me(self) -> bool:
        """Say whether we are already."""
        mine = (*os.getresuid(), *os.getresgid())
        return mine == (self.uid,) * 3 + (self.gid,) * 3 and {*self.groups} >= {*os.getgroups()}


def somebody(user: str | None, group: str | None) -> Somebody:
    """Give who has these names; None: whoever we are, and the user's own group. Raises `CannotBecome`."""
    uid, gid, groups = os.geteuid(), os.getegid(), tuple(os.getgroups())
    if user is not None:
        try:
            found = pwd.getpwnam(user)
        except (KeyError, ValueError):  # ValueError: NUL in it
            raise CannotBecome(f'there is no user "{user}"') from None
        uid, gid = found.pw_uid, found.pw_gid
    if group is not None:
        try:
            gid = grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            raise CannotBecome(f'there is no group "{group}"') from None
    if user is not None:
        groups = tuple(os.getgrouplist(user, gid))
    elif group is not None:
        groups = (gid,)
    return Somebody(uid, gid, groups)


def why_not(user: str | None, group: str | None) -> Iterator[tuple[str, str]]:
    """Say what is in the way, and which of both keys asks for it. Nothing is changed."""
    for key, each in (("user", (user, None)), ("group", (None, group))):
        try:
            somebody(*each)
        except CannotBecome as error:
            yield key, str(error)
            return
    if (user or group) and not somebody(user, group).is_me and os.geteuid() != 0:
        yield ("user" if user else "group"), _takes_root(user, group)


def become(user: str | None, group: str | None, ours: Path | None) -> None:
    """Become somebody else, for good, and give them the file `ours`. Raises `CannotBecome`."""
    target = somebody(user, group)
    if target.is_me:
        return
    if os.geteuid() != 0:
        raise CannotBecome(_takes_root(user, group))
    try:
        if ours is not None:
            os.chown(ours, target.uid, target.gid)
        os.setgroups(target.groups)
        os.setresgid(*(target.gid,) * 3)
        os.setresuid(*(target.uid,) * 3)
    except OSError as error:
        raise CannotBecome(f"cannot become {_named(user, group)}: {error.strerror}") from None
    for path in (os.__file__, __file__, sys.executable):
        if not os.access(path, os.R_OK):
            raise CannotBecome(
                f"{_named(user, group)} cannot read {path}, and would have to load more"
            )


def _takes_root(user: str | None, group: str | None) -> str:
    return f"only root can become {_named(user, group)}, and this is user {os.geteuid()}"


def _named(user: str | None, group: str | None) -> str:
    words = [f"{what} {name}" for what, name in (("user", user), ("group", group)) if name]
    return " and ".join(words)
