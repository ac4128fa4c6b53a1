"""What a member of a fleet asks of the gateway around it: the sessions of a disk, and what was lost of it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.fleet.home import DiskHome
from gateway.fleet.record import LostOf


class FleetOffice(Protocol):
    """The gateway of which this is the part that knows the fleet."""

    def end_sessions(self, disk: str, why: str, *, lost: bool) -> None:
        """End the sessions of a disk: it is not ours any more. `lost`: it was not given away."""

    def is_used(self, disk: str) -> bool:
        """Say whether a session of a disk is here, or connections that sessions share."""

    def why_stays(self, disk: str) -> str:
        """Say which sessions of a disk would not outlive a move of it; empty: none."""

    def at_rest(self, disk: str) -> AbstractAsyncContextManager[None]:
        """Have nothing of a disk be under way, and all be flushed, while the block runs. Raises `NotNow`."""

    def vouch(self, disk: str) -> None:
        """Note that nothing is lost to clients whose sessions of a disk end now, and that nothing of theirs is
        under way: it was given away while all was at rest, and there is nothing that anybody has to be told.
        """

    def lost(self, home: DiskHome) -> Collection[LostOf]:
        """Give what whoever opens a disk next has to be told."""

    def tell(self, home: DiskHome, lost: Collection[LostOf]) -> None:
        """Have whoever opens a disk next be told."""
