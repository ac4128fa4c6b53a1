"""What the checks work on: connections to one export, what was told of it, and known content."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from gateway.inspect.conform.client import MAX_READ_BYTES, Broken, RawClient
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.upstream.errors import TlsRequired, Unreachable
from gateway.upstream.link import Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire.constants import BASE_ALLOCATION, Cmd
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import KIB, MIB

UNIT = 64 * KIB
"""The unit of our content: a multiple of every minimum block ("MUST NOT be larger than 2^16"), and the length
up to which a READ with DF has to be one piece."""

PATTERN_UNITS = 127
"""A prime: see `Pattern`."""

SAMPLES = 8
"""How many places we look at on an export whose content is not ours."""

GRAIN = 512
"""Our alignment if no minimum block was told: "a client desiring maximum interoperability SHOULD constrain its
requests to a minimum block size of 2^9"."""


class NotOffered(Exception):
    """The server does not make the promise, or we cannot find out; the text says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Data and zeros in units, on a part of the export; no shift of the pattern looks like the pattern.

    Unit n is data if n is a square modulo 127. So whatever the shift, half of the data lies over zeros, and we
    find out a server that looks its holes up in a wrong place (Q-S6). The data is random, and different with
    each seed, so that what an earlier run left is not taken for it.
    """

    start: int
    """Where it begins: a multiple of `UNIT`."""
    units: int
    seed: int
    dense: bool = False
    """All of it is data."""

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.units * UNIT

    def is_data(self, unit: int) -> bool:
        """Say whether a unit holds data; the others are zeros."""
        return self.dense or pow(unit, (PATTERN_UNITS - 1) // 2, PATTERN_UNITS) == 1

    def data(self, unit: int) -> bytes:
        """Give the content of a unit."""
        if not self.is_data(unit):
            return bytes(UNIT)
        return random.Random(f"{self.seed}/{self.start}/{unit}").randbytes(UNIT)

    def content(self, offset: int, length: int) -> bytes:
        """Give what has to be read at `offset` of the export. All of the range is in the pattern."""
        first, last = (offset - self.start) // UNIT, (offset + length - 1 - self.start) // UNIT
        whole = b"".join(self.data(unit) for unit in range(first, last + 1))
        at = offset - self.start - first * UNIT
        return whole[at : at + length]


class Bench:
    """One export under test.

    Checks share a connection (`main`), which is opened anew after a check that failed. So we can try most
    promises of a server that takes one client at a time, or a few in all.
    """

    def __init__(self, server: Server, name: str, *, seed: int, reply_seconds: float) -> None:
        self._server = server
        self._terms = Terms(name, structured=True, queries=(BASE_ALLOCATION,))
        self._reply_seconds = reply_seconds
        self._seed = seed
        self._main: RawClient | None = None
        self._export: Export | None = None
        self.dismissed = False
        """The last connection was ended in good order: a server that takes only one client has ended then."""
        self.notes: list[str] = []
        """What the current check has to say beside its verdict."""

    @property
    def export(self) -> Export:
        """The export as it was first opened, with the flags as the server sent them."""
        assert self._export is not None
        return self._export

    @property
    def grain(self) -> int:
        """What offsets and lengths have to be multiples of, in bytes."""
        sizes = self.export.block_sizes
        return sizes.minimum if sizes is not None else GRAIN

    @property
    def piece(self) -> int:
        """The longest READ and WRITE that checks send, in bytes: a multiple of the grain."""
        sizes = self.export.block_sizes
        most = MAX_READ_BYTES if sizes is None else min(MAX_READ_BYTES, sizes.maximum)
        return most - most % self.grain

    def offers(self, *flags: Flag) -> bool:
        """Say whether the server set all of these transmission flags."""
        return all(self.export.flags & flag for flag in flags)

    def note(self, text: str) -> None:
        """Say something beside the verdict, once."""
        if text not in self.notes:
            self.notes.append(text)

    # --- Connections

    async def main(self) -> RawClient:
        """Give the shared connection, opened if need be. Raises `Refusal` if that fails."""
        if self._main is None:
            self._main = await self._open(self._terms)
            self._export = self._export or self._main.export
        return self._main

    @asynccontextmanager
    async def another(self, *, structured: bool = True) -> AsyncIterator[RawClient]:
        """Open one more connection; without `structured`, one with simple replies. Raises `Broken`, or
        `NotOffered` if the server takes no client after one that has left.
        """
        terms = self._terms
        if not structured:
            terms = replace(terms, structured=False, queries=None)
        try:
            client = await self._open(terms)
        except Refusal as refusal:
            if self.dismissed:
                raise NotOffered(no_more(refusal)) from None
            raise Broken("one more connection", refusal.why) from None
        try:
            yield client
        except BaseException:
            client.abandon()
            raise
        await client.close()

    async def leave(self) -> None:
        """End the shared connection in good order."""
        client, self._main = self._main, None
        if client is not None:
            self.dismissed = True
            await client.close()

    async def drop(self) -> None:
        """Close the shared connection without a word: it is of no use any more."""
        client, self._main = self._main, None
        if client is not None:
            client.abandon()

    async def in_step(self) -> None:
        """Find out whether the shared connection is still in step. Raises `Broken` if it is not."""
        if self._main is not None:
            await self._main.read(0, self.grain)

    async def _open(self, terms: Terms) -> RawClient:
        negotiation = Negotiation(self._server)
        try:
            try:
                link = await negotiation.go(terms)
            except (Unreachable, TlsRequired):
                raise
            except Refusal:
                if terms.queries is None:
                    raise
                # Perhaps the server refuses only the contexts.
                await negotiation.aclose()
                link = await negotiation.go(replace(terms, queries=None))
        finally:
            await negotiation.aclose()
        self.dismissed = False
        return RawClient(link, reply_seconds=self._reply_seconds)

    # --- Content

    def pattern(self, *, dense: bool = False, units: int = PATTERN_UNITS) -> Pattern:
        """Give a pattern of new data in the middle of the export; it is not written yet."""
        self._seed += 1
        there = self.export.size // UNIT
        units = min(units, there)
        return Pattern((there - units) // 2 * UNIT, units, self._seed, dense)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Give a range in pieces that a READ may have: offset and length in bytes."""
        for offset in range(start, end, self.piece):
            yield offset, min(self.piece, end - offset)

    def samples(self) -> Iterator[tuple[int, int]]:
        """Give ranges all over the export: offset and length in bytes."""
        step = max(self.export.size // SAMPLES // UNIT * UNIT, UNIT)
        usable = self.export.size // UNIT * UNIT
        for start in range(0, usable, step):
            length = min(MIB, step, usable - start)
            yield from self.ranges(start, start + length)

    async def readings(self) -> list[tuple[int, int]]:
        """Give ranges for comparing ways of reading, offset and length in bytes: those of a pattern, which is
        written first, or of what is there if the export is read-only. Raises `Broken`.
        """
        if self.offers(Flag.READ_ONLY):
            return list(self.samples())
        pattern = self.pattern()
        await self.lay(await self.main(), pattern)
        return list(self.ranges(pattern.start, pattern.end))

    async def lay(self, client: RawClient, pattern: Pattern) -> None:
        """Write a pattern. Zeros are written by WRITE_ZEROES if that is offered, so that they may become holes.
        Raises `Broken`.
        """
        zeroes = self.offers(Flag.SEND_WRITE_ZEROES)
        for unit in range(pattern.units):
            offset = pattern.start + unit * UNIT
            if zeroes and not pattern.is_data(unit):
                if not (await client.ask(Cmd.WRITE_ZEROES, offset, UNIT)).error:
                    continue
                zeroes = False  # other checks judge that
            await self.write(client, offset, pattern.data(unit))

    async def write(self, client: RawClient, offset: int, data: bytes, *, flags: int = 0) -> None:
        """Write in pieces that the server takes. Raises `Broken`."""
        for at in range(0, len(data), self.piece):
            await client.write(offset + at, data[at : at + self.piece], flags=flags)

    async def holds(
        self, client: RawClient, offset: int, content: bytes, what: str, *, flags: int = 0
    ) -> None:
        """Read, and hold that `content` is there, called `what`. Raises `Broken` with the first byte that
        differs.
        """
        for at, length in self.ranges(0, len(content)):
            found = await client.read(offset + at, length, flags=flags)
            compare(offset + at, content[at : at + length], found, what)

    async def untouched_around(
        self, client: RawClient, pattern: Pattern, start: int, end: int, what: str
    ) -> None:
        """Hold that a dense pattern is whole outside of `start` to `end`, where `what` was done. Raises
        `Broken`.
        """
        before = pattern.content(pattern.start, start - pattern.start)
        await self.holds(
            client, pattern.start, before, f"before the range of {what} what was there"
        )
        behind = pattern.content(end, pattern.end - end)
        await self.holds(client, end, behind, f"behind the range of {what} what was there")


def compare(offset: int, expected: bytes | bytearray, found: bytes | bytearray, what: str) -> None:
    """Raise `Broken` with the first byte that differs; both begin at `offset` of the export."""
    if expected == found:
        return
    at = next(
        at for at, (one, other) in enumerate(zip(expected, found, strict=True)) if one != other
    )
    came = "zeros" if not any(found[at : at + GRAIN]) else "other data"
    raise Broken(f"{what} at {offset + at}", came)


def no_more(refusal: Refusal) -> str:
    """Say why nothing more can be found out of a server after a connection to it has ended in good order."""
    return f"the server takes no other client after one that has left: {refusal.why}"
