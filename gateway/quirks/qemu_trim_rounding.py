"""qemu-nbd before 2.7 trims more than it was asked to where a TRIM is not aligned.

qemu rounded the range outwards to whole sectors or clusters, so data around the range was lost. The version
cannot be told. But INFO and GO came with 2.10, so a server that knows neither may be one of these. The
gateway narrows TRIMs for it to whole blocks of 4096 bytes, which is always legal (proto.md, "TRIM": the
server may do less). A wrong yes leaves a few blocks untrimmed.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, told
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag

ALIGNMENT = 4096
"""Bytes: sectors of all disks, and no smaller than what qemu of that time rounded to for most images."""


def applies(evidence: Evidence) -> bool:
    """TRIM from a server without INFO and GO."""
    return bool(evidence.flags & Flag.SEND_TRIM) and not evidence.info_known


def turn(dialect: Dialect) -> Dialect:
    """Narrow TRIM to whole blocks."""
    return replace(dialect, trim_alignment=ALIGNMENT)


_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM

QUIRK = Quirk(
    name="qemu-trim-rounding",
    summary="a TRIM that is not aligned trims what lies around it as well",
    consequence="data next to a trimmed range is lost",
    affected="qemu before 2.7 (servers without INFO and GO cannot be told from it)",
    proof=told("qemu's commit 353ab9697302"),
    links=("https://gitlab.com/qemu-project/qemu/-/commit/353ab9697302",),
    applies=applies,
    turn=turn,
    risks_data=True,
    transcripts=(
        Transcript(
            "qemu 2.5, which has EXPORT_NAME alone",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, info_known=False),
            Dialect(unstated_minimum=512, trim_alignment=ALIGNMENT, longest_payload=limits.MIB),
        ),
        Transcript(
            "an oldstyle server with WRITE_ZEROES",
            Evidence(Style.OLDSTYLE, _FLAGS | Flag.SEND_WRITE_ZEROES, info_known=False),
            Dialect(unstated_minimum=512, trim_alignment=ALIGNMENT),
        ),
        Transcript(
            "nbdkit 1.32",
            Evidence(
                Style.FIXED_NEWSTYLE, _FLAGS | Flag.SEND_CACHE, None, Rep.ACK, structured=True
            ),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
