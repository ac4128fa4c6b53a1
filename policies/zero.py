"""Choose how WRITE_ZEROES is done, and whether a client may ask for fast zeroes.

    how = "native"    as it is without this policy (the default)
    how = "none"      it is not offered: clients WRITE zeros
    how = "emulate"   zeros are written here, in pieces of 1 MiB. Nothing becomes a hole, and a fast zero gets
                      ENOTSUP before anything is touched
    how = "notrim"    nothing becomes a hole: NO_HOLE is set on every WRITE_ZEROES

    fast = "default"  as `how` has it
    fast = "none"     fast zeroes are not offered
    fast = "slow"     they are offered and always get ENOTSUP: it tests what clients do then
    fast = "ignore"   they are offered and done as if they had not been asked to be fast. proto.md does not
                      allow that, and qemu-img convert may zero a whole disk slowly before it copies

Like nbdkit's nozero filter, whose zeromode is `how` ("plugin" there is "native" here, and "none" is the
default there) and whose fastzeromode is `fast`. A read-only export stays as it is. "emulate" makes each
WRITE_ZEROES slower; all else slows nothing. If an emulated WRITE_ZEROES fails half-way, what came before it
is zeroed.

    policies = [ { use = "zero", how = "notrim", fast = "none" } ]
"""

from collections.abc import Collection
from typing import Literal, Self

from pydantic import model_validator

from gateway.policy import (
    Cmd,
    CmdFlag,
    Errno,
    Failed,
    Field,
    Flag,
    Next,
    Policy,
    Request,
    Result,
    Table,
    View,
)

_PIECE_BYTES = 1 << 20
"""Zeros are written in pieces of this size: a multiple of every minimum block, so that what is aligned stays
so, and far less than the 32 MiB that a server takes if it says nothing.
"""

_ZEROS = bytes(_PIECE_BYTES)


class Zero(Policy):
    """`use = "zero"`."""

    how: Literal["native", "none", "emulate", "notrim"] = Field(
        default="native", description="How WRITE_ZEROES is done."
    )
    fast: Literal["default", "none", "slow", "ignore"] = Field(
        default="default", description="What becomes of fast zeroes."
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.how == "none" and self.fast in ("slow", "ignore"):
            raise ValueError(
                f'expected no fast = "{self.fast}" with how = "none": without WRITE_ZEROES there are no'
                " fast zeroes"
            )
        return self

    @property
    def _never_fast(self) -> bool:
        return self.fast == "slow" or (self.fast == "default" and self.how == "emulate")

    def describe(self, view: View) -> View:
        """Offer what is done."""
        if view.allows(Flag.READ_ONLY):
            return view
        if self.how == "none":
            return view.without(Flag.SEND_WRITE_ZEROES, Flag.SEND_FAST_ZERO)
        if self.how == "emulate":
            view = view.having(Flag.SEND_WRITE_ZEROES)
        if self.fast == "none" or not view.allows(Flag.SEND_WRITE_ZEROES):
            return view.without(Flag.SEND_FAST_ZERO)
        if self.fast == "ignore" or self._never_fast:
            return view.having(Flag.SEND_FAST_ZERO)
        return view

    def commands(self, table: Table) -> None:
        """Say what becomes of command flags."""
        if self.how == "notrim":
            table.add_flag(Cmd.WRITE_ZEROES, CmdFlag.NO_HOLE)
        if self._never_fast:
            table.refuse_flag(
                Cmd.WRITE_ZEROES,
                CmdFlag.FAST_ZERO,
                error=Errno.ENOTSUP,
                text="no zeroes are fast here",
            )
        if self.fast == "ignore":
            table.drop_flag(Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO)

    def hooked(self, view: View) -> Collection[Cmd]:
        """Give what is emulated."""
        emulated = self.how == "emulate" and not view.allows(Flag.READ_ONLY)
        return {Cmd.WRITE_ZEROES} if emulated else ()

    async def zero(self, request: Request, next: Next) -> Result:
        """Write zeros."""
        if self._never_fast and request.has(CmdFlag.FAST_ZERO):
            raise Failed(Errno.ENOTSUP, "no zeroes are fast here")
        # FUA covers the data of its own command alone, so that each piece needs it.
        fua = request.flags & CmdFlag.FUA
        for start in range(request.offset, request.end, _PIECE_BYTES):
            length = min(_PIECE_BYTES, request.end - start)
            zeros = memoryview(_ZEROS)[:length]
            await next(Request(Cmd.WRITE, start, length, fua, zeros))
        return None
