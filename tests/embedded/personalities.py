"""What other servers than those of `gateway.embedded` are like, as far as tests need it."""

from __future__ import annotations

from dataclasses import replace

from gateway.embedded import PERSONALITIES
from gateway.embedded.personality import Personality
from gateway.wire.constants import TransmissionFlag as Flag


def like_nbd_server() -> Personality:
    flags = (
        Flag.HAS_FLAGS
        | Flag.SEND_FLUSH
        | Flag.SEND_FUA
        | Flag.SEND_TRIM
        | Flag.SEND_WRITE_ZEROES
        | Flag.SEND_DF
        | Flag.CAN_MULTI_CONN
    )
    return replace(
        PERSONALITIES["plain"],
        block_sizes=None,
        tells_names=False,
        flags=lambda disk, structured: flags,
    )
