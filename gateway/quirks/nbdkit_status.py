"""nbdkit before 1.13.4 answers a BLOCK_STATUS for more than one extent with nonsense.

Only a BLOCK_STATUS with REQ_ONE is answered right, so the gateway sets REQ_ONE on every one. A client has to
be ready for a shorter answer in any case, and asks on from where it ends.

nbdkit is recognised by what it says and leaves out: it has structured replies, it answers an INFO that asks
for nothing (qemu 2.10 to 3.1 do not), and it tells no block sizes though they were asked for. CACHE came with
1.13.4, FAST_ZERO after it, and an answer to INFO_NAME with 1.23.6. A version in between whose plugin has
neither flag cannot be told from an old one. A wrong yes costs clients a few round trips.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, told
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes

_YOUNGER = Flag.SEND_CACHE | Flag.SEND_FAST_ZERO | Flag.BLOCK_STATUS_PAYLOAD


def applies(evidence: Evidence) -> bool:
    """Structured, no block sizes, none of what came later; not nbd-server, which says bit 8 so."""
    young = evidence.flags & (_YOUNGER | Flag.CAN_MULTI_CONN)
    silent = evidence.block_sizes is None and evidence.unasked_info == Rep.ACK
    return evidence.structured and silent and not (young or evidence.named)


def turn(dialect: Dialect) -> Dialect:
    """Ask for one extent at a time."""
    return replace(dialect, status_req_one=True)


_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_DF

QUIRK = Quirk(
    name="nbdkit-status",
    summary="a BLOCK_STATUS without REQ_ONE is answered with nonsense",
    consequence="clients take data for holes, and copies lose it",
    affected="nbdkit before 1.13.4 (to 1.23.5 those look the same whose plugin has no CACHE and no FAST_ZERO)",
    proof=told("nbdkit's commit 80033669"),
    links=("https://gitlab.com/nbdkit/nbdkit/-/commit/80033669",),
    applies=applies,
    turn=turn,
    risks_data=False,  # it cannot be told from servers that are sound
    transcripts=(
        Transcript(
            "nbdkit 1.12",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK, structured=True),
            Dialect(status_req_one=True),
        ),
        Transcript(
            "nbdkit 1.32 with the memory plugin",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_CACHE | Flag.SEND_FAST_ZERO | Flag.CAN_MULTI_CONN,
                None,
                Rep.ACK,
                structured=True,
            ),
            Dialect(),
        ),
        Transcript(
            "nbdkit 1.32 with a plugin that has neither CACHE nor FAST_ZERO",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK, structured=True, named=True),
            Dialect(),
        ),
        Transcript(
            "a server that tells its block sizes",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS,
                BlockSizes(1, 4096, 32 * 1024 * 1024),
                Rep.ACK,
                structured=True,
            ),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
