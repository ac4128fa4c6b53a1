"""How many connections one export may have upstream, and whether its clients may spread over several of theirs:
decided from what the connections have said, without asking anybody.

What CAN_MULTI_CONN says. proto.md ("Transmission flags"): the server works without any cache, "or that the
cache it uses is shared among all connections ... in particular, if this flag is present, then the effects of
FLUSH and FUA MUST be visible across all connections when the server sends its reply". That is read in two ways:

- strong, by the first half: a READ on one connection sees what a WRITE that was answered on another has
  written. qemu's server does so, and the Linux kernel's client relies on it.
- weak, by the second ("in particular"): it sees it after a FLUSH in between was answered. nbdkit's multi-conn
  filter promises no more where it emulates the flag (nbdkit-multi-conn-filter(1)).

Without the flag nothing is promised at all: each connection may have a cache of its own, which a FLUSH on
another one does not write out.

A client with one connection expects to read what it wrote, and sends no FLUSH for that. Spread over several
connections in turns it could read old data under the weak reading. So requests go by their offset: all that
touches a byte takes the same connection (range affinity), and is seen there under both readings. What is left
to the flag is FLUSH: one of them covers what all connections were answered, which both readings promise.
`coherence = "strong"` is the operator's word for the strong reading; then any connection may be taken.

So several connections are used only if the repaired upstream offers CAN_MULTI_CONN, or if it is READ_ONLY: what
nobody writes looks the same everywhere. They have to lead to the same server, and to say the same: connections
that differ in anything that we pass on are not to the same export, whatever flags they have.

What clients are offered is another question. One connection that all of them share is one client to the server,
which sees their requests in one order and has one cache for them: we cache nothing, and answer a client only
after the server did, so that CAN_MULTI_CONN may be promised even where the server lacks it. (qemu's server
argues the same way for its one BlockBackend.) Over any more than that, we have no more to promise than it has.

The other side of every decision is safe: one connection for each client is what the server sees without us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from gateway.config import Connections
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks.qemu_multi_conn_bit import QUIRK as MULTI_CONN_BIT
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, shown


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the connections that are wanted."""

    count: int
    """How many may be used: for each client, or for all clients together where they share them."""
    reason: str
    """Why these are not as many as wanted, in one sentence; empty if they are."""
    may_offer_multi_conn: bool
    """Clients may be promised CAN_MULTI_CONN."""


def decide(
    wanted: Connections,
    exports: Sequence[Export],
    *,
    same_storage: bool,
    may_differ: bool,
    repaired: Iterable[str] = (),
) -> Decision:
    """Decide for an export as it stands, repaired, on each of its connections: on all that are open, or on the
    first alone, to know whether others are worth opening.

    `same_storage`: connections may lead to different servers, of one disk; `may_differ`: and for all that is
    known to different disks. `repaired`: names of the quirks in force.
    """
    first, *others = exports
    spread = _spread(first, same_storage=same_storage, may_differ=may_differ)
    otherwise = _said_otherwise(first, others)
    why = spread or _not_promised(first, repaired) or otherwise
    if wanted.count == 1:
        count, reason = 1, ""
    elif why:
        count, reason = 1, sentence(wanted, 1, why)
    else:
        count, reason = wanted.count, ""
    as_upstream = bool(first.flags & Flag.CAN_MULTI_CONN) and not otherwise
    if spread and not first.flags & Flag.READ_ONLY:
        as_upstream = False  # one server's FLUSH does not cover what another was given
    return Decision(count, reason, as_upstream or (wanted.shared and count == 1))


def sentence(wanted: Connections, count: int, why: str) -> str:
    """Say that there are fewer connections than wanted."""
    had = "one connection" if count == 1 else f"{count} connections"
    return f"{had} instead of {wanted.count}: {why}"


def check_required(wanted: Connections, decision: Decision) -> None:
    """Hold an export to `connections-required = true`. Raises `Refusal`."""
    if decision.count < wanted.count:
        raise Refusal(
            Rep.ERR_POLICY, f"the configuration has connections-required = true: {decision.reason}"
        )


def offered(export: Export, decision: Decision) -> Export:
    """Give the export as clients are to see it: with CAN_MULTI_CONN if it may be promised, else without."""
    flags = export.flags & ~Flag.CAN_MULTI_CONN
    if decision.may_offer_multi_conn:
        flags |= Flag.CAN_MULTI_CONN
    return replace(export, flags=int(flags))


# --- Why not. Each gives the rest of a sentence, or "" where nothing is in the way.


def _spread(export: Export, *, same_storage: bool, may_differ: bool) -> str:
    """Say whether connections lead to different servers, and that matters."""
    if may_differ:
        return (
            "the uris may lead to different servers, and nothing says that they have the same disks"
        )
    if same_storage and not export.flags & Flag.READ_ONLY:
        return (
            "with same-storage = true they may lead to different servers, and one server's FLUSH does not cover"
            " what was written to another"
        )
    return ""


_UNSEEN = "so what is written over one connection need not be seen over another"
_TAKEN_FROM_IT = {
    MULTI_CONN_BIT.name: f"its bit 8 is qemu 3.0's CACHE; quirk {MULTI_CONN_BIT.name}",
}
"""Quirks that clear CAN_MULTI_CONN: what the server means by it."""


def _not_promised(export: Export, repaired: Iterable[str]) -> str:
    """Say whether connections may show different things."""
    if export.flags & (Flag.CAN_MULTI_CONN | Flag.READ_ONLY):
        return ""
    meant = [_TAKEN_FROM_IT[name] for name in repaired if name in _TAKEN_FROM_IT]
    aside = f" ({'; '.join(meant)})" if meant else ""
    return f"the server does not offer CAN_MULTI_CONN{aside}, {_UNSEEN}"


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something that all connections have to say alike."""

    what: str
    of: Callable[[Export], object]
    words: Callable[[Export], str]


_FACTS = (
    _Fact("size", lambda export: export.size, lambda export: f"{export.size} bytes"),
    _Fact(
        "transmission flags", lambda export: export.flags, lambda export: _flag_words(export.flags)
    ),
    _Fact(
        "block sizes",
        lambda export: export.block_sizes,
        lambda export: _block_size_words(export.block_sizes),
    ),
    _Fact("canonical name", lambda export: export.name, lambda export: _name_words(export.name)),
    _Fact(
        "meta contexts",
        lambda export: _context_names(export),
        lambda export: shown(" ".join(_context_names(export))),
    ),
    _Fact("framing", lambda export: export.framing, lambda export: str(export.framing)),
)


def _said_otherwise(first: Export, others: Sequence[Export]) -> str:
    """Say which connection differs from the first, and in what."""
    for number, other in enumerate(others, start=2):
        for fact in _FACTS:
            if fact.of(other) != fact.of(first):
                differ = f"{fact.words(other)} in place of {fact.words(first)}"
                return (
                    f"connection {number} differs from the first in its {fact.what} ({differ}), so they may not"
                    " lead to the same disk"
                )
    return ""


def _context_names(export: Export) -> list[str]:
    # Ids are each connection's own, and the order says nothing.
    return sorted(context.name for context in export.contexts)


def _name_words(name: str | None) -> str:
    return "none" if name is None else shown(name)


def _block_size_words(sizes: BlockSizes | None) -> str:
    return "none" if sizes is None else f"{sizes.minimum}, {sizes.preferred}, {sizes.maximum}"


def _flag_words(flags: int) -> str:
    known = [flag.name or "" for flag in Flag if flags & flag]
    unknown = flags & ~sum(Flag)
    return " ".join([*known, *([f"{unknown:#x}"] if unknown else [])]) or "none"
