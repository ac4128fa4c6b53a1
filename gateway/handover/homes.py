"""What a negotiation needs to know of homes: whether the client that it has is served here."""

from __future__ import annotations

from typing import Protocol

from gateway.handover.given import DiskSite, Door, Given
from gateway.net.listen import address
from gateway.uri import NbdUri


class Homes(Protocol):
    """Knows which process is the home of each disk, where there is more than one."""

    async def takes(self, client: Given, descriptor: int, export: str | None) -> bool:
        """Hand a client over, if its home is another process; say whether that has it now. `descriptor` is the
        caller's copy of its socket, and belongs to this from now on. `export` is our name of what it asks for.
        Raises `Refusal`: nobody serves it now.
        """
        ...

    def stays(self, client: str, site: DiskSite | None) -> None:
        """A client, known by its id, is served here, and asks for a disk: the disk stays here as long as it
        does. None: it does so no more.
        """
        ...


def door_of(uri: NbdUri) -> Door:
    """Give which `[[listen]]` an address is, in texts and numbers alone, so that another process knows it."""
    return (uri.transport.name, *address(uri)[1:])
