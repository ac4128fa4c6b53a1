"""qemu-nbd up to 2.6 refuses READs and WRITEs of more than 1 MiB, and says so nowhere.

Block sizes came with INFO and GO in 2.10; before, a client had to know them. proto.md lets clients assume 32
MiB. A server may be one of these versions if it has no INFO and offers what they always offered, but not
WRITE_ZEROES, which came with 2.8. The gateway sends such a server no more than 1 MiB at a time. A wrong yes
costs a few more headers for large requests to a very old server.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, told
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag

LONGEST_PAYLOAD = limits.MIB

_ALWAYS = Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM


def applies(evidence: Evidence) -> bool:
    """No INFO, and the flags of a qemu before 2.8."""
    always = evidence.flags & _ALWAYS == _ALWAYS
    return always and not evidence.info_known and not evidence.flags & Flag.SEND_WRITE_ZEROES


def turn(dialect: Dialect) -> Dialect:
    """Split READ and WRITE to 1 MiB."""
    return replace(dialect, longest_payload=LONGEST_PAYLOAD)


_FLAGS = Flag.HAS_FLAGS | _ALWAYS

QUIRK = Quirk(
    name="qemu-small-requests",
    summary="READs and WRITEs of more than 1 MiB are refused, or end the connection, though nothing says so",
    consequence="clients that send the 32 MiB of proto.md get EINVAL",
    affected="qemu up to 2.6 (servers without INFO that offer the same cannot be told from it)",
    proof=told("qemu's commit 476b923c32"),
    links=(
        "https://gitlab.com/qemu-project/qemu/-/commit/476b923c32",
        "https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md",
    ),
    applies=applies,
    turn=turn,
    risks_data=False,
    transcripts=(
        Transcript(
            "qemu 2.5, which has EXPORT_NAME alone",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, info_known=False),
            Dialect(unstated_minimum=512, trim_alignment=4096, longest_payload=LONGEST_PAYLOAD),
        ),
        Transcript(
            "qemu 2.8, which has WRITE_ZEROES",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS | Flag.SEND_WRITE_ZEROES, info_known=False),
            Dialect(unstated_minimum=512, trim_alignment=4096),
        ),
        Transcript(
            "a server with INFO",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
