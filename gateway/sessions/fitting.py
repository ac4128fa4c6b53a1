"""Whether an export that is opened elsewhere keeps what was promised of it; pure.

Two things are compared. First, what each connected client was promised, on the terms that it negotiated and
with the policies that it has (`misfits`). Second, what the server that is left says and what the other one
says, whoever is connected (`misfits_for_anybody`): a client that has just disconnected and comes again counts
on the same disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import eq, ge, le

from gateway.access.chain import Compiled, compile_chain
from gateway.config import Route
from gateway.protocol.export import Export, Offer, lacks
from gateway.sessions.promise import first_view, promise
from gateway.wire.constants import TransmissionFlag


def misfits(was: Offer, before: Export, after: Export, agreed: Compiled) -> list[str]:
    """Say what a client was promised over one link, and does not have over another, on terms that are
    agreed.
    """
    now = promise(agreed, structured=was.structured, extended=was.extended, selected=was.contexts)
    found: list[str] = []

    def compare(what: str, had: int, has: int, fits: Callable[[int, int], bool]) -> None:
        if not fits(has, had):
            found.append(f"{what} {has} instead of {had}")

    compare("size", before.size, after.size, eq)
    if not found:
        compare("size for the client", was.size, now.size, eq)
    compare("first byte", was.base, now.base, eq)
    old, new = was.block_sizes, now.block_sizes
    if after.block_sizes is not None:
        # One that nobody told is kept to here, whatever a client sends.
        compare("minimum block", old.minimum, new.minimum, le)
    compare("maximum payload", old.maximum, new.maximum, ge)
    compare("alignment", was.alignment, now.alignment, le)
    return found + lacks(was, now)


def misfits_for_anybody(route: Route, before: Export, after: Export) -> list[str]:
    """Say what a client without policies would have of an export over one link, and not over another, of the
    contexts that both were opened with.
    """
    was = promise(
        compile_chain((), first_view(route, before)),
        structured=before.structured,
        extended=before.extended,
        selected=before.contexts,
    )
    return misfits(was, before, after, compile_chain((), first_view(route, after)))


def plainly(export: Export) -> Export:
    """Give what an export is by itself, whatever its client negotiated, and how many connections it has."""
    flags = export.flags & ~TransmissionFlag.CAN_MULTI_CONN
    return replace(export, flags=flags, structured=False, extended=False, contexts=())
