"""qemu-nbd 2.11 to 3.1 with `--offset` or `--partition` answers structured READs from the wrong place.

To find holes, qemu looks at the offset that the client gave, and forgets to add that of the export. Where
there is a hole at this *wrong* place, the client gets zeros instead of its data. base:allocation is reported
from the wrong place as well, so `nbdcopy` from such an export gets not one byte right, and no error. Data
itself is read from the right place, and a READ with DF is not looked at for holes.

Whether an export has an offset cannot be seen on the wire, but which versions it may be: qemu 2.10 to 3.1
answer an INFO that does not ask for block sizes with ERR_BLOCK_SIZE_REQD, and structured replies came with
2.11. Later ones do the same if their blocks are larger than a byte. Of these, the ones from 4.2 on can be
told: they offer FAST_ZERO or, read-only, no TRIM, which older ones always offer. All the others get DF with
every READ, which costs their clients the holes. base:allocation is told as status 0, "may be allocated",
which is always true. `trust-allocation = true` says that the server has no offset.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes


def applies(evidence: Evidence) -> bool:
    """Qemu 2.11 to 4.1: structured replies, and an INFO without block sizes is refused."""
    insists = evidence.structured and evidence.unasked_info == Rep.ERR_BLOCK_SIZE_REQD
    trim, fast_zero = Flag.SEND_TRIM, Flag.SEND_FAST_ZERO
    return insists and evidence.flags & (trim | fast_zero) == trim


def turn(dialect: Dialect) -> Dialect:
    """Send DF with every READ; do not believe base:allocation."""
    return replace(dialect, read_with_df=True, flat_allocation=True)


_FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
)
_BLOCK_SIZES = BlockSizes(512, 4096, 32 * 1024 * 1024)

QUIRK = Quirk(
    name="qemu-offset-reads",
    summary="structured READs and base:allocation of an export with --offset look at the wrong place for holes",
    consequence="clients read zeros where the disk has data",
    affected="qemu 2.11 to 3.1 (4.0 and 4.1 look the same if their blocks are larger than a byte)",
    proof=seen(
        "qemu-nbd 3.0.0 and 3.1.0: nbdcopy and qemu-img 7.2 got every byte wrong, and no error"
    ),
    links=(
        "https://gitlab.com/qemu-project/qemu/-/blob/v3.0.0/nbd/server.c",
        "https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md",
    ),
    applies=applies,
    turn=turn,
    risks_data=True,
    transcripts=(
        Transcript(
            "qemu 2.12 and 3.1",
            Evidence(
                Style.FIXED_NEWSTYLE, _FLAGS, _BLOCK_SIZES, Rep.ERR_BLOCK_SIZE_REQD, structured=True
            ),
            Dialect(read_with_df=True, flat_allocation=True),
        ),
        Transcript(
            "qemu 2.10, which has no structured replies",
            Evidence(
                Style.FIXED_NEWSTYLE, _FLAGS & ~Flag.SEND_DF, _BLOCK_SIZES, Rep.ERR_BLOCK_SIZE_REQD
            ),
            Dialect(),
        ),
        Transcript(
            "qemu 7.2 with O_DIRECT, or with blocks of 4 KiB",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_CACHE | Flag.SEND_FAST_ZERO,
                _BLOCK_SIZES,
                Rep.ERR_BLOCK_SIZE_REQD,
                structured=True,
            ),
            Dialect(),
        ),
        Transcript(
            "the same, read-only",
            Evidence(
                Style.FIXED_NEWSTYLE,
                Flag.HAS_FLAGS | Flag.READ_ONLY | Flag.SEND_FLUSH | Flag.SEND_DF | Flag.SEND_CACHE,
                _BLOCK_SIZES,
                Rep.ERR_BLOCK_SIZE_REQD,
                structured=True,
            ),
            Dialect(),
        ),
        Transcript(
            "qemu 4.0",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, _BLOCK_SIZES, Rep.ACK, structured=True),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
