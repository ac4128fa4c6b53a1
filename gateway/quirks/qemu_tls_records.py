"""qemu-nbd 2.6 to 2.8 answers the first of several requests in one TLS record, and then waits.

Those versions wait at the socket for the next request. But GnuTLS decrypts a whole record at once, so the
second request of a record is not in the socket any more: it lies there until something else comes. A client
that waits for its answers before it sends more waits for ever.

Such a server knows no INFO. To a server with TLS and without INFO, the gateway sends every request in records
of its own. A wrong yes costs speed: requests are taken apart, and not sent on as they came.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.protocol.client_role import Style
from gateway.quirks import Dialect, Evidence, Quirk, Transcript, seen
from gateway.wire.constants import TransmissionFlag as Flag


def applies(evidence: Evidence) -> bool:
    """TLS, and no INFO."""
    return evidence.secure and not evidence.info_known


def turn(dialect: Dialect) -> Dialect:
    """Send one request in a record."""
    return replace(dialect, one_request_a_record=True)


_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_WRITE_ZEROES

QUIRK = Quirk(
    name="qemu-tls-records",
    summary="of several requests in one TLS record only the first is answered, until more comes",
    consequence="clients that have several requests under way wait for ever",
    affected="qemu 2.6 to 2.8 (other servers with TLS and without INFO cannot be told from it)",
    proof=seen("qemu-nbd 2.6.0 and 2.8.0; 2.12.0 and later are right"),
    links=("https://gitlab.com/qemu-project/qemu/-/blob/v2.8.0/nbd/server.c",),
    applies=applies,
    turn=turn,
    risks_data=False,
    transcripts=(
        Transcript(
            "qemu 2.8 over TLS",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, info_known=False, secure=True),
            Dialect(unstated_minimum=512, one_request_a_record=True),
        ),
        Transcript(
            "the same in the clear",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, info_known=False),
            Dialect(unstated_minimum=512),
        ),
        Transcript(
            "a younger one over TLS",
            Evidence(Style.FIXED_NEWSTYLE, _FLAGS, secure=True),
            Dialect(),
        ),
    ),
)
"""What the catalogue has of it."""
