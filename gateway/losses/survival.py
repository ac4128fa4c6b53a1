"""What becomes of clients when their connections to a server are lost: the choices of `[upstream.NAME]`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Unanswered(Enum):
    """What becomes of writes whose answer was lost with their link (`unknown-writes`)."""

    REISSUE = "reissue"
    EIO = "eio"


class Doubt(Enum):
    """What becomes of writes that were acknowledged and not flushed when all links died (`unflushed`)."""

    STICKY = "sticky"
    VERIFY = "verify"
    REPLAY = "replay"
    ASSUME_DURABLE = "assume-durable"


@dataclass(frozen=True, slots=True)
class Survival:
    """The keys of the same names; times in seconds. Their defaults are the configuration's."""

    reconnect_seconds: float
    unflushed: Doubt
    replay_bytes: int
    unknown_writes: Unanswered
    late_write_seconds: float
    stall_seconds: float
    check_identity: bool
    """`identity`: after a reconnect, look whether what was flushed is there."""
    sole_writer: bool
    through_us: bool
    """All clients of the disk go through this gateway. Else what others have written is not known here, nor
    whether it was flushed."""
