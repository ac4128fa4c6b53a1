"""Change the size of the export: clip it, or lengthen it with zeros.

`size` is the size that a client sees; `round-up` and `round-down` then round it, or the disk's own size, to a
multiple, in this order. `round-up = 512` serves a client that cannot cope with a size that is no multiple of
512.

Where the export is longer than the disk, it has a tail that is stored nowhere. The tail reads as zeros;
`base:allocation` shows it as a hole that reads as zeros, and in other contexts its status is 0. It takes
zeros, TRIM and CACHE, which do nothing there. Any other WRITE gets ENOSPC, also for the part of it that is on
the disk. Every command with a range is slower then (`explain` says so). A clipped export costs nothing.

A disk cannot be lengthened if its server takes whole blocks only (`unaligned = "error"`, or a `blocksize`
behind this one) and its last block is not whole: nobody could read that block, and it must not be shown as
zeros.

Like nbdkit's truncate filter, except that fast zeroes are offered only where the disk has them.

    policies = [ { use = "truncate", round-up = "4K" } ]
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, model_validator

from gateway.policy import (
    RANGED,
    Cmd,
    CmdFlag,
    Denied,
    Errno,
    Failed,
    Field,
    Next,
    Policy,
    PrivateAttr,
    Request,
    Result,
    Size,
    Status,
    View,
)

_LARGEST_SIZE = 2**63 - 1
"""Above it clients see a negative size."""

_LARGEST_MULTIPLE = 2**31
"""nbdkit's own bound."""

_ALLOCATION = "base:allocation"
_HOLE, _ZERO = 1, 2

_Extents = Sequence[tuple[int, int]]


def _multiple(number: int) -> int:
    if not 0 < number <= _LARGEST_MULTIPLE or number & (number - 1):
        raise ValueError(f"expected a power of two from 1 to 2G, got {number}")
    return number


_Multiple = Annotated[Size, AfterValidator(_multiple)]


class Truncate(Policy):
    """`use = "truncate"`."""

    size: Size | None = Field(
        default=None, description="The size that a client sees; by default that of the disk."
    )
    round_up: _Multiple | None = Field(
        default=None, description="The size is rounded up to a multiple of this power of two."
    )
    round_down: _Multiple | None = Field(
        default=None, description="The size is rounded down to a multiple of this power of two."
    )
    _behind: int = PrivateAttr(default=0)
    """How many bytes there are behind this."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Truncate":
        if self.size is None and self.round_up is None and self.round_down is None:
            raise ValueError("expected size, round-up or round-down, got none of them")
        return self

    def over(self, view: View) -> Policy:
        """Note where the disk ends."""
        here = self.model_copy()
        here._behind = view.size
        return here

    def describe(self, view: View) -> View:
        """Give the export with its new size."""
        size = self._shown(view)
        if size <= view.size:
            return view.window(0, size)
        if size > _LARGEST_SIZE:
            raise Denied(
                f"a size of {view.size} becomes {size} by round-up; at most {_LARGEST_SIZE} is possible"
            )
        minimum = view.block_sizes.minimum
        if not view.any_alignment and view.size % minimum:
            raise Denied(
                f"a disk of {view.size} bytes that takes whole blocks of {minimum} cannot be lengthened"
                f" to {size}: the last {view.size % minimum} bytes of it could not be reached"
            )
        return replace(view, size=size)

    def hooked(self, view: View) -> Collection[Cmd]:
        """Hook everything that may reach the tail, if there is one."""
        return RANGED if self._shown(view) > view.size else ()

    def _shown(self, view: View) -> int:
        size = view.size if self.size is None else self.size
        if self.round_up is not None:
            size += -size % self.round_up
        if self.round_down is not None:
            size -= size % self.round_down
        return size

    async def each(self, request: Request, next: Next) -> Result:
        """Do what is on the disk; the tail needs nothing done."""
        if request.end <= self._behind:
            return await super().each(request, next)
        if request.offset < self._behind:
            await next(request.part(request.offset, self._behind))
        return None

    async def read(self, request: Request, next: Next) -> Result:
        """Read zeros behind the disk."""
        if request.end <= self._behind:
            return await super().each(request, next)
        if request.offset >= self._behind:
            return bytes(request.length)
        data = await next(request.part(request.offset, self._behind))
        return bytes(data) + bytes(request.end - self._behind)

    async def write(self, request: Request, next: Next) -> Result:
        """Write nothing but zeros behind the disk."""
        if request.end > self._behind:
            start = max(request.offset, self._behind)
            tail = request.part(start, request.end).data
            if any(tail):
                raise Failed(
                    Errno.ENOSPC, f"WRITE: the disk ends at {self._behind}, zeros alone fit", start
                )
        return await self.each(request, next)

    async def block_status(self, request: Request, next: Next) -> Result:
        """Tell of a hole behind the disk."""
        if request.end <= self._behind:
            return await super().each(request, next)
        if request.offset >= self._behind:
            return {name: [(request.length, _of_tail(name))] for name in request.contexts}
        inside = self._behind - request.offset
        status: Status = await next(request.part(request.offset, self._behind))
        most = 1 if request.has(CmdFlag.REQ_ONE) else None
        return {
            name: _lengthened(extents, inside, (request.length - inside, _of_tail(name)))[:most]
            for name, extents in status.items()
        }


def _of_tail(context: str) -> int:
    """Give the status of what is not stored: proto.md says that 0 is always safe."""
    return _HOLE | _ZERO if context == _ALLOCATION else 0


def _lengthened(extents: _Extents, length: int, tail: tuple[int, int]) -> list[tuple[int, int]]:
    """Give the extents of the `length` bytes up to the end of the disk, and then the tail's; an answer that
    stops before is given as it is. Neighbours of one status are one extent, for REQ_ONE allows no more.
    """
    given: list[tuple[int, int]] = []
    for size, status in extents:
        size = min(size, length)
        length -= size
        if size:
            given.append((size, status))
    if length:
        return given
    if given and given[-1][1] == tail[1]:
        return [*given[:-1], (given[-1][0] + tail[0], tail[1])]
    return [*given, tail]
