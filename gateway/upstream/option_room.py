"""How many exports may be looked at over one connection, on which a server bears only so many options; pure."""

from __future__ import annotations

MOST_OPTIONS = 32
"""How many options a server bears on one connection over which exports are looked at; and as many again for
each export that LIST tells on it. nbdkit bears no more (one without lists ends at the first number)."""

MOST_FOR_ONE = 4
"""How many options it takes to look at one export, at most; and ABORT comes at the end."""


class OptionRoom:
    """The room on one connection. `asked` is how many options it has had."""

    def __init__(self) -> None:
        self._most = MOST_OPTIONS
        self._may_grow = True

    def has(self, asked: int) -> bool:
        """Say whether one more export may be looked at."""
        return asked + MOST_FOR_ONE < self._most

    def is_for_list(self, asked: int) -> bool:
        """Say whether there is just enough left for LIST and an export after it, and we have not tried yet
        whether LIST makes more room.
        """
        return self._may_grow and self.has(asked + 1) and not self.has(asked + 1 + MOST_FOR_ONE)

    def grow(self, names: int) -> None:
        """LIST has told so many names; 0, if it was refused. One is also what a server tells that has no list,
        and bears no more options for it.
        """
        self._may_grow = False
        self._most += MOST_OPTIONS * max(0, names - 1)
