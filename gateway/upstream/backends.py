"""Where upstreams lead, and whose disks are there.

What an upstream leads to is its *backend*: an address that is dialled, a server that we start by command, or
one in here.

Whether two backends lead to the same disks decides what keeps out of whose way, and who is told of what is
lost (`gateway.links.disk`). That goes by addresses, as they are written: the host and port, the path of the
socket, the CID and port, the path of the file. Names of one host are not resolved: what they resolve to may
change. Several `uris` lead to one server's disks by the operator's own word, so backends that have any
address in common are one here, through however many others. A server that we start, or have in memory, is
nobody else's. What has been found is kept: the disks of an address stay the same through reloads and
switches.

What is known of an address is kept to by all who go there: a name may have several addresses in the network, of
different disks, so there is one `Dialler` for each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from gateway.net.command import Command
from gateway.net.dial import Dialler
from gateway.net.drive import Stream
from gateway.net.processes import Processes
from gateway.peer import UNKNOWN, Peer
from gateway.upstream.slots import Slots
from gateway.uri import Address, NbdUri, Target, address_of

Connect = Callable[[], Awaitable[Stream]]
"""Gives a stream to a server, or raises `DialError`."""

Where = Target | tuple[str, ...] | tuple[NbdUri, ...]
"""The `uri`, `command` or `uris` of an upstream."""


async def _nothing() -> None:
    """There is nothing to end."""


@dataclass(frozen=True, eq=False)
class Backend:
    """Where an upstream leads, and what runs for it."""

    target: Where
    connects: tuple[Connect, ...] = ()
    """What connects, one for each place; none, if there are `diallers`."""
    diallers: tuple[Dialler, ...] = ()
    """What connects to addresses: each of these remembers where it has connected to."""
    peer_of: Callable[[Stream], Peer] = lambda _stream: UNKNOWN
    """Says who is at the other end of a connection, if we know that whatever the settings say."""
    processes: Processes = field(default_factory=Processes)
    """What finds that out for Unix sockets."""
    disks: Hashable = field(default_factory=object)
    """Whose disks these are: equal for all that leads to the same ones."""
    slots: Slots = field(default_factory=Slots)
    """For the connections to it; the `Server` in force says how many."""
    command: Command | None = None
    """What starts it, if we do."""
    end: Callable[[], Awaitable[None]] = _nothing
    """Ends what we run, once nobody is connected to it."""

    @property
    def addresses(self) -> set[Address]:
        """The addresses that it leads to, if it is known by address."""
        return {address_of(dialler.uri) for dialler in self.diallers}


# --- Backends that are addresses


def disks_by_address(
    known: Iterable[Backend], wanted: Iterable[Sequence[NbdUri]]
) -> dict[Address, Hashable]:
    """Say whose disks each address leads to: as is known of it, or of another address that goes with it; else
    they are its own.
    """
    disks = {address: backend.disks for backend in known for address in backend.addresses}
    groups: list[set[Address]] = []
    for uris in filter(None, wanted):
        group = {address_of(uri) for uri in uris}
        groups, others = [], groups
        for other in others:
            if other & group:
                group |= other
            else:
                groups.append(other)
        groups.append(group)
    for group in groups:
        found = next((disks[each] for each in sorted(group) if each in disks), min(group))
        for address in group:
            disks.setdefault(address, found)
    return disks


def dialled(
    target: Where,
    uris: Sequence[NbdUri],
    known: Sequence[Backend],
    disks: dict[Address, Hashable],
    before: Backend | None = None,
) -> Backend:
    """Give the backend that connects to addresses. It keeps to where the backends that are `known` have
    connected. If it shares an address with what was there `before`, under the same name, it also has its slots.
    """
    diallers = {address_of(each.uri): each for backend in known for each in backend.diallers}
    ours = []
    for uri in uris:
        address = address_of(uri)
        if address not in diallers:
            diallers[address] = Dialler(uri)
        ours.append(diallers[address])
    slots = Slots()
    if before is not None and any(each in before.diallers for each in ours):
        slots = before.slots
    return Backend(target, diallers=tuple(ours), disks=disks[address_of(uris[0])], slots=slots)


def backend_at(uri: NbdUri, led_to: Sequence[Backend]) -> Backend:
    """Give the backend of an address: the first of those that are led to already and have no other, or else
    a new one.
    """
    address = address_of(uri)
    for backend in led_to:
        if backend.addresses == {address}:
            return backend
    return dialled(uri, [uri], led_to, disks_by_address(led_to, [[uri]]))
