"""nbd-server 3.25 and later offers DF and refuses every READ that has it, with a simple reply.

A simple reply to a READ is illegal where structured replies were agreed, and qemu's client ends the
connection over it. (nbd-server's own code for DF, were it ever reached, would give wrong lengths.) So the
gateway never sends DF to it. Where a client sends DF, the gateway puts the reply together.

nbd-server is recognised by what it leaves out: it tells neither block sizes nor a name though both were asked
for (INFO_BLOCK_SIZE, INFO_NAME), and sets CAN_MULTI_CONN without CACHE or FAST_ZERO. A wrong yes costs a
client that sends DF one copy of its data.
"""

from __future__ import annotations

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen, with_flags
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes


def applies(evidence: Evidence) -> bool:
    """Structured replies and DF from a server that has the manners of nbd-server."""
    others = evidence.flags & (Flag.SEND_CACHE | Flag.SEND_FAST_ZERO)
    return bool(
        evidence.structured
        and evidence.unasked_info == Rep.ACK
        and evidence.block_sizes is None
        and not evidence.named
        and evidence.flags & Flag.SEND_DF
        and evidence.flags & Flag.CAN_MULTI_CONN
        and not others
    )


def turn(dialect: Dialect) -> Dialect:
    """Do as if it had no DF."""
    return with_flags(dialect, clear=Flag.SEND_DF)


_FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.CAN_MULTI_CONN
)

QUIRK = Quirk(
    name="nbd-server-df",
    summary="DF is offered, and a READ that has it is refused with an illegal reply",
    consequence="clients that send DF lose their connection",
    affected="nbd-server 3.25 and later",
    proof=seen("nbd-server 3.26"),
    links=("https://github.com/NetworkBlockDevice/nbd/blob/master/nbd-server.c",),
    applies=applies,
    turn=turn,
    risks_data=False,
    transcripts=(
        Transcript(
            "nbd-server 3.27",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS | Flag.SEND_DF, None, Rep.ACK, structured=True),
            Dialect(clear_flags=Flag.SEND_DF),
        ),
        Transcript(
            "nbdkit 1.32 with --filter=nocache, which tells a name",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_DF,
                None,
                Rep.ACK,
                structured=True,
                named=True,
            ),
            Dialect(),
        ),
        Transcript(
            "nbd-server 3.24, without structured replies",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK),
            Dialect(),
        ),
        Transcript(
            "qemu 7.2",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_DF | Flag.SEND_CACHE,
                BlockSizes(1, 4096, 32 * 1024 * 1024),
                Rep.ACK,
                structured=True,
            ),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
