"""Extents of block status as proto.md wants them told: "Structured reply types", BLOCK_STATUS.

Fewer extents than were asked for are always legal, so what cannot be told ends the list.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.wire.extents import NARROW, Extents
from gateway.wire.framing import EXTENDED, Framing

STATUS_TOO_LONG = "the server gave a status of more than 32 bits"

LONGEST_EXTENT = 2**32 - 1
"""What a BLOCK_STATUS chunk without extended headers can say of one extent."""


def mended_extents(extents: Extents, length: int, reach: int, *, one: bool) -> Extents:
    """Give the extents of a reply as proto.md wants them. `length`: bytes asked for; `reach`: bytes from the
    request's offset to the end of the export; `one`: REQ_ONE was set. Empty extents are left out (Q-S4), what
    lies behind the export is cut off (Q-S10), and so is what begins after the range that was asked for.
    """
    told = extents.without_empty()
    return told[:1].first(length) if one else told.begun_before(length).first(reach)


def narrowed(extents: Extents, alignment: int) -> Extents | None:
    """Give extents that 32 bits can say. The list ends with the first that is longer, cut to whole blocks of
    `alignment` bytes. None: a status has more than 32 bits, and cannot be told.
    """
    if extents.lengths.typecode == NARROW or not extents:
        return extents
    if max(extents.flags) >> 32:
        return None
    if max(extents.lengths) <= LONGEST_EXTENT:
        return extents
    long = next(n for n, length in enumerate(extents.lengths) if length > LONGEST_EXTENT)
    cut = extents[: long + 1]
    cut.lengths[long] = LONGEST_EXTENT - LONGEST_EXTENT % alignment
    return cut


def evened(told: Sequence[tuple[int, Extents]]) -> Sequence[tuple[int, Extents]]:
    """Give the extents of several contexts, by their ids, cut to what the shortest covers. A client that goes
    on from where one of them ends would miss what the others did not tell.
    """
    totals = [extents.total for _context, extents in told] if len(told) > 1 else []
    if len(set(totals)) < 2:
        return told
    shortest = min(totals)
    return [(context, extents.first(shortest)) for context, extents in told]


class Untellable(Exception):
    """Extents cannot be told to a client; the text says why."""


def status_reply(
    client: Framing,
    cookie: int,
    asked: int,
    told: Sequence[tuple[int, Extents]],
    alignment: int,
) -> list[memoryview | bytes]:
    """Give the whole reply to a BLOCK_STATUS at `asked`, for which the extents of each context were mended, by
    the ids that the client knows. Raises `Untellable`: then the command fails.
    """
    if client is not EXTENDED:
        narrow = [(context, narrowed(extents, alignment)) for context, extents in told]
        if any(extents is None for _context, extents in narrow):
            raise Untellable(STATUS_TOO_LONG)
        told = [(context, extents) for context, extents in narrow if extents is not None]
    if not all(extents for _context, extents in told):
        raise Untellable("the server gave no extent that is not empty")
    last = len(told) - 1
    return [
        client.status(cookie, asked, context, extents, done=number == last)
        for number, (context, extents) in enumerate(evened(told))
    ]
