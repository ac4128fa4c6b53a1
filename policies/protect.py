"""Let ranges of the disk be read and not written.

A WRITE, WRITE_ZEROES or TRIM that touches a protected byte gets EPERM and changes nothing, not even the bytes
of its range that are not protected. All other commands are as before. Ranges are in the client's offsets. Of
a range that reaches beyond the end of the export, the part inside is protected. A range is written as for
nbdkit's protect filter, or with a length:

- "0-445": bytes 0 to 445. Both ends are inclusive: 445 is the last byte that is protected.
- "0-0x1bd": the same; numbers without a suffix may be hexadecimal.
- "1M-": from 1M to the end.
- "-445": from the beginning to byte 445.
- "1M+512M": 512M from 1M on. The END of a range may have no suffix: whoever writes "0-1M" hardly means the
  byte at 1M.
- "~1M+512M": all but these. Each range stands alone: with two such complements, only what both ranges have in
  common is left unprotected.

By default, a command is refused because of where it writes. nbdkit lets a client write what is there already,
and so does `unchanged = "allow"`: the protected bytes are then read and compared first, which makes every
WRITE, WRITE_ZEROES and TRIM slower (`explain` says so). A TRIM passes only if there are zeros, and leaves
them as they are; a fast zero gets ENOTSUP. If somebody else changes a protected byte between the comparison
and the write, the older one may win: where protected ranges change, keep "refuse".

Like nbdkit's protect filter. For the whole disk there is `readonly`; to hide what is around a range,
`window`.

    policies = [ { use = "protect", ranges = ["0-0x1bd", "1M+512M"] } ]
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator

from gateway.policy import (
    WRITE_CLASS,
    Cmd,
    CmdFlag,
    Errno,
    Failed,
    Field,
    Next,
    Policy,
    PrivateAttr,
    Request,
    Result,
    Table,
    View,
    parse_size,
)

_MOST_RANGES = 256
"""People write them, and every request is held against them. A table takes 1024 from all policies together."""

_END = 2**63
"""Behind the last byte that an export can have."""

_BLOCK_BYTES = 64 << 10
"""What is to be compared is read in whole blocks of this size: no server has a larger minimum block."""

_PIECE_BYTES = 1 << 20
"""What is to be compared is read in pieces of this size, so that zeroing a whole disk takes no memory."""

_FORM = '"START-END", both inclusive, or "START+LENGTH"'
_RANGE = re.compile(r"(~?)(\w*)([-+])(\w*)", re.ASCII)
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+", re.ASCII | re.IGNORECASE)

_Ranges = tuple[tuple[int, int], ...]
"""From a byte, up to another, which is behind the range."""


def _number(text: str) -> int:
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if text.startswith("0") and text[1:].isdigit():
        # nbdkit reads 010 as 8. Neither reading is everybody's.
        raise ValueError(f'expected a number without a 0 before it, got "{text}"')
    return parse_size(text)


def _bounds(text: str) -> tuple[int, int]:
    """Give where a range begins and what is behind it; a complement's are those of what it leaves out."""
    found = _RANGE.fullmatch(text)
    if found is None or not (found[2] or found[4]):
        raise ValueError(f'expected {_FORM}, got "{text}"')
    start = _number(found[2]) if found[2] else 0
    if found[3] == "+":
        if not (found[2] and found[4]):
            raise ValueError(f'expected {_FORM}, got "{text}"')
        end = start + _number(found[4])
    elif not found[4]:
        end = _END
    elif found[4][-1].isdigit() or _HEXADECIMAL.fullmatch(found[4]):
        end = _number(found[4]) + 1
    else:
        raise ValueError(
            f'expected END in bytes, as it is the last byte of the range, got "{text}";'
            ' write "START+LENGTH" for a range of a round size'
        )
    if end <= start:
        raise ValueError(f'expected at least one byte in the range, got "{text}"')
    if end > _END:
        raise ValueError(f'expected a range that ends below 8E (2^63 bytes), got "{text}"')
    return start, end


