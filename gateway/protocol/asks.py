"""What we ask a server by ourselves, as a value, and what it answers.

An `Ask` is a step of a job: a command in the upstream's terms, for whose reply no client waits. What the reply
says is gathered in an `Outcome`, and whoever asked is given that when the reply is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gateway.wire.constants import Cmd
from gateway.wire.extents import Extents
from gateway.wire.ranges import Range

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Ask:
    """A command for the upstream; `data` is that of a WRITE, `flags` are without PAYLOAD_LEN."""

    command: Cmd
    offset: int
    length: int
    flags: int = 0
    data: Data = field(default=b"", repr=False)  # what is on disks has no place in a log
    own: Range | None = None
    """The part of a read-modify-write that its client writes; the rest is what was there before. None: the
    client writes all of it."""
    losses: int = 0
    """How many links have died over which it was asked. If there are any, it is under suspicion
    (`gateway.bundle.pieces`)."""

    @property
    def written(self) -> Range:
        """What its client writes."""
        return self.own or (self.offset, self.end)

    @property
    def end(self) -> int:
        """Where its range ends."""
        return self.offset + self.length

    @property
    def data_bytes(self) -> int:
        """How much data it carries, one way or the other."""
        return self.length if self.command in (Cmd.READ, Cmd.WRITE) else 0

    def part(self, start: int, end: int) -> Ask:
        """Give the same for a part of its range; the data is not copied."""
        data = memoryview(self.data)[start - self.offset : end - self.offset]
        return replace(self, offset=start, length=end - start, data=data, own=None)

    def overlaps(self, other: Ask) -> bool:
        """Say whether both have a byte in their ranges."""
        return self.offset < other.end and other.offset < self.end


@dataclass(slots=True)
class Outcome:
    """What the upstream said to an `Ask`."""

    error: int = 0
    text: str = ""
    offset: int | None = None
    """Where in the export the error is, if that was told."""
    data: bytearray = field(default_factory=bytearray, repr=False)
    """Of a READ."""
    status: dict[int, Extents] = field(default_factory=dict)
    """Of a BLOCK_STATUS: the link's context id -> extents."""


Done = Callable[[Outcome], None]
