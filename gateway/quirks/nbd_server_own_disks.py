"""nbd-server with `copyonwrite` gives every connection a disk of its own.

What is written over a connection goes into a file of that connection, and is gone with it. FLUSH and FUA are
answered with success all the same, and the next connection has the disk as it was in the beginning. A client
without a gateway notices, for its connection ends. A client whose session the gateway carried over to another
connection would go on, on a disk without anything that it wrote. So a session that has written is not carried
over: it ends, and says why.

Nothing on the wire speaks of copyonwrite. But from 3.15 on, nbd-server sets CAN_MULTI_CONN of every export
except these. nbd-server itself is recognised by what it gets wrong and leaves out: an INFO says that the
export has no bytes (Q-N21); it tells neither block sizes nor a name though both were asked for; it always
offers WRITE_ZEROES (Q-N15), and never CACHE or FAST_ZERO.

Servers before 3.15 have no INFO, and are not recognised. What they have lost is found out as it is of any
server (`gateway.losses.witnesses`). So it is of other servers that have such disks: `nbdkit tmpdisk`,
`qemu-nbd --snapshot`.

A wrong yes ends sessions that could have gone on when their connection is lost.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes

_NEVER = Flag.CAN_MULTI_CONN | Flag.SEND_CACHE | Flag.SEND_FAST_ZERO


def applies(evidence: Evidence) -> bool:
    """The manners of nbd-server, and no CAN_MULTI_CONN."""
    return bool(
        evidence.sizeless_info
        and not evidence.named
        and evidence.unasked_info == Rep.ACK
        and evidence.block_sizes is None
        and evidence.flags & Flag.SEND_WRITE_ZEROES
        and not evidence.flags & _NEVER
    )


def turn(dialect: Dialect) -> Dialect:
    """Expect nothing of other connections."""
    return replace(dialect, own_disks=True)


_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES
_COPY_ON_WRITE = Evidence(
    Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK, named=False, sizeless_info=True
)

QUIRK = Quirk(
    name="nbd-server-own-disks",
    summary="each connection has a disk of its own (copyonwrite), which is gone with it",
    consequence="whoever connects anew goes on without what was written and flushed",
    affected="nbd-server 3.15 and later, with copyonwrite = true",
    proof=seen("nbd-server 3.24 with copyonwrite"),
    links=("https://github.com/NetworkBlockDevice/nbd/blob/master/nbd-server.c",),
    applies=applies,
    turn=turn,
    risks_data=True,
    transcripts=(
        Transcript("nbd-server 3.24, copyonwrite", _COPY_ON_WRITE, Dialect(own_disks=True)),
        Transcript(
            "nbd-server 3.24",
            replace(_COPY_ON_WRITE, flags=_FLAGS | Flag.CAN_MULTI_CONN),
            Dialect(),
        ),
        Transcript(
            "nbdkit 1.32 sh, without structured replies",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, None, Rep.ACK, named=True),
            Dialect(),
        ),
        Transcript(
            "nbdkit 1.32 tmpdisk",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_DF | Flag.SEND_FAST_ZERO,
                None,
                Rep.ACK,
                structured=True,
                named=True,
            ),
            Dialect(),
        ),
        Transcript(
            "qemu 7.2 --snapshot",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_CACHE,
                BlockSizes(1, 4096, 32 * 1024 * 1024),
                Rep.ACK,
                named=True,
            ),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