def _good(text: str) -> str:
    _bounds(text)
    return text


def _protected(texts: Iterable[str]) -> _Ranges:
    """Give what ranges protect together, in order, none touching another."""
    single: list[tuple[int, int]] = []
    for text in texts:
        start, end = _bounds(text)
        single += [(0, start), (end, _END)] if text.startswith("~") else [(start, end)]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(single):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return tuple(merged)


class Protect(Policy):
    """`use = "protect"`."""

    ranges: list[Annotated[str, AfterValidator(_good)]] = Field(
        min_length=1,
        max_length=_MOST_RANGES,
        description=f'The ranges, each {_FORM}, in bytes; "~" before one means all but it.',
    )
    unchanged: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="What becomes of a command that would leave the protected bytes as they are.",
    )
    _protected: _Ranges = PrivateAttr(default=())
    _alignment: int = PrivateAttr(default=1)
    """What commands that go on have to be multiples of, in bytes."""

    def model_post_init(self, context: object, /) -> None:
        """Find out once what the ranges are together."""
        self._protected = _protected(self.ranges)

    def over(self, view: View) -> Policy:
        """Note what the parts of a TRIM have to be aligned to."""
        if self.unchanged == "refuse":
            return self
        here = self.model_copy()
        here._alignment = 1 if view.any_alignment else view.block_sizes.minimum
        return here

    def commands(self, table: Table) -> None:
        """Bar the ranges."""
        if self.unchanged == "allow":
            return
        for start, end in self._protected:
            if start < table.size:
                end = min(end, table.size)
                table.protect(start, end, text=f"bytes {start} to {end - 1} are protected")

    def hooked(self, view: View) -> Collection[Cmd]:
        """Hook what writes, if it has to be compared."""
        return WRITE_CLASS if self.unchanged == "allow" else ()

    async def write(self, request: Request, next: Next) -> Result:
        """Write if the protected bytes stay as they are."""
        await self._compare(request, next)
        return await super().write(request, next)

    async def zero(self, request: Request, next: Next) -> Result:
        """Zero if the protected bytes are zeros."""
        if request.has(CmdFlag.FAST_ZERO) and any(self._touched(request)):
            # "MUST fail quickly" (FAST_ZERO) if it is no faster than a WRITE: reading all of it is not.
            raise Failed(Errno.ENOTSUP, "WRITE_ZEROES: protected bytes are compared, which is slow")
        await self._compare(request, next)
        return await super().zero(request, next)

    async def trim(self, request: Request, next: Next) -> Result:
        """Trim around the protected bytes, if they are zeros: what is trimmed need not be so any more."""
        await self._compare(request, next)
        free = request.offset
        for start, end in (*self._touched(request), (request.end, request.end)):
            # A TRIM may do less than it was asked to: what is not a whole block stays.
            free += -free % self._alignment
            start -= start % self._alignment
            if free < start:
                await next(request.part(free, start))
            free = end
        return None

    def _touched(self, request: Request) -> Iterator[tuple[int, int]]:
        """Give the protected parts of a request's range."""
        for start, end in self._protected:
            start, end = max(start, request.offset), min(end, request.end)
            if start < end:
                yield start, end

    async def _compare(self, request: Request, next: Next) -> None:
        """Raise `Failed` if a request would change a protected byte."""
        for start, end in self._touched(request):
            # Whole blocks, but no more than the request has: aligned to the server's blocks if that is.
            at = max(request.offset, start - start % _BLOCK_BYTES)
            stop = min(request.end, end + -end % _BLOCK_BYTES)
            while at < stop:
                upto = min(stop, at - at % _PIECE_BYTES + _PIECE_BYTES)
                there = memoryview(await next(Request(Cmd.READ, at, upto - at)))
                first, last = max(at, start), min(upto, end)
                wanted = request.part(first, last).data or bytes(last - first)
                if there[first - at : last - at] != wanted:
                    raise Failed(
                        Errno.EPERM,
                        f"{request.command.name}: bytes {start} to {end - 1} are protected, and would change",
                        start,
                    )
                at = upto
