"""Which disks have a home, and why: a function of the configuration, and of nothing that is found out later.

A *home* is the one worker that serves all clients of a disk. What there is once for each disk is there:

- claims: of a block of which two clients write parts, one has to wait for the other;
- losses: who relies on what a server has lost is told, over whichever connection it was written;
- the connections that clients share; and what is written again after a loss;
- pauses, and the policies that count the sessions of an export.

Two workers that each had their own of these would each be right by itself, and wrong together: a FLUSH would
be answered that covers nothing. So a disk has a home unless all of this is true of it: clients do not share
connections, no policy counts its sessions, no part of a block is written, and it is read-only or nothing is
remembered after its connection is lost (reconnect-seconds = 0). Then it stays where its client came in.

Disks of one server may have to be at one home together (`HomeOf.SERVER`): the server is started by us, or has
so many places for connections, or two of its names may be one disk (`gateway.links.disk`) and parts of blocks
are written. This cannot wait for what the server says of its blocks: a client goes home before the server is
asked. So it goes by what may be needed.

It is decided for each server, over all ways that lead there: if one export only reads a disk that another one
writes, both have to be told of what is lost. A server is known by its addresses, as they are written; several
`uris` are one server.

What was decided once stays (`before`). A reload that would give a server's disks other homes is refused, for
sessions may be at the old ones: `HomesMove`. A worker that is started anew is given the table, and does not
make one of its own from a configuration that was reached another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from gateway.access.loading import made
from gateway.config import Config, Export, Upstream
from gateway.policy import Policy
from gateway.uri import Address, address_of
from gateway.workers.rendezvous import key_bytes, worker_of


class HomeOf(Enum):
    """What has a home."""

    NOWHERE = "nowhere"
    """Nothing: each client stays where it came in."""
    DISK = "disk"
    """Each disk by itself."""
    SERVER = "server"
    """All disks of the server together."""


@dataclass(frozen=True, slots=True)
class Homed:
    """What was decided of one server."""

    kind: HomeOf
    server: Address
    """The address by which it is known: the first of its addresses when they were first seen."""
    why: str
    """In words for people: what is one there, or that nothing is."""


Table = Mapping[Address, Homed]
"""Each address of each server -> what was decided of it."""

NOTHING: Table = MappingProxyType({})
"""Nothing was decided before."""


class HomesMove(Exception):
    """Disks would have other homes than they have. The text is for who asked for the reload."""


def addresses_of(settings: Upstream) -> tuple[Address, ...]:
    """Give by what a server is known. One that we start is known by what starts it; one in the gateway itself
    by nothing, and cannot be served by several workers.
    """
    if settings.command is not None:
        return (("command", *settings.command),)
    return tuple(address_of(uri) for uri in settings.nbd_uris)


def table_of(config: Config, *, counted: bool, before: Table = NOTHING) -> Table:
    """Decide of every server of a configuration. `counted`: there are policies that count an export's
    sessions. Raises `HomesMove`.
    """
    table = dict(before)
    for upstreams in _servers(config):
        addresses = list(
            dict.fromkeys(
                each for name in upstreams for each in addresses_of(config.upstream[name])
            )
        )
        names = " and ".join(upstreams)
        known = {table[each].server: table[each] for each in addresses if each in table}
        if len(known) > 1:
            were = " and ".join(_words(each) for each in known)
            raise HomesMove(
                f"upstream {names}: {were} were two servers, and would be one now, with other homes for its"
                " disks: that takes a restart"
            )
        kind, why = _decided(config, upstreams, counted=counted)
        there = next(iter(known.values()), None)
        if there is not None and there.kind is not kind:
            raise HomesMove(
                f"upstream {names}: its disks would have other homes than they have, for {why} (before,"
                f" {there.why}): that takes a restart"
            )
        homed = there or Homed(kind, addresses[0], why)
        table |= dict.fromkeys(addresses, homed)
    return table


def key_of(homed: Homed, name: str) -> bytes | None:
    """Give what is hashed for a disk, which has a name at its server; None: it has no home."""
    match homed.kind:
        case HomeOf.NOWHERE:
            return None
        case HomeOf.SERVER:
            return key_bytes(homed.server)
        case HomeOf.DISK:
            return key_bytes((*homed.server, name))


def home_of(table: Table, settings: Upstream, name: str, workers: int) -> int | None:
    """Give the number of the worker that is the home of a disk, by its server and its name there; None: it has
    none.
    """
    [first, *_] = addresses_of(settings)
    key = key_of(table[first], name)
    return None if key is None else worker_of(key, workers)


def counted_by(config: Config, *, kept: bool) -> bool:
    """Say whether there are policies that count the sessions of an export, so that these have to be together;
    or may be: tickets, which several gateways have, can name any. `kept`: what they say that they count
    (`Policy.counted`) is kept for all processes together. Raises `PolicyError`.
    """
    if config.tickets.etcd:
        return True
    uses = [use for rule in config.rule for use in rule.policies]
    uses += [use for export in config.export for use in export.policies]
    return any(_counts(made(use), kept=kept) for use in uses)


def _counts(policy: Policy, *, kept: bool) -> bool:
    is_kept = kept and type(policy).counted is not Policy.counted
    scope = policy.remembers()
    return scope == "export" or (scope == "place" and not is_kept)


# --- For another process


def said_of(table: Table) -> list[list[Any]]:
    """Give a table for a message."""
    return [[[*at], homed.kind.value, [*homed.server], homed.why] for at, homed in table.items()]


def table_said(said: Sequence[Sequence[Any]]) -> Table:
    """Read what `said_of` gave."""
    return {
        tuple(at): Homed(HomeOf(kind), tuple(server), str(why)) for at, kind, server, why in said
    }


# --- The decision


def _servers(config: Config) -> Iterator[tuple[str, ...]]:
    """Give the names of upstreams that lead to one server, together."""
    groups: list[tuple[list[str], set[Address]]] = []
    for name, settings in config.upstream.items():
        names, addresses = [name], {*addresses_of(settings)}
        if not addresses:
            continue
        apart = []
        for group in groups:
            if group[1] & addresses:
                names, addresses = [*group[0], *names], addresses | group[1]
            else:
                apart.append(group)
        groups = [*apart, (names, addresses)]
    for names, _addresses in groups:
        yield tuple(names)


def _decided(config: Config, upstreams: Sequence[str], *, counted: bool) -> tuple[HomeOf, str]:
    settings = [config.upstream[name] for name in upstreams]
    exports = [each for each in config.exports if each.upstream in upstreams]
    in_parts = any(_writes_parts(each) for each in exports)
    if any(each.command is not None for each in settings):
        return HomeOf.SERVER, "the gateway starts its server, once"
    if any(each.max_connections is not None for each in settings):
        return HomeOf.SERVER, "max-connections counts the connections to all disks of the server"
    if any(each.warm for each in settings):
        return (
            HomeOf.SERVER,
            "the connections that are kept ready (warm) are counted for the server",
        )
    if in_parts and not all(each.canonical_names for each in settings):
        return HomeOf.SERVER, (
            'parts of blocks may be written (unaligned = "rmw"), and two names of the server may be one disk'
            " (canonical-names = true says that they are not)"
        )
    if any(each.connections.shared for each in settings):
        return HomeOf.DISK, "clients share connections to it"
    if counted:
        return HomeOf.DISK, "policies count the sessions of an export"
    if in_parts:
        return HomeOf.DISK, 'parts of blocks may be written (unaligned = "rmw")'
    read_only = all(each.read_only for each in exports)
    if not read_only and any(each.reconnect_seconds for each in settings):
        return HomeOf.DISK, (
            "what was written and not flushed is remembered when its connection is lost (reconnect-seconds)"
        )
    nothing = "nobody writes to it" if read_only else "reconnect-seconds = 0"
    return HomeOf.NOWHERE, f"nothing is remembered of it: {nothing}"


def _writes_parts(export: Export) -> bool:
    return export.unaligned == "rmw" and not export.read_only


def _words(address: Address) -> str:
    return " ".join(address)
