"""What becomes of clients when their connections to a server are lost: the choices of `[upstream.NAME]`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gateway.wire.limits import MIB


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
    """The keys of the same names; times in seconds."""

    reconnect_seconds: float = 60
    unflushed: Doubt = Doubt.STICKY
    replay_bytes: int = 256 * MIB
    unknown_writes: Unanswered = Unanswered.REISSUE
    late_write_seconds: float = 30
    stall_seconds: float = 0
    check_identity: bool = True
    """`identity`: after a reconnect it is looked whether what was flushed is there."""
    sole_writer: bool = False


DEFAULTS = Survival()
