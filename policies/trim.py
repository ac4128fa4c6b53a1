"""Choose how TRIM is done.

    how = "native"   as it is without this policy
    how = "none"     it is not offered: nothing is discarded
    how = "zero"     as WRITE_ZEROES that may make holes: what was trimmed reads as zeros, all of it, which a
                     plain TRIM does not promise. Not offered where there is no WRITE_ZEROES
    how = "nop"      it is answered with success, and the disk stays as it is. A client may always be answered
                     so (TRIM is a hint), but may believe that it has freed something

FUA is passed on where it means anything. A read-only export stays as it is. "zero" and "nop" make each TRIM
slower. nbdkit has no such filter; the modes are those of its nocache filter.

    policies = [ { use = "trim", how = "none" } ]
"""

from collections.abc import Collection
from typing import Literal

from gateway.policy import Cmd, CmdFlag, Field, Flag, Next, Policy, Request, Result, View


class Trim(Policy):
    """`use = "trim"`."""

    how: Literal["native", "none", "zero", "nop"] = Field(description="How TRIM is done.")

    def describe(self, view: View) -> View:
        """Offer what is done."""
        if self.how == "native" or view.allows(Flag.READ_ONLY):
            return view
        done = self.how == "nop" or (self.how == "zero" and view.allows(Flag.SEND_WRITE_ZEROES))
        return view.having(Flag.SEND_TRIM) if done else view.without(Flag.SEND_TRIM)

    def hooked(self, view: View) -> Collection[Cmd]:
        """Give TRIM, if it is not done as it is or not at all."""
        if self.how in ("native", "none") or not self.describe(view).allows(Flag.SEND_TRIM):
            return ()
        return {Cmd.TRIM}

    async def trim(self, request: Request, next: Next) -> Result:
        """Zero the range, or do nothing."""
        if self.how == "zero":
            # Without NO_HOLE: whoever trims wants the room back.
            await next(request.instead(Cmd.WRITE_ZEROES, flags=request.flags & CmdFlag.FUA))
        return None
