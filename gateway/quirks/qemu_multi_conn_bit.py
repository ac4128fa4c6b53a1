"""qemu 3.0.0 sets bit 8, CAN_MULTI_CONN, where it means bit 10, SEND_CACHE.

qemu's header defined NBD_FLAG_SEND_CACHE_BIT as 8, and the flag is always set. A client that believes it
opens several connections. With the default `-e 1` the second one is never answered, and nbdcopy, or Linux
with `nbd-client -C 2`, hangs for ever. With a larger `-e` the bit promises what nobody had checked; the
commit that mends it says that this "may" corrupt data. We looked for that and did not see it: four
connections to writable raw and qcow2 exports were coherent (0 stale reads of 9,600; 0 of 16 images differed
after FLUSH and kill -9). But nobody has promised it, so the gateway does not rely on it either.

The protocol carries no version of the program. Every later qemu that sets bit 8 sets bit 10 as well, and
nbdkit sets both where it means both. So bit 8 without bit 10 is a suspicion. What decides is one INFO that
does not ask for block sizes: qemu 2.10 to 3.1 refuse it with ERR_BLOCK_SIZE_REQD, and of later ones only
those do whose blocks are larger than a byte. Of all these, 3.0.0 alone sets bit 8 without bit 10. Where no
INFO is to be had (oldstyle, as 3.0.0 greets without `-x`; newstyle; a server that knows only EXPORT_NAME) the
suspicion is enough: a bit that is dropped by mistake costs speed, and one that is believed by mistake hangs a
client.

CACHE is answered by the gateway. Under structured replies, 3.0.0 answers it with the *data* (Q-S2), over
which a client ends the session.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen, with_flags
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes


def applies(evidence: Evidence) -> bool:
    """Bit 8 without bit 10, and no INFO that speaks against it."""
    suspicious = evidence.flags & Flag.CAN_MULTI_CONN and not evidence.flags & Flag.SEND_CACHE
    return bool(suspicious) and evidence.unasked_info in (None, Rep.ERR_BLOCK_SIZE_REQD)


def turn(dialect: Dialect) -> Dialect:
    """Clear bit 8; offer CACHE and answer it here."""
    dialect = with_flags(dialect, clear=Flag.CAN_MULTI_CONN, add=Flag.SEND_CACHE)
    return replace(dialect, answer_cache=True)


_QEMU_3_0 = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
    | Flag.CAN_MULTI_CONN
)
_MENDED = Dialect(clear_flags=Flag.CAN_MULTI_CONN, add_flags=Flag.SEND_CACHE, answer_cache=True)
_BLOCK_SIZES = BlockSizes(512, 4096, 32 * 1024 * 1024)

QUIRK = Quirk(
    name="qemu-multi-conn-bit",
    summary="CAN_MULTI_CONN (bit 8) is set where SEND_CACHE (bit 10) is meant",
    consequence="clients that believe it hang for ever with the default -e 1; with a larger -e they rely on "
    'what nobody had checked, which by qemu\'s own word "may" corrupt data',
    affected="qemu 3.0.0",
    proof=seen(
        "qemu-nbd 3.0.0: the flag in all styles, read-only, over TLS, by QMP; nbdcopy, and Linux with -C 2, "
        "hang with -e 1; libnbd ends the session over CACHE. Lost data was looked for, and not seen"
    ),
    links=(
        "https://gitlab.com/qemu-project/qemu/-/commit/df91328adab8",
        "https://gitlab.com/qemu-project/qemu/-/commit/bc37b06a5cde",
        "https://gitlab.com/qemu-project/qemu/-/commit/2f454defc23e",
    ),
    applies=applies,
    turn=turn,
    risks_data=True,
    transcripts=(
        Transcript(
            "qemu 3.0.0, writable export",
            Evidence(Style.FIXED_NEWSTYLE, _QEMU_3_0, _BLOCK_SIZES, Rep.ERR_BLOCK_SIZE_REQD),
            _MENDED,
        ),
        Transcript(
            "qemu 3.0.0, read-only export",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _QEMU_3_0 | Flag.READ_ONLY,
                _BLOCK_SIZES,
                Rep.ERR_BLOCK_SIZE_REQD,
            ),
            _MENDED,
        ),
        Transcript(
            "qemu 3.0.0 without -x, oldstyle",
            Evidence(Style.OLDSTYLE, _QEMU_3_0 & ~Flag.SEND_DF, info_known=False),
            replace(_MENDED, unstated_minimum=512, trim_alignment=4096),
        ),
        Transcript(
            "qemu 2.12 and 3.1",
            Evidence(
                Style.FIXED_NEWSTYLE,
                _QEMU_3_0 & ~Flag.CAN_MULTI_CONN,
                _BLOCK_SIZES,
                Rep.ERR_BLOCK_SIZE_REQD,
            ),
            Dialect(),
        ),
        Transcript(
            "qemu 7.2",
            Evidence(Style.FIXED_NEWSTYLE, _QEMU_3_0 | Flag.SEND_CACHE, _BLOCK_SIZES, Rep.ACK),
            Dialect(),
        ),
        Transcript(
            "nbd-server 3.24: bit 8 is meant, CACHE is not known",
            Evidence(Style.FIXED_NEWSTYLE, _QEMU_3_0 & ~Flag.SEND_DF, None, Rep.ACK),
            Dialect(),
        ),
        Transcript(
            "nbdkit 1.32: memory plugin with --filter=nocache",
            Evidence(Style.FIXED_NEWSTYLE, _QEMU_3_0 | Flag.SEND_FAST_ZERO, None, Rep.ACK),
            Dialect(),
        ),
    ),
)
