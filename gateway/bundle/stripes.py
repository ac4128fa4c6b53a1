"""Which line has which byte: by stripes of the upstream's offsets, one line after the other.

With one line there is nothing to decide, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.protocol.asks import Ask

MOST_STRIPES = 16
"""A command without payload that covers more stripes goes as one. In pieces of a stripe, a TRIM of a whole disk
would be millions of requests."""


def nth(offset: int, stripe: int, count: int) -> int:
    """Give which of `count` lines has a byte."""
    return offset // stripe % count


def stripes(offset: int, end: int, stripe: int) -> int:
    """Give how many stripes a range touches."""
    return (end - 1) // stripe - offset // stripe + 1


def cut(offset: int, end: int, stripe: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the borders of stripes: give (offset, length) of each part."""
    while offset < end:
        behind = min(end, offset - offset % stripe + stripe)
        yield offset, behind - offset
        offset = behind


def parts(ask: Ask, stripe: int) -> list[Ask]:
    """Give what an ask is for each stripe."""
    data = memoryview(ask.data)
    found = []
    for offset, length in cut(ask.offset, ask.end, stripe):
        at = offset - ask.offset
        own = ask.own
        if own is not None:
            start = min(max(own[0], offset), offset + length)
            own = start, max(start, min(own[1], offset + length))
        data_of_part = data[at : at + length]
        found.append(Ask(ask.command, offset, length, ask.flags, data_of_part, own, ask.losses))
    return found
