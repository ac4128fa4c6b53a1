"""A promise of a server: one line of the table, and the check that it is kept.

A check raises `Broken` if the server does not do what the specification says it MUST, or if a client would be
misled. If the server does not do what it SHOULD, the check passes with a note. A request that is not legal has
to be refused by an error, and the connection has to survive that: if the server hangs up, its client loses
everything else that was under way. After each check we look whether the connection is still in step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.inspect.conform.bench import Bench
from gateway.wire.constants import TransmissionFlag as Flag

NO_FLAG = Flag(0)

Check = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the table."""

    name: str
    """For programs."""
    sentence: str
    section: str
    """The section of proto.md that has it."""
    check: Check
    flags: Flag = NO_FLAG
    """The server makes the promise if it sets all of these transmission flags."""
    writes: bool = True
    """The check changes the export."""
    structured: bool = False
    """It is about structured replies."""
    allocation: bool = False
    """It is about base:allocation."""

    def missing(self, bench: Bench) -> str | None:
        """Say why the server does not make this promise; None: it does."""
        lacking = [flag for flag in self.flags if not bench.offers(flag)]
        if lacking:
            return f"{' and '.join(flag.name or '' for flag in lacking)} not set"
        if self.structured and not bench.export.structured:
            return "no structured replies"
        if self.allocation and not bench.export.contexts:
            return "no base:allocation"
        if self.writes and bench.offers(Flag.READ_ONLY):
            return "the export is read-only"
        return None
