"""qemu-nbd up to 2.5 divides offset and length by 512, and forgets what is left of them.

A WRITE of 1,000 bytes at 5,000 writes 512 bytes at 4,608, and is answered with success; a READ of the same
range gives what lies at 4,608. A client of its time keeps to sectors by itself, unless something between it
and the server says that blocks of one byte will do. If a program makes an image of qcow2, vdi or LUKS inside
such an export by requests of any alignment, the image is garbage.

The version cannot be told. But a server that knows no INFO cannot state block sizes either, and then "a
client desiring maximum interoperability SHOULD constrain its requests to a minimum block size of 2^9"
(proto.md, "Size constraints"). So the gateway sends no such server anything that is not aligned to 512,
except at the end of the export, which other servers have where they like. Clients are told 512. For a client
that does not ask, or does not keep to it, the gateway reads, changes and writes whole sectors, which is all
that a wrong yes costs.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag

SECTOR_BYTES = 512


def applies(evidence: Evidence) -> bool:
    """A server that cannot state block sizes."""
    return not evidence.info_known


def turn(dialect: Dialect) -> Dialect:
    """Send whole sectors."""
    return replace(dialect, unstated_minimum=SECTOR_BYTES)


_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_WRITE_ZEROES

QUIRK = Quirk(
    name="qemu-sectors",
    summary="offset and length of a request are rounded down to multiples of 512, and it says success",
    consequence="requests of any alignment write to the wrong place, and read from it",
    affected="qemu up to 2.5 (servers without INFO and GO cannot be told from it)",
    proof=seen("qemu-nbd 2.5.0"),
    links=(
        "https://gitlab.com/qemu-project/qemu/-/blob/v2.5.0/nbd.c",
        "https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md",
    ),
    applies=applies,
    turn=turn,
    risks_data=True,
    transcripts=(
        Transcript(
            "a server with EXPORT_NAME alone",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, info_known=False),
            Dialect(unstated_minimum=SECTOR_BYTES),
        ),
        Transcript(
            "an oldstyle server",
            Evidence(Style.OLDSTYLE, _FLAGS, info_known=False),
            Dialect(unstated_minimum=SECTOR_BYTES),
        ),
        Transcript(
            "nbdkit 1.32, which knows INFO and tells no block sizes",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _FLAGS | Flag.SEND_CACHE,
                None,
                Rep.ACK,
                structured=True,
                named=True,
            ),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
