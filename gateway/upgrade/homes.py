"""Which of two processes serves a disk: the older one, until it gives the disk to the newer one. Pure.

At the moment of the change every disk is the older process's. It gives a disk when the newer one has a client
for it, and nobody uses it here; or when its last user has gone, which `Giving.answer` finds out because it is
asked again. What was given does not come back, unless the newer process dies. So both can rely on what they
know: the newer one that a disk which it was given is its own, the older one that nobody else has a disk which
it did not give.

The older process may have clients that have not asked for a disk yet: they came before the change, or were
handed over and ask for another one. Whoever asks for a disk here that was not given has it `stay`, as a session
does. Whoever asks for one that was given is handed over in turn.
"""

from __future__ import annotations

from enum import Enum

from gateway.handover.given import DiskSite

MOST_GIVEN = 65_536
"""Disks that are remembered as given. Clients choose the names. If there are more, every disk is given that
nobody uses here: then its client, if one comes to the older process, is handed over."""


class Whose(Enum):
    """What the older process answers when it is given a client."""

    TAKEN = "the client stays here"
    YOURS = "the disk is given: serve the client there"
    LATER = "the disk is about to be given: its last users are ending here"


class Giving:
    """What the older process has given, and what clients have stay."""

    def __init__(self) -> None:
        self._given: set[tuple[tuple[str, ...], str]] = set()
        self._all = False
        self._staying: dict[str, DiskSite] = {}

    def stays(self, client: str, site: DiskSite | None) -> None:
        """See `gateway.handover.homes.Homes`."""
        if site is None:
            self._staying.pop(client, None)
        else:
            self._staying[client] = site

    def is_asked_for(self, site: DiskSite) -> bool:
        """Say whether a client here asks for it."""
        return any(site.meets(each) for each in self._staying.values())

    def is_given(self, site: DiskSite) -> bool:
        """Say whether the newer process has it."""
        if any((address, site.name) in self._given for address in site.where):
            return True
        return self._all and not self.is_asked_for(site)

    def answer(self, site: DiskSite, *, used: bool, ending: bool) -> Whose:
        """Answer the newer process, which has a client for a disk. `used`: somebody uses it here. `ending`: its
        users here are about to end, and no more clients are taken.
        """
        used = used or self.is_asked_for(site)
        if self.is_given(site):
            return Whose.YOURS
        if used:
            return Whose.LATER if ending else Whose.TAKEN
        self._given |= {(address, site.name) for address in site.where}
        self._all = self._all or len(self._given) > MOST_GIVEN
        return Whose.YOURS

    def take_back(self) -> None:
        """The newer process has died."""
        self._given.clear()
        self._all = False
