"""Choose how CACHE is done, by which a client says what it will read soon.

    how = "native"    as it is without this policy
    how = "none"      it is not offered, and refused
    how = "emulate"   the range is read here and dropped, in pieces of 1 MiB, so that the server has it in its
                      cache
    how = "nop"       it is answered with success, and nothing is done

Like nbdkit's nocache filter, whose cachemode is `how` ("none" by default). "emulate" and "nop" offer CACHE
also where the server has none; each CACHE is slower then.

    policies = [ { use = "cache", how = "nop" } ]
"""

from collections.abc import Collection
from typing import Literal

from gateway.policy import Cmd, Field, Flag, Next, Policy, Request, Result, View

_PIECE_BYTES = 1 << 20
"""What is cached is read in pieces of this size: a multiple of every minimum block, so that what is aligned
stays so, and little to hold, for all of it is dropped.
"""


class Cache(Policy):
    """`use = "cache"`."""

    how: Literal["native", "none", "emulate", "nop"] = Field(description="How CACHE is done.")

    def describe(self, view: View) -> View:
        """Offer what is done."""
        if self.how == "native":
            return view
        return view.without(Flag.SEND_CACHE) if self.how == "none" else view.having(Flag.SEND_CACHE)

    def hooked(self, view: View) -> Collection[Cmd]:
        """Give CACHE, if it is not done as it is or not at all."""
        return {Cmd.CACHE} if self.how in ("emulate", "nop") else ()

    async def cache(self, request: Request, next: Next) -> Result:
        """Read the range and drop it, or do nothing."""
        if self.how == "emulate":
            for start in range(request.offset, request.end, _PIECE_BYTES):
                await next(Request(Cmd.READ, start, min(_PIECE_BYTES, request.end - start)))
        return None
