"""Choose how FUA is done, by which a client wants one write on the disk before it is answered.

    how = "native"    as it is without this policy; where the export has no FUA, a client is refused
    how = "pass"      as it is without this policy
    how = "none"      it is not offered: clients FLUSH instead. Where there is no FLUSH either, a
                      client could make nothing durable any more, and is refused
    how = "emulate"   a write with FUA is done without it and followed by a FLUSH, even if the server has FUA.
                      Where there is no FLUSH, a client is refused
    how = "force"     write-through: every WRITE, WRITE_ZEROES and TRIM is done with FUA. FLUSH is done as
                      ever; where the server has none, it is offered and has nothing left to do. Where there
                      is no FUA, a client is refused
    how = "discard"   FUA and FLUSH are offered, dropped, and answered with success. All that a client ever
                      wrote can be lost when the server or its machine goes down, in any order: file systems
                      with it. Only for what can be made again, such as builds and caches

"discard" has to be confirmed by `unsafe = true`, which also allows "none" where there is no FLUSH. "discard"
takes CAN_MULTI_CONN away, because some servers show the writes of one connection to another only after a
FLUSH.

Like nbdkit's fua filter, whose fuamode is `how` ("none" by default; with "force" it answers FLUSH itself).
Clients that reach the disk in another way are not bound by any of this. A read-only export stays as it is.
"emulate" slows all writes, and "discard" slows FLUSH.

    policies = [ { use = "fua", how = "force" } ]
"""

from collections.abc import Collection
from typing import Literal, Self

from pydantic import model_validator

from gateway.policy import (
    WRITE_CLASS,
    Cmd,
    CmdFlag,
    Denied,
    Field,
    Flag,
    Next,
    Policy,
    Request,
    Result,
    Table,
    View,
)

_NEEDS = {
    "native": Flag.SEND_FUA,
    "emulate": Flag.SEND_FLUSH,
    "force": Flag.SEND_FUA,
}
"""What there has to be."""


class Fua(Policy):
    """`use = "fua"`."""

    how: Literal["native", "pass", "none", "emulate", "force", "discard"] = Field(
        description="How FUA is done."
    )
    unsafe: bool = Field(default=False, description="Lose what clients believe to be durable.")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.how == "discard" and not self.unsafe:
            raise ValueError(
                'how = "discard" loses what clients believe to be durable: expected unsafe = true beside it'
            )
        if self.unsafe and self.how not in ("discard", "none"):
            raise ValueError(
                f'expected no unsafe = true with how = "{self.how}", which loses nothing'
            )
        return self

    def describe(self, view: View) -> View:
        """Offer what is done."""
        if view.allows(Flag.READ_ONLY):
            return view
        needed = _NEEDS.get(self.how)
        if needed is not None and not view.allows(needed):
            raise Denied(
                f'fua: how = "{self.how}" needs {needed.name}, which the export does not have'
            )
        match self.how:
            case "none":
                durable = view.allows(Flag.SEND_FLUSH) or not view.allows(Flag.SEND_FUA)
                if not durable and not self.unsafe:
                    raise Denied('fua: how = "none", and the export has no SEND_FLUSH instead')
                return view.without(Flag.SEND_FUA)
            case "emulate":
                return view.having(Flag.SEND_FUA)
            case "force":
                return view.having(Flag.SEND_FLUSH)
            case "discard":
                return view.without(Flag.CAN_MULTI_CONN).having(Flag.SEND_FLUSH, Flag.SEND_FUA)
        return view

    def commands(self, table: Table) -> None:
        """Set the command flag, or drop it."""
        for command in WRITE_CLASS:
            if self.how == "force":
                table.add_flag(command, CmdFlag.FUA)
            elif self.how == "discard":
                table.drop_flag(command, CmdFlag.FUA)

    def hooked(self, view: View) -> Collection[Cmd]:
        """Give what is emulated, and FLUSH if it is not handed on."""
        if view.allows(Flag.READ_ONLY):
            return ()
        if self.how == "emulate":
            return WRITE_CLASS
        flush_here = self.how == "discard" or (
            # All writes of this session were durable when they were answered. Where the server has FLUSH it
            # is better placed to know, for others may write without FUA.
            self.how == "force" and not view.allows(Flag.SEND_FLUSH)
        )
        return {Cmd.FLUSH} if flush_here else ()

    async def _written(self, request: Request, next: Next) -> Result:
        await next(request.without(CmdFlag.FUA))
        if request.has(CmdFlag.FUA):
            # Only now: a FLUSH covers what was answered before it was sent.
            await next(Request(Cmd.FLUSH))
        return None

    async def write(self, request: Request, next: Next) -> Result:
        """Write, then FLUSH."""
        return await self._written(request, next)

    async def zero(self, request: Request, next: Next) -> Result:
        """Zero, then FLUSH."""
        return await self._written(request, next)

    async def trim(self, request: Request, next: Next) -> Result:
        """Trim, then FLUSH."""
        return await self._written(request, next)

    async def flush(self, request: Request, next: Next) -> Result:
        """Answer without doing anything."""
        return None
