"""Who has asked for which pauses, and has not taken it back. A pause does not end for one as long as another
wants it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has asked for a pause."""

    by: object = None
    """Who holds it. None: nobody who would take it back."""
    command: object = None
    """By which command."""


class Holders:
    """The holders of all exports that are paused."""

    def __init__(self) -> None:
        self._holders: dict[str, list[Holder]] = {}
        """Who has asked for an export to be paused, since it is paused."""
        self._paused_by: dict[object, list[str]] = {}
        """What each has asked for, and has not taken back, as long as a part of it is paused."""

    def add(self, exports: Collection[str], by: object = None, command: object = None) -> None:
        """Somebody has asked to pause these. They are paused."""
        if by is not None:
            self._paused_by[by] = list(dict.fromkeys([*self.paused_by(by), *exports]))
        for export in exports:
            self._holders.setdefault(export, []).append(Holder(by, command))

    def paused_by(self, by: object) -> list[str]:
        """Give the exports that somebody has paused, even if some of them have gone on meanwhile."""
        return list(self._paused_by.get(by, ()))

    def words(self, export: str) -> list[str]:
        """Give the words by which those are known again who hold it, where they have one."""
        return [each.by for each in self._holders.get(export, ()) if isinstance(each.by, str)]

    def held_by(self, export: str, by: object) -> bool:
        """Say whether somebody holds it."""
        return any(each.by == by for each in self._holders.get(export, ()))

    def others_hold(self, export: str, by: object) -> bool:
        """Say whether others hold a paused export, too."""
        return any(each.by != by for each in self._holders[export])

    def taken_back(self, by: object, kept: Collection[str], ended: Collection[str]) -> None:
        """Somebody has taken back what he had asked for: those that others hold and that are `kept`, and those
        that have ended.
        """
        for export in kept:
            self._drop(export, [each for each in self._holders[export] if each.by == by])
        self._forget(by, [*kept, *ended])

    def undo(self, command: object) -> list[str]:
        """Take back what a command has asked for. Give the exports that nobody holds any more."""
        left = []
        for export, holders in list(self._holders.items()):
            his = [each for each in holders if each.command is command]
            if not his:
                continue
            self._drop(export, his)
            for each in his:
                if not self.held_by(export, each.by):
                    self._forget(each.by, [export])
            if not self._holders[export]:
                left.append(export)
        return left

    def has_gone_on(self, export: str) -> None:
        """A pause has ended, whoever held it."""
        self._holders.pop(export, None)

    def forget_all_but(self, paused: Collection[str]) -> None:
        """These are still paused. Forget those who have asked for none of them."""
        for by, names in list(self._paused_by.items()):
            if set(paused).isdisjoint(names):
                del self._paused_by[by]

    def _drop(self, export: str, holders: Collection[Holder]) -> None:
        self._holders[export] = [each for each in self._holders[export] if each not in holders]

    def _forget(self, by: object, exports: Collection[str]) -> None:
        """Forget what somebody had asked for of these exports, and of no others."""
        left = [export for export in self.paused_by(by) if export not in exports]
        self._paused_by.pop(by, None)
        if left:
            self._paused_by[by] = left
